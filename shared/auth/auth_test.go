package auth_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/auth"
)

const secret = "a secret that only this test knows"

func TestVerify_ReturnsTheUserOrTheReason(t *testing.T) {
	t.Parallel()
	v, err := auth.NewVerifier(t.Context(), auth.Options{Secret: secret, RoleClaim: "role"})
	if err != nil {
		t.Fatal(err)
	}
	mint := func(key string, u auth.User, life time.Duration) string {
		token, err := auth.Mint(key, u, life)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	signed := func(method jwt.SigningMethod, key any, c jwt.MapClaims) string {
		token, err := jwt.NewWithClaims(method, c).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	const nobody = jwt.UnsafeAllowNoneSignatureType
	_, pair, _ := ed25519.GenerateKey(nil)
	later := time.Now().Add(time.Hour).Unix()
	claims := func(more jwt.MapClaims) jwt.MapClaims {
		more["sub"], more["exp"] = "alice", later
		return more
	}
	alice := auth.User{ID: "alice", Name: "Alice", Role: "teacher"}
	for name, test := range map[string]struct{ token, wantText string }{
		"valid":       {mint(secret, alice, time.Hour), ""},
		"missing":     {"", "missing"},
		"no JWT":      {"x.y.z", "not a JSON Web Token"},
		"too long":    {strings.Repeat("x", 9000), "longer"},
		"expired":     {mint(secret, alice, -time.Hour), "expired"},
		"forged":      {mint("another secret", alice, time.Hour), "signature"},
		"unsigned":    {signed(jwt.SigningMethodNone, nobody, claims(jwt.MapClaims{})), "signature"},
		"HS512":       {signed(jwt.SigningMethodHS512, []byte(secret), claims(jwt.MapClaims{})), "signature"},
		"not yet":     {signed(jwt.SigningMethodHS256, []byte(secret), claims(jwt.MapClaims{"nbf": later})), "yet"},
		"without end": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": "alice"}), "exp"},
		"without sub": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"exp": later}), "sub"},
		"invalid sub": {mint(secret, auth.User{ID: "a;b"}, time.Hour), "sub"},
		"EdDSA":       {signed(jwt.SigningMethodEdDSA, pair, claims(jwt.MapClaims{})), "signature"},
		"tampered":    {tampered(mint(secret, auth.User{ID: "eve"}, time.Hour)), "signature"},
		"critical":    {critical(t), "crit"},
		"exp in ms": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": "alice",
			"exp": time.Now().Add(time.Hour).UnixMilli()}), "exp is in milliseconds"},
		"nbf in ms": {signed(jwt.SigningMethodHS256, []byte(secret), claims(jwt.MapClaims{"nbf": time.Now().UnixMilli()})),
			"nbf is in milliseconds"},
		"nbf beyond int64": {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`,"nbf":1e19}`),
			"nbf is in milliseconds, or far"},
		"nbf beyond float64": {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`,"nbf":1e400}`),
			"nbf is in milliseconds, or far"},
		"exp beyond int64":   {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":1e19}`), "exp is in milliseconds, or far"},
		"exp beyond float64": {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":1e400}`), "exp is in milliseconds, or far"},
		"zero exp":           {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":0}`), "has expired"},
		"negative exp":       {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":-1e300}`), "has expired"},
		"null exp":           {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":null}`), "exp is not of the type"},
		"list exp":           {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":[1]}`), "exp is not of the type"},
		"text nbf":           {raw(t, `{"alg":"HS256"}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`,"nbf":"1"}`), "nbf is not of the type"},
		"huge number sub":    {raw(t, `{"alg":"HS256"}`, `{"sub":1e400,"exp":`+fmt.Sprint(later)+`}`), "sub is a number"},
		"empty sub":          {raw(t, `{"alg":"HS256"}`, `{"sub":"","exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"blank sub":          {raw(t, `{"alg":"HS256"}`, `{"sub":"  ","exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"NUL in sub":         {raw(t, `{"alg":"HS256"}`, `{"sub":"a\u0000b","exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"bytes in sub":       {raw(t, `{"alg":"HS256"}`, "{\"sub\":\"a\xff\",\"exp\":"+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"surrogate in sub":   {raw(t, `{"alg":"HS256"}`, `{"sub":"a\ud800","exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"bidi in sub":        {raw(t, `{"alg":"HS256"}`, `{"sub":"a\u202eb","exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"long sub":           {raw(t, `{"alg":"HS256"}`, `{"sub":"`+strings.Repeat("s", 256)+`","exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"null sub":           {raw(t, `{"alg":"HS256"}`, `{"sub":null,"exp":`+fmt.Sprint(later)+`}`), "sub has to be an id"},
		"no claims":          {raw(t, `{"alg":"HS256"}`, `null`), "exp"},
		"list of claims":     {raw(t, `{"alg":"HS256"}`, `[]`), "not a JSON Web Token"},
		"lower-case alg":     {raw(t, `{"alg":"hs256"}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`}`), "method (alg in its header) that is not accepted here: sign it with HS256"},
		"no alg":             {raw(t, `{"typ":"JWT"}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`}`), "(alg in its header)"},
		"number alg":         {raw(t, `{"alg":256}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`}`), "(alg in its header)"},
		"unheard-of alg":     {raw(t, `{"alg":"ES256K"}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`}`), "(alg in its header)"},
		"empty crit":         {raw(t, `{"alg":"HS256","crit":[]}`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`}`), "crit"},
		"null header":        {raw(t, `null`, `{"sub":"alice","exp":`+fmt.Sprint(later)+`}`), "(alg in its header)"},
		"padded":             {mint(secret, alice, time.Hour) + "=", "not a JSON Web Token"},
		"four parts":         {mint(secret, alice, time.Hour) + ".x", "not a JSON Web Token"},
		"Bearer before it":   {"Bearer " + mint(secret, alice, time.Hour), "without another word such as Bearer"},
		"spaces only":        {" \n", "missing"},
		"space around it":    {"\t" + mint(secret, alice, time.Hour) + " \r\n", ""},
		"1 MB":               {strings.Repeat("x.", 500_000), "longer than 8192 bytes"},
		"text exp":           {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": "alice", "exp": "soon"}), "exp is not of the type"},
		"number sub":         {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": 7, "exp": later}), "sub is a number"},
	} {
		u, err := v.Verify(t.Context(), test.token)
		if test.wantText == "" {
			if err != nil || u.ID != "alice" || u.Name != "Alice" || u.Role != "teacher" || time.Until(u.Expires) < time.Minute {
				t.Errorf("%s: %+v %v", name, u, err)
			}
			continue
		}
		if r, ok := refusal.Of(err); !ok || r.Code != refusal.Unauthorized || !strings.Contains(r.Text, test.wantText) {
			t.Errorf("%s: got %v, want a text with %q", name, err, test.wantText)
		}
	}
}

// raw returns a token with exactly the given header and claims, and with a valid signature.
func raw(t testing.TB, header, claims string) string {
	t.Helper()
	signing := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	signature, err := jwt.SigningMethodHS256.Sign(signing, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return signing + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// The claims of a token are legal JSON in an unusual form. A number in a claim that Verify does not use may have any
// size. If a claim occurs twice, the last one counts (RFC 7519, section 4).
func TestVerify_AcceptsAnyLegalJSON(t *testing.T) {
	t.Parallel()
	v, err := auth.NewVerifier(t.Context(), auth.Options{Secret: secret, RoleClaim: "role"})
	require.NoError(t, err)
	exp := fmt.Sprint(time.Now().Add(time.Hour).Unix())
	for _, claims := range []string{
		`{"sub":"alice","exp":` + exp + `,"score":1e400,"iat":-1e400,"deep":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`,
		`{"sub":"mallory","sub":"alice","exp":1,"exp":` + exp + `}`,
		` {"exp" : ` + exp + `.75 , "\u0073ub" : "alice", "nbf": -0 } `,
		`{"sub":"alice","exp":` + exp + `,"nbf":-1e300,"name":"\ud800","picture":null,"role":null,"aud":[null],"iss":7}`,
	} {
		u, err := v.Verify(t.Context(), raw(t, `{"alg":"HS256","kid":7,"typ":null}`, claims))
		require.NoError(t, err, claims)
		require.Equal(t, "alice", u.ID, claims)
		require.Greater(t, time.Until(u.Expires), time.Minute, claims)
	}
}

// critical returns a token with a valid signature, and with a header that requires an extension that Verify does not
// support.
func critical(t *testing.T) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["crit"], token.Header["b64"] = []string{"b64"}, true
	signed, err := token.SignedString([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestVerify_IgnoresClaimsThatItDoesNotNeed(t *testing.T) {
	t.Parallel()
	han := strings.Repeat("語", 100)
	for _, test := range []struct {
		roleClaim string
		claims    jwt.MapClaims
		want      auth.User
	}{
		{"role", jwt.MapClaims{"role": []string{"teacher"}}, auth.User{Role: "teacher"}},
		{"role", jwt.MapClaims{"role": []string{"teacher", "service"}}, auth.User{Role: "service"}},
		{"role", jwt.MapClaims{"role": map[string]any{"a": 1}}, auth.User{}},
		{"", jwt.MapClaims{"role": "service"}, auth.User{}},
		{"https://school.example/role", jwt.MapClaims{"https://school.example/role": "service", "role": "x"}, auth.User{Role: "service"}},
		{"realm_access.roles", jwt.MapClaims{"realm_access": map[string]any{"roles": []string{"teacher"}}}, auth.User{Role: "teacher"}},
		{"realm_access.roles", jwt.MapClaims{"realm_access": "none"}, auth.User{}},
		{"role", jwt.MapClaims{"name": map[string]any{"first": "Alice"}}, auth.User{}},
		{"role", jwt.MapClaims{"name": han}, auth.User{Name: han}},
		{"role", jwt.MapClaims{"name": strings.Repeat("n", 300)}, auth.User{Name: strings.Repeat("n", 256)}},
		{"role", jwt.MapClaims{"name": "a\x00b\n"}, auth.User{Name: "ab"}},
		{"role", jwt.MapClaims{"picture": strings.Repeat("p", 3000)}, auth.User{}},
		{"role", jwt.MapClaims{"picture": 7, "groups": []int{1}, "aud": 7, "iss": []string{"x"}, "iat": "today"}, auth.User{}},
		{"role", jwt.MapClaims{"SUB": "mallory", "Role": "service"}, auth.User{}},
	} {
		v, err := auth.NewVerifier(t.Context(), auth.Options{Secret: secret, RoleClaim: test.roleClaim})
		require.NoError(t, err)
		exp := time.Now().Add(time.Hour)
		test.claims["sub"], test.claims["exp"] = "auth0|1", exp.Unix()
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, test.claims).SignedString([]byte(secret))
		require.NoError(t, err)
		u, err := v.Verify(t.Context(), token)
		require.NoError(t, err, "%v", test.claims)
		require.Equal(t, exp.Unix()+30, u.Expires.Unix(), "the token is accepted for 30 s more, because clocks differ")
		test.want.ID, test.want.Expires = "auth0|1", u.Expires
		require.Equal(t, test.want, u, "%v", test.claims)
	}
}

// Because clocks differ, Verify accepts a token until 30 s after its exp claim. The field Expires of the returned user
// includes these 30 s. If Expires were in the past, a gateway would disconnect the user at once.
func TestVerify_AnAcceptedTokenHasNotExpired(t *testing.T) {
	t.Parallel()
	v, err := auth.NewVerifier(t.Context(), auth.Options{Secret: secret})
	require.NoError(t, err)
	token, err := auth.Mint(secret, auth.User{ID: "alice"}, -20*time.Second)
	require.NoError(t, err)
	u, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	require.Greater(t, time.Until(u.Expires), time.Second)
	token, err = auth.Mint(secret, auth.User{ID: "alice"}, -31*time.Second)
	require.NoError(t, err)
	_, err = v.Verify(t.Context(), token)
	require.ErrorContains(t, err, "expired")
}

// tampered replaces the user eve by bob in a token, and keeps the signature, which does not fit any more.
func tampered(token string) string {
	parts := strings.Split(token, ".")
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(claims), `"eve"`, `"bob"`, 1)))
	return strings.Join(parts, ".")
}

func FuzzVerify(f *testing.F) {
	v, err := auth.NewVerifier(f.Context(), auth.Options{Secret: secret, RoleClaim: "role"})
	if err != nil {
		f.Fatal(err)
	}
	token, _ := auth.Mint(secret, auth.User{ID: "alice", Name: "Alice"}, time.Hour)
	for _, seed := range []string{token, "", "..", "e30.e30.", tampered(token), "eyJhbGciOiJub25lIn0.e30."} {
		f.Add(seed)
	}
	// A seed that begins with "claims:" contains only claims; the test makes a token with a valid signature from them.
	f.Add("claims:" + `{"sub":"a","exp":1e300}`)
	f.Add("claims:" + `{"sub":["a"],"exp":"x","nbf":-1e300}`)
	f.Fuzz(func(t *testing.T, token string) {
		if claims, ok := strings.CutPrefix(token, "claims:"); ok {
			token = raw(t, `{"alg":"HS256","typ":"JWT"}`, claims)
		}
		u, err := v.Verify(t.Context(), token)
		if err == nil {
			if !catalog.ValidID(u.ID) || u.Expires.IsZero() || strings.ContainsRune(u.Name, 0) {
				t.Fatalf("%q names %+v", token, u)
			}
		} else if r, ok := refusal.Of(err); !ok || r.Code != refusal.Unauthorized {
			t.Fatalf("%q: %v", token, err)
		}
	})
}

func TestNewVerifier_NeedsASecretOrKeys(t *testing.T) {
	t.Parallel()
	if _, err := auth.NewVerifier(t.Context(), auth.Options{Secret: "only-31-bytes-long-and-not-more"}); err == nil {
		t.Error("a short secret was accepted")
	}
	if _, err := auth.NewVerifier(t.Context(), auth.Options{}); err == nil || !strings.Contains(err.Error(), "JWT_SECRET") {
		t.Errorf("got %v", err)
	}
	for _, address := range []string{"school", "ftp://school/keys", "http://", "http://[::1"} {
		if _, err := auth.NewVerifier(t.Context(), auth.Options{JWKSURL: address, Audience: []string{"a"}, Issuer: "i"}); err == nil || !strings.Contains(err.Error(), "JWKS_URL") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestActingFor_OnlyServices(t *testing.T) {
	t.Parallel()
	service, alice := auth.User{ID: "lms", Role: auth.RoleService}, auth.User{ID: "alice"}
	if actor, err := service.ActingFor("bob"); err != nil || actor != "bob" {
		t.Errorf("%q %v", actor, err)
	}
	if actor, err := alice.ActingFor(""); err != nil || actor != "alice" {
		t.Errorf("%q %v", actor, err)
	}
	if _, err := alice.ActingFor("bob"); err == nil {
		t.Error("a user acted for another")
	}
	if _, err := service.ActingFor("b;b"); err == nil {
		t.Error("an invalid id was accepted")
	}
}
