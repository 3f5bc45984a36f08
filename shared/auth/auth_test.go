package auth_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/auth"
)

const secret = "a secret that only this test knows"

func TestVerify_SaysWhoAndWhyNot(t *testing.T) {
	t.Parallel()
	v, err := auth.NewVerifier(t.Context(), secret, "")
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
	for name, test := range map[string]struct{ token, says string }{
		"valid":       {mint(secret, alice, time.Hour), ""},
		"missing":     {"", "missing"},
		"no JWT":      {"x.y.z", "no JSON Web Token"},
		"too long":    {strings.Repeat("x", 9000), "longer"},
		"expired":     {mint(secret, alice, -time.Hour), "expired"},
		"forged":      {mint("another secret", alice, time.Hour), "signature"},
		"unsigned":    {signed(jwt.SigningMethodNone, nobody, claims(jwt.MapClaims{})), "signature"},
		"other size":  {signed(jwt.SigningMethodHS512, []byte(secret), claims(jwt.MapClaims{})), "signature"},
		"not yet":     {signed(jwt.SigningMethodHS256, []byte(secret), claims(jwt.MapClaims{"nbf": later})), "yet"},
		"without end": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": "alice"}), "exp"},
		"without sub": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"exp": later}), "sub"},
		"odd sub":     {mint(secret, auth.User{ID: "a;b"}, time.Hour), "sub"},
		"no text":     {mint(secret, auth.User{ID: "a", Name: "a\x00b"}, time.Hour), "U+0000"},
		"other kind":  {signed(jwt.SigningMethodEdDSA, pair, claims(jwt.MapClaims{})), "signature"},
		"tampered":    {tampered(mint(secret, auth.User{ID: "eve"}, time.Hour)), "signature"},
		"long name":   {mint(secret, auth.User{ID: "a", Name: strings.Repeat("n", 300)}, time.Hour), "too long"},
	} {
		u, err := v.Verify(t.Context(), test.token)
		if test.says == "" {
			if err != nil || u.ID != "alice" || u.Name != "Alice" || u.Role != "teacher" || time.Until(u.Expires) < time.Minute {
				t.Errorf("%s: %+v %v", name, u, err)
			}
			continue
		}
		if r, ok := refusal.Of(err); !ok || r.Code != refusal.Unauthorized || !strings.Contains(r.Text, test.says) {
			t.Errorf("%s: got %v, want a text with %q", name, err, test.says)
		}
	}
}

// tampered names another user under the signature that was made for eve.
func tampered(token string) string {
	parts := strings.Split(token, ".")
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(claims), `"eve"`, `"bob"`, 1)))
	return strings.Join(parts, ".")
}

func FuzzVerify(f *testing.F) {
	v, err := auth.NewVerifier(f.Context(), secret, "")
	if err != nil {
		f.Fatal(err)
	}
	token, _ := auth.Mint(secret, auth.User{ID: "alice", Name: "Alice"}, time.Hour)
	for _, seed := range []string{token, "", "..", "e30.e30.", tampered(token), "eyJhbGciOiJub25lIn0.e30."} {
		f.Add(seed)
	}
	// Any claims at all, under a signature that holds.
	f.Add("claims:" + `{"sub":"a","exp":1e300}`)
	f.Add("claims:" + `{"sub":["a"],"exp":"x","nbf":-1e300}`)
	f.Fuzz(func(t *testing.T, token string) {
		if claims, ok := strings.CutPrefix(token, "claims:"); ok {
			signing := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." +
				base64.RawURLEncoding.EncodeToString([]byte(claims))
			signature, err := jwt.SigningMethodHS256.Sign(signing, []byte(secret))
			if err != nil {
				t.Fatal(err)
			}
			token = signing + "." + base64.RawURLEncoding.EncodeToString(signature)
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

func TestNewVerifier_NeedsOneOfTheTwo(t *testing.T) {
	t.Parallel()
	if _, err := auth.NewVerifier(t.Context(), "", ""); err == nil || !strings.Contains(err.Error(), "JWT_SECRET") {
		t.Errorf("got %v", err)
	}
	for _, address := range []string{"school", "ftp://school/keys", "http://", "http://[::1"} {
		if _, err := auth.NewVerifier(t.Context(), "", address); err == nil || !strings.Contains(err.Error(), "JWKS_URL") {
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
		t.Error("an id that is none was taken")
	}
}
