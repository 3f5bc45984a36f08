package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

// signIn is a school's sign-in: it serves a set of keys, or does not.
type signIn struct {
	*httptest.Server
	set  atomic.Value
	asks atomic.Int64
}

func newSignIn(t *testing.T) *signIn {
	t.Helper()
	s := &signIn{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asks.Add(1)
		set, _ := s.set.Load().(string)
		if set == "" {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(set))
	}))
	t.Cleanup(s.Close)
	return s
}

// serve gives the public keys out, by their ids.
func (s *signIn) serve(t *testing.T, keys map[string]crypto.Signer) {
	t.Helper()
	var all []any
	for id, key := range keys {
		jwk, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: id}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, jwk.Marshal())
	}
	// What is of no use here makes the others no worse: a key for encryption, one of an unknown kind, a shared secret.
	all = append(all, map[string]string{"kty": "martian", "kid": "m"},
		map[string]string{"kty": "oct", "kid": "secret", "k": base64.RawURLEncoding.EncodeToString([]byte("known to all"))})
	set, err := json.Marshal(map[string]any{"keys": all})
	if err != nil {
		t.Fatal(err)
	}
	s.set.Store(string(set))
}

func sign(t *testing.T, method jwt.SigningMethod, id string, key any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, jwt.MapClaims{"sub": "bob", "exp": time.Now().Add(time.Hour).Unix()})
	if id != "" {
		token.Header["kid"] = id
	}
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func verifier(t *testing.T, s *signIn, p pace) *Verifier {
	t.Helper()
	keys, err := newKeySet(t.Context(), s.URL, p)
	if err != nil {
		t.Fatal(err)
	}
	return ofKeys(keys)
}

// eager is a pace at which nothing is waited for.
var eager = pace{usual: time.Hour, retry: 10 * time.Millisecond, slowest: 10 * time.Millisecond}

func refused(t *testing.T, v *Verifier, token, says string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), token); err == nil || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v, want a refusal with %q", err, says)
	}
}

func taken(t *testing.T, v *Verifier, token string) {
	t.Helper()
	if u, err := v.Verify(t.Context(), token); err != nil || u.ID != "bob" {
		t.Fatalf("%+v %v", u, err)
	}
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func TestVerify_KeysMayComeLate(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	v := verifier(t, s, eager)
	key := edKey(t)
	token := sign(t, jwt.SigningMethodEdDSA, "k1", key)
	refused(t, v, token, "not there yet")
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "", key), "not there yet")
	s.serve(t, map[string]crypto.Signer{"k1": key})
	taken(t, v, token)
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "", key))
}

func TestVerify_KeysThatCameLateAreFetchedUnasked(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	keys, err := newKeySet(t.Context(), s.URL, eager)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); s.asks.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody asked for them")
		}
	}
	s.serve(t, map[string]crypto.Signer{"k1": edKey(t)})
	for deadline := time.Now().Add(10 * time.Second); !keys.known(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("they were not fetched")
		}
	}
}

func TestVerify_KeysAreReplaced(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	old, young := edKey(t), edKey(t)
	s.serve(t, map[string]crypto.Signer{"old": old})
	v := verifier(t, s, eager)
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "old", old))
	s.serve(t, map[string]crypto.Signer{"young": young})
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "young", young))
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "old", old), "not known here")
	// A sign-in that is away leaves the keys that are there.
	s.set.Store("")
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "other", old), "not known here")
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "young", young))
}

func TestVerify_ForgedKeyNamesDoNotAskTheSignInEachTime(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	key := edKey(t)
	s.serve(t, map[string]crypto.Signer{"k1": key})
	v := verifier(t, s, pace{usual: time.Hour, retry: time.Hour, slowest: time.Hour, unknown: time.Hour})
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "k1", key))
	for range 100 {
		refused(t, v, sign(t, jwt.SigningMethodEdDSA, "forged", key), "not known here")
	}
	if asks := s.asks.Load(); asks != 1 {
		t.Errorf("asked %d times", asks)
	}
}

func TestVerify_MethodsOfPublicKeysOnly(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed := edKey(t)
	s.serve(t, map[string]crypto.Signer{"rsa": rsaKey, "ec": ecKey, "ed": ed})
	v := verifier(t, s, eager)
	taken(t, v, sign(t, jwt.SigningMethodRS256, "rsa", rsaKey))
	taken(t, v, sign(t, jwt.SigningMethodES256, "ec", ecKey))
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "ed", ed))

	public, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	refused(t, v, sign(t, jwt.SigningMethodHS256, "rsa", public), "signature")
	refused(t, v, sign(t, jwt.SigningMethodHS256, "ed", []byte(ed.Public().(ed25519.PublicKey))), "signature")
	refused(t, v, sign(t, jwt.SigningMethodHS256, "secret", []byte("known to all")), "signature")
	refused(t, v, sign(t, jwt.SigningMethodNone, "rsa", jwt.UnsafeAllowNoneSignatureType), "signature")
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "ed", edKey(t)), "signature")
	refused(t, v, sign(t, jwt.SigningMethodRS256, "ec", rsaKey), "token")
}

func TestVerify_WaitsForKeysNoLongerThanItsCaller(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	keys, err := newKeySet(t.Context(), server.URL, eager)
	if err != nil {
		t.Fatal(err)
	}
	token := sign(t, jwt.SigningMethodEdDSA, "k1", edKey(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := ofKeys(keys).Verify(ctx, token); err == nil || time.Since(begun) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(begun))
	}
}
