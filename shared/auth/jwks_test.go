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
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// signIn is a school's identity provider. It serves the stored set of keys, and fails while no set is stored.
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

// RoundTrip makes signIn an http.RoundTripper that needs no network, for tests in a synctest bubble.
func (s *signIn) RoundTrip(*http.Request) (*http.Response, error) {
	s.asks.Add(1)
	set, _ := s.set.Load().(string)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(set))}, nil
}

// serve stores a set that contains the public keys of the given signers, under their ids, and two keys that are not
// usable.
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
	// A key of an unknown kind and a shared secret are not usable. They must not affect the other keys of the set.
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
	token := jwt.NewWithClaims(method, jwt.MapClaims{"sub": "bob", "exp": time.Now().Add(time.Hour).Unix(),
		"iss": "https://sign-in.example/", "aud": []string{"other", "mesh"}, "role": "service"})
	if id != "" {
		token.Header["kid"] = id
	}
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func verifier(t *testing.T, s *signIn, p fetchIntervals) *Verifier {
	t.Helper()
	v, err := newVerifier(t.Context(), Options{JWKSURL: s.URL, Issuer: "https://sign-in.example/", Audience: []string{"mesh"},
		Log: slog.New(slog.DiscardHandler)}, p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// eager makes a verifier fetch the keys at once for a token with an unknown key, and 10 ms after a failed fetch.
var eager = fetchIntervals{usual: time.Hour, retry: 10 * time.Millisecond, slowest: 10 * time.Millisecond, patience: 20 * time.Second}

func refused(t *testing.T, v *Verifier, token, wantText string) {
	t.Helper()
	_, err := v.Verify(t.Context(), token)
	if r, ok := refusal.Of(err); !ok || r.Code != refusal.Unauthorized || !strings.Contains(r.Text, wantText) {
		t.Fatalf("got %v, want a refusal with %q", err, wantText)
	}
}

// unavailable requires that a token is refused as unavailable, because its key cannot be fetched.
func unavailable(t *testing.T, v *Verifier, token string) {
	t.Helper()
	_, err := v.Verify(t.Context(), token)
	if r, ok := refusal.Of(err); !ok || r.Code != refusal.Unavailable {
		t.Fatalf("got %v, want unavailable", err)
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
	unavailable(t, v, token)
	unavailable(t, v, sign(t, jwt.SigningMethodEdDSA, "", key))
	select {
	case <-v.Ready():
		t.Fatal("ready without keys")
	default:
	}
	s.serve(t, map[string]crypto.Signer{"k1": key})
	select { // the verifier fetches the keys although no token is checked
	case <-v.Ready():
	case <-time.After(time.Minute):
		t.Fatal("not ready")
	}
	taken(t, v, token)
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "", key))
}

func TestVerify_KeysAreReplaced(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	old, young, next := edKey(t), edKey(t), edKey(t)
	s.serve(t, map[string]crypto.Signer{"old": old})
	v := verifier(t, s, eager)
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "old", old))
	s.serve(t, map[string]crypto.Signer{"young": young})
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "young", young))
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "old", old), "not known here")
	// A token that names no key is signed with a new key. The verifier must fetch the new key for this token too.
	s.serve(t, map[string]crypto.Signer{"young": young, "next": next})
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "", next))
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "", old), "signature")
	// The identity provider fails. Tokens with a known key must still be accepted, and all other tokens must be refused as
	// unavailable.
	s.set.Store("")
	unavailable(t, v, sign(t, jwt.SigningMethodEdDSA, "other", old))
	unavailable(t, v, sign(t, jwt.SigningMethodEdDSA, "", old))
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "young", young))
}

func TestVerify_FindsARotatedKeyDespiteInventedKeyNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &signIn{}
		old, young := edKey(t), edKey(t)
		s.serve(t, map[string]crypto.Signer{"old": old})
		ctx, stop := context.WithCancel(t.Context())
		defer func() { stop(); synctest.Wait() }()
		v, err := NewVerifier(ctx, Options{JWKSURL: "http://sign-in.example", Issuer: "https://sign-in.example/",
			Audience: []string{"mesh"}, Log: slog.New(slog.DiscardHandler), transport: s})
		if err != nil {
			t.Fatal(err)
		}
		taken(t, v, sign(t, jwt.SigningMethodEdDSA, "old", old))
		// The unknown key name causes a second fetch at once.
		refused(t, v, sign(t, jwt.SigningMethodEdDSA, "invented", old), "not known here")
		if asks := s.asks.Load(); asks != 2 {
			t.Fatalf("the keys were fetched %d times", asks)
		}

		s.serve(t, map[string]crypto.Signer{"old": old, "young": young})
		begun := time.Now()
		// The third fetch may begin only 10 s after the second. Until then, tokens with an unknown key name are refused
		// as unavailable, after each has waited for 3 s.
		unavailable(t, v, sign(t, jwt.SigningMethodEdDSA, "young", young))
		unavailable(t, v, sign(t, jwt.SigningMethodEdDSA, "invented", old))
		taken(t, v, sign(t, jwt.SigningMethodEdDSA, "old", old))
		if took := time.Since(begun); took != 6*time.Second {
			t.Errorf("two tokens waited for %s", took)
		}
		time.Sleep(4500 * time.Millisecond) // the client pauses before it sends the token again; now 10 s have passed
		taken(t, v, sign(t, jwt.SigningMethodEdDSA, "young", young))
		if asks := s.asks.Load(); asks != 3 {
			t.Errorf("the keys were fetched %d times", asks)
		}
	})
}

func TestVerify_ForgedKeyNamesDoNotCauseAFetchEach(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	key := edKey(t)
	s.serve(t, map[string]crypto.Signer{"k1": key})
	v := verifier(t, s, fetchIntervals{usual: time.Hour, retry: time.Hour, slowest: time.Hour, unknown: time.Hour, patience: time.Millisecond})
	<-v.Ready()
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "k1", key))
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { _, _ = v.Verify(t.Context(), sign(t, jwt.SigningMethodEdDSA, "forged", key)) })
	}
	all.Wait()
	for range 100 {
		unavailable(t, v, sign(t, jwt.SigningMethodEdDSA, "forged", key))
	}
	if asks := s.asks.Load(); asks > 2 {
		t.Errorf("the keys were fetched %d times", asks)
	}
	taken(t, v, sign(t, jwt.SigningMethodEdDSA, "k1", key))
}

func TestVerify_ChecksAudienceAndIssuer(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	key := edKey(t)
	s.serve(t, map[string]crypto.Signer{"k1": key})
	v := verifier(t, s, eager)
	for _, test := range []struct {
		aud, iss any
		wantText string
	}{
		{"mesh", "https://sign-in.example/", ""},
		{[]string{"other"}, "https://sign-in.example/", "aud is not the JWT_AUDIENCE"},
		{nil, "https://sign-in.example/", "has no aud"},
		{"mesh", "https://sign-in.example", "iss is not the JWT_ISSUER"}, // without the slash at the end
		{"mesh", nil, "iss"},
		{7, "https://sign-in.example/", "aud"},
		{[]any{"mesh", nil}, "https://sign-in.example/", "aud is not of the type"},
		{[]any{[]string{"mesh"}}, "https://sign-in.example/", "aud is not of the type"},
		{[]string{}, "https://sign-in.example/", "has no aud"},
		{"", "https://sign-in.example/", "has no aud"},
		{"Mesh", "https://sign-in.example/", "aud is not the JWT_AUDIENCE"},
		{"mesh", []string{"https://sign-in.example/"}, "iss is not of the type"},
		{"mesh", "HTTPS://sign-in.example/", "iss is not the JWT_ISSUER"},
	} {
		token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{"sub": "bob", "exp": time.Now().Add(time.Hour).Unix(),
			"aud": test.aud, "iss": test.iss, "role": "service"})
		token.Header["kid"] = "k1"
		signed, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		if test.wantText != "" {
			refused(t, v, signed, test.wantText)
			continue
		}
		// The claim role is ignored, because JWT_ROLE_CLAIM does not name it.
		if u, err := v.Verify(t.Context(), signed); err != nil || u.ID != "bob" || u.Role != "" {
			t.Fatalf("%+v %v", u, err)
		}
	}
	if _, err := NewVerifier(t.Context(), Options{JWKSURL: s.URL, Issuer: "i"}); err == nil {
		t.Error("keys without an audience")
	}
	if _, err := NewVerifier(t.Context(), Options{JWKSURL: s.URL, Audience: []string{"a"}}); err == nil {
		t.Error("keys without an issuer")
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
	refused(t, v, sign(t, jwt.SigningMethodRS256, "ec", rsaKey), "kid names is not for the method")
	refused(t, v, sign(t, jwt.SigningMethodHS256, "rsa", public), "signature")
	refused(t, v, sign(t, jwt.SigningMethodHS256, "ed", []byte(ed.Public().(ed25519.PublicKey))), "signature")
	refused(t, v, sign(t, jwt.SigningMethodHS256, "secret", []byte("known to all")), "signature")
	refused(t, v, sign(t, jwt.SigningMethodNone, "rsa", jwt.UnsafeAllowNoneSignatureType), "signature")
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "ed", edKey(t)), "signature")
}

// jwk returns a key in its JSON form (JWK), with additional members of the JSON object.
func jwk(t *testing.T, key any, members map[string]any) map[string]any {
	t.Helper()
	made, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{Marshal: jwkset.JWKMarshalOptions{Private: true}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(made.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	maps.Copy(all, members)
	return all
}

func (s *signIn) write(t *testing.T, before string, keys ...any) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	s.set.Store(before + string(text))
}

// Identity providers publish key sets in unusual forms: several keys with one name, certificate fingerprints in
// nonstandard forms, a byte order mark. Verify must accept these sets. But it must not use a private key that is
// published in a set, because anyone could sign tokens with that key.
func TestVerify_AcceptsTheKeySetsOfSignIns(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	old, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, rsaKey.Public(), rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	s := newSignIn(t)
	s.write(t, "\ufeff\n",
		jwk(t, ecKey.Public(), map[string]any{"kid": "1", "use": "enc"}),
		jwk(t, other.Public(), map[string]any{"kid": "1"}), jwk(t, other.Public(), map[string]any{"kid": "p384"}),
		jwk(t, old.Public(), map[string]any{"kid": "1"}), jwk(t, old.Public(), map[string]any{"kid": "pss", "alg": "PS256"}),
		jwk(t, rsaKey.Public(), map[string]any{"kid": "1", "x5c": []any{base64.StdEncoding.EncodeToString(certificate)},
			"x5t": base64.RawURLEncoding.EncodeToString([]byte("65AF0909B1B0758E06C6E048C46002B5C695E36B"))}),
		jwk(t, ecKey.Public(), map[string]any{"kid": "1", "alg": "ES256", "ext": true, "use": "sig"}),
		jwk(t, ecKey, map[string]any{"kid": "private"}), nil, map[string]any{"kty": "RSA", "kid": "1", "n": "", "e": "AQAB"})
	v := verifier(t, s, eager)
	for _, id := range []string{"1", ""} { // tokens with and without the name of their key
		taken(t, v, sign(t, jwt.SigningMethodRS256, id, rsaKey))
		taken(t, v, sign(t, jwt.SigningMethodRS256, id, old))
		taken(t, v, sign(t, jwt.SigningMethodES256, id, ecKey))
		taken(t, v, sign(t, jwt.SigningMethodES384, id, other))
	}
	refused(t, v, sign(t, jwt.SigningMethodEdDSA, "1", edKey(t)), "kid names is not for the method")
	taken(t, v, sign(t, jwt.SigningMethodPS256, "pss", old))
	refused(t, v, sign(t, jwt.SigningMethodRS256, "pss", old), "kid names is not for the method")
	refused(t, v, sign(t, jwt.SigningMethodES256, "p384", ecKey), "kid names is not for the method")
	refused(t, v, sign(t, jwt.SigningMethodES256, "private", ecKey), "not known here")
	for _, id := range []any{7, []string{"1"}, true} {
		token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": "bob"})
		token.Header["kid"] = id
		signed, err := token.SignedString(ecKey)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, v, signed, "kid has to be a text")
	}
}

// The identity provider serves a set without a usable key. This is an error of the provider, so tokens must be refused
// as unavailable and not as invalid.
func TestVerify_RefusesASetWithoutUsableKeys(t *testing.T) {
	t.Parallel()
	key := edKey(t)
	token := sign(t, jwt.SigningMethodEdDSA, "k1", key)
	for name, test := range map[string]struct{ set, wantText string }{
		"empty":        {`{"keys":[]}`, "the set is empty"},
		"null":         {`{"keys":null}`, "not a JSON Web Key Set"},
		"not a set":    {`{"error":"x"}`, "not a JSON Web Key Set"},
		"an object":    {`{"keys":{}}`, "read the set"},
		"a web page":   {`<html>sign in</html>`, "read the set"},
		"two sets":     {`{"keys":[]}{"keys":[]}`, "read the set"},
		"too large":    {`{"keys":[]}` + strings.Repeat(" ", 1<<20), "larger than 1048576 bytes"},
		"others' keys": {`{"keys":[{"kty":"martian"},{"kty":"oct","k":"AAAA"}]}`, "none of the 2 keys"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSignIn(t)
			s.set.Store(test.set)
			log := &lines{}
			v, err := newVerifier(t.Context(), Options{JWKSURL: s.URL, Issuer: "https://sign-in.example/",
				Audience: []string{"mesh"}, Log: slog.New(slog.NewTextHandler(log, nil))}, eager)
			if err != nil {
				t.Fatal(err)
			}
			unavailable(t, v, token)
			select {
			case <-v.Ready():
				t.Fatal("ready without keys")
			default:
			}
			log.await(t, test.wantText)
			s.serve(t, map[string]crypto.Signer{"k1": key})
			<-v.Ready()
			taken(t, v, token)
		})
	}
}

// lines collects the output of a logger, so that a test can read it.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// await waits until the logger has written the given text.
func (l *lines) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		got := l.text.String()
		l.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the log has no %q: %s", text, got)
		}
	}
}

// The JWKS URL redirects to another URL. Verify must follow the redirect. It must not follow a redirect from https to
// http, because an attacker in the network could insert keys into a response over http.
func TestVerify_FollowsRedirectsButNotFromHTTPSToHTTP(t *testing.T) {
	t.Parallel()
	s := newSignIn(t)
	key := edKey(t)
	s.serve(t, map[string]crypto.Signer{"k1": key})
	elsewhere := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, s.URL, http.StatusFound) })
	plain, secure := httptest.NewServer(elsewhere), httptest.NewTLSServer(elsewhere)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	// The keys are behind five redirects, the maximum.
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if next := strings.TrimSuffix(r.URL.Path, "/") + "/next"; strings.Count(next, "/next") < 5 {
			http.Redirect(w, r, next, http.StatusFound)
			return
		}
		elsewhere.ServeHTTP(w, r)
	}))
	t.Cleanup(far.Close)
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }))
	t.Cleanup(loop.Close)
	for address, wantText := range map[string]string{plain.URL: "", far.URL: "", secure.URL: "which is not https",
		loop.URL: "redirects more than 5 times"} {
		log := &lines{}
		v, err := newVerifier(t.Context(), Options{JWKSURL: address, Issuer: "https://sign-in.example/", Audience: []string{"mesh"},
			Log: slog.New(slog.NewTextHandler(log, nil)), transport: secure.Client().Transport}, eager)
		if err != nil {
			t.Fatal(err)
		}
		token := sign(t, jwt.SigningMethodEdDSA, "k1", key)
		if wantText == "" {
			taken(t, v, token)
			continue
		}
		unavailable(t, v, token)
		log.await(t, wantText)
	}
}

func TestVerify_StopsWaitingForKeysWithItsCaller(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	v := verifier(t, &signIn{Server: server}, eager)
	token := sign(t, jwt.SigningMethodEdDSA, "k1", edKey(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := v.Verify(ctx, token); err == nil || time.Since(begun) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(begun))
	}
}
