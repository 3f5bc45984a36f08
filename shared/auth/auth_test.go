package auth_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

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
	alice := auth.User{ID: "alice", Name: "Alice", Role: "teacher"}
	later := time.Now().Add(time.Hour).Unix()
	for name, test := range map[string]struct{ token, says string }{
		"valid":       {mint(secret, alice, time.Hour), ""},
		"missing":     {"", "missing"},
		"no JWT":      {"x.y.z", "no JSON Web Token"},
		"too long":    {strings.Repeat("x", 9000), "longer"},
		"expired":     {mint(secret, alice, -time.Hour), "expired"},
		"forged":      {mint("another secret", alice, time.Hour), "signature"},
		"unsigned":    {signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"sub": "alice", "exp": later}), "signature"},
		"other size":  {signed(jwt.SigningMethodHS512, []byte(secret), jwt.MapClaims{"sub": "alice", "exp": later}), "signature"},
		"not yet":     {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": "alice", "exp": later, "nbf": later}), "yet"},
		"without end": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"sub": "alice"}), "exp"},
		"without sub": {signed(jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"exp": later}), "sub"},
		"odd sub":     {mint(secret, auth.User{ID: "a;b"}, time.Hour), "sub"},
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

func TestVerify_KeysMayComeLateAndChange(t *testing.T) {
	t.Parallel()
	var keys atomic.Value
	keys.Store(`{"keys":[]}`)
	var down atomic.Bool
	down.Store(true)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(keys.Load().(string)))
	}))
	defer server.Close()
	v, err := auth.NewVerifier(t.Context(), "", server.URL)
	if err != nil {
		t.Fatalf("keys that are away stopped the start: %v", err)
	}
	public, private, _ := ed25519.GenerateKey(nil)
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{"sub": "bob", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = "k1"
	signed, err := token.SignedString(private)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), signed); err == nil {
		t.Fatal("a token of an unknown key was taken")
	}
	set, _ := json.Marshal(map[string]any{"keys": []any{map[string]string{"kty": "OKP", "crv": "Ed25519", "kid": "k1",
		"alg": "EdDSA", "use": "sig", "x": base64.RawURLEncoding.EncodeToString(public)}}})
	keys.Store(string(set))
	down.Store(false)
	v, err = auth.NewVerifier(t.Context(), "", server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := v.Verify(t.Context(), signed); err != nil || u.ID != "bob" {
		t.Fatalf("%+v %v", u, err)
	}
	confused, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "eve", "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(public))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), confused); err == nil {
		t.Fatal("a public key was taken for a secret")
	}
}

func TestNewVerifier_NeedsOneOfTheTwo(t *testing.T) {
	t.Parallel()
	if _, err := auth.NewVerifier(t.Context(), "", ""); err == nil || !strings.Contains(err.Error(), "JWT_SECRET") {
		t.Errorf("got %v", err)
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
