package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"github.com/edumatrix/interlinked/shared/retry"
)

// fetchIntervals configures how often keys are fetched.
type fetchIntervals struct {
	usual    time.Duration // after a successful fetch
	retry    time.Duration // after a fetch that failed; doubled after each further failure, up to the field slowest
	slowest  time.Duration
	unknown  time.Duration // minimum interval of fetches for tokens with an unknown key; anyone can make such tokens
	patience time.Duration // how long a token with an unknown key waits for a fetch before it is refused as unavailable
}

const (
	fetchWithin  = 5 * time.Second
	maxSet       = 1 << 20 // bytes
	maxRedirects = 5
)

// errNoKeys means that the keys could not be fetched after the token arrived, so the token may or may not be valid.
var errNoKeys = errors.New("the keys could not be fetched")

// keySet holds the keys at a JWKS URL. One goroutine fetches them: at the start, an hour after a successful fetch, 1 s
// to 30 s after a failed one, and when a token is signed with an unknown key, because the key may be new.
type keySet struct {
	url    string
	pace   fetchIntervals
	client *http.Client
	log    *slog.Logger
	warned bool // a warning about a key that is not public was logged; used only by the goroutine of run
	ended  <-chan struct{}
	wake   chan struct{} // signals that a fetch is wanted
	first  chan struct{} // closed when keys were fetched for the first time

	mu      sync.Mutex
	keys    []publicKey
	begun   int           // number of fetches that have begun
	done    int           // number of fetches that have ended: equal to the field begun, or one less
	failed  error         // error of the last fetch
	wanted  bool          // a token was signed with an unknown key, and no fetch has begun since
	allowed time.Time     // earliest time at which a fetch for an unknown key may begin
	changed chan struct{} // closed when a fetch ends
}

func newKeySet(ctx context.Context, o Options, p fetchIntervals) (*keySet, error) {
	parsed, err := url.Parse(o.JWKSURL)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return nil, errors.New("JWKS_URL has to look like https://school.example/.well-known/jwks.json")
	}
	k := &keySet{url: o.JWKSURL, pace: p, log: o.Log, ended: ctx.Done(), wake: make(chan struct{}, 1),
		client: &http.Client{Timeout: fetchWithin, Transport: o.transport, CheckRedirect: redirect},
		first:  make(chan struct{}), changed: make(chan struct{}), begun: 1}
	go k.run(ctx)
	return k, nil
}

// redirect follows up to maxRedirects redirects of the URL, but not from https to http, where an attacker in the
// network could insert keys.
func redirect(r *http.Request, via []*http.Request) error {
	switch {
	case via[0].URL.Scheme == "https" && r.URL.Scheme != "https":
		return fmt.Errorf("it redirects to %s://%s, which is not https", r.URL.Scheme, r.URL.Host)
	case len(via) > maxRedirects:
		return fmt.Errorf("it redirects more than %d times", maxRedirects)
	}
	return nil
}

func (k *keySet) run(ctx context.Context) {
	delay, failing, had := retry.Backoff{First: k.pace.retry, Max: k.pace.slowest}, false, false
	for {
		err := k.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && !had {
			had = true
			close(k.first)
		}
		k.mu.Lock()
		k.done, k.failed = k.begun, err
		close(k.changed)
		k.changed = make(chan struct{})
		k.mu.Unlock()
		next := time.Now().Add(k.pace.usual)
		if err != nil {
			next = time.Now().Add(delay.Next())
		} else {
			delay.Reset()
		}
		switch {
		case err != nil && !failing:
			k.log.Warn("the keys of JWKS_URL cannot be fetched, retrying", "error", err)
		case err == nil && failing:
			k.log.Info("the keys of JWKS_URL can be fetched again")
		}
		failing = err != nil
		if !k.sleep(ctx, next) {
			return
		}
	}
}

// sleep waits until a fetch is due, and counts that fetch as begun. The parameter next is the latest time of the fetch;
// a token that is signed with an unknown key makes an earlier fetch due. sleep returns false if ctx ends first.
func (k *keySet) sleep(ctx context.Context, next time.Time) bool {
	for {
		k.mu.Lock()
		due, wanted := next, k.wanted && k.allowed.Before(next)
		if wanted {
			due = k.allowed
		}
		left := time.Until(due)
		if left <= 0 {
			if k.begun++; k.wanted {
				k.wanted, k.allowed = false, time.Now().Add(k.pace.unknown)
			}
			k.mu.Unlock()
			return true
		}
		k.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		case <-k.wake:
		}
		timer.Stop()
	}
}

// fetch replaces the stored keys by the keys at the URL, so tokens of a withdrawn key become invalid. If the set cannot
// be read, the stored keys remain. fetch ignores keys that are not for signing tokens, because sets also contain keys
// for other purposes. A set without any usable key removes the stored keys and is an error, because no token would be
// valid.
func (k *keySet) fetch(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return fmt.Errorf("fetch keys: %w", err)
	}
	response, err := k.client.Do(r)
	if err != nil {
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err // without the URL, which may contain a credential
		}
		return fmt.Errorf("fetch keys from %s: %w", r.URL.Host, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch keys: status %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxSet+1))
	if err != nil {
		return fmt.Errorf("fetch keys: read the set: %w", err)
	}
	if len(text) > maxSet {
		return fmt.Errorf("fetch keys: the set is larger than %d bytes", maxSet)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(text, []byte("\ufeff")), &set); err != nil {
		return fmt.Errorf("fetch keys: read the set: %w", err)
	}
	if set.Keys == nil {
		return errors.New("fetch keys: the response is not a JSON Web Key Set")
	}
	usable := make([]publicKey, 0, len(set.Keys))
	var problem error
	for _, raw := range set.Keys {
		key, err := readKey(raw)
		if err != nil {
			if problem = err; errors.Is(err, errNotPublic) && !k.warned {
				k.warned = true
				k.log.Warn("a key in the set of JWKS_URL is ignored", "error", err)
			}
			continue
		}
		usable = append(usable, key)
	}
	k.mu.Lock()
	k.keys = usable
	k.mu.Unlock()
	switch {
	case len(set.Keys) == 0:
		return errors.New("fetch keys: the set is empty")
	case len(usable) == 0:
		return fmt.Errorf("fetch keys: none of the %d keys in the set can verify a token: %w", len(set.Keys), problem)
	}
	return nil
}

// publicKey is a key that verifies the signatures of tokens.
type publicKey struct {
	id     string
	method jwkset.ALG // the key's method; empty: all methods that suit it
	key    any
}

// errNotPublic means that the set contains a shared secret or a private key, with which anyone who reads the set
// could sign.
var errNotPublic = errors.New("a key is not public: anyone who reads the set could sign with it")

// readKey reads a key of a set. Its error explains why the key cannot be used.
func readKey(raw json.RawMessage) (publicKey, error) {
	var m jwkset.JWKMarshal
	if err := json.Unmarshal(raw, &m); err != nil {
		return publicKey{}, fmt.Errorf("a key cannot be read: %w", err)
	}
	switch {
	case m.KTY == jwkset.KtyOct || m.D != "":
		return publicKey{}, errNotPublic
	case m.USE != "" && m.USE != jwkset.UseSig:
		return publicKey{}, fmt.Errorf("a key is for the use %q", m.USE)
	}
	// Ignore the key's certificate, because some identity providers write its fingerprints in a nonstandard form.
	m.X5C, m.X5T, m.X5TS256, m.X5U = nil, "", "", ""
	key, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return publicKey{}, fmt.Errorf("a key cannot be read: %w", err)
	}
	return publicKey{id: m.KID, method: m.ALG, key: key.Key()}, nil
}

// suits reports whether the key k can verify signatures by the given method.
func (k publicKey) suits(method jwt.SigningMethod) bool {
	if k.method != "" && k.method.String() != method.Alg() {
		return false
	}
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		_, rsa := method.(*jwt.SigningMethodRSA)
		_, pss := method.(*jwt.SigningMethodRSAPSS)
		return rsa || pss
	case *ecdsa.PublicKey:
		m, is := method.(*jwt.SigningMethodECDSA)
		return is && key.Curve.Params().BitSize == m.CurveBits
	case ed25519.PublicKey:
		_, is := method.(*jwt.SigningMethodEd25519)
		return is
	}
	return false
}

var (
	errKeyID     = errors.New("the token's kid has to be a text")
	errKeyMethod = errors.New("the key that the token's kid names is not for the method (alg) that the token names")
)

// key returns the keys that may verify a token's signature. If the token's kid names only stored keys for other
// methods, the error is errKeyMethod. If no stored key has the token's kid, the function key first waits for newly
// fetched keys (see renew). For a token without a kid, it does the same if no stored key suits the token's method. If
// the keys cannot be fetched in time, the error is errNoKeys.
func (k *keySet) key(ctx context.Context, token *jwt.Token) (any, error) {
	id, named := token.Header["kid"].(string)
	if !named && token.Header["kid"] != nil {
		return nil, errKeyID
	}
	found, other := k.find(token.Method, id, named)
	if len(found.Keys) == 0 && !other {
		if err := k.renew(ctx, func() bool {
			found, other = k.find(token.Method, id, named)
			return len(found.Keys) > 0 || other
		}); err != nil {
			return nil, err
		}
	}
	if len(found.Keys) == 0 && other {
		return nil, errKeyMethod
	}
	return found, nil
}

// find returns the stored keys that can verify signatures by a method. The parameter named reports whether the token
// has a kid, and the parameter id is that kid. For a token with a kid, find returns only keys with that kid; there may
// be several (RFC 7517, 4.5). The result other reports whether the kid names keys for other methods.
func (k *keySet) find(method jwt.SigningMethod, id string, named bool) (found jwt.VerificationKeySet, other bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.keys {
		switch {
		case named && key.id != id:
		case key.suits(method):
			found.Keys = append(found.Keys, key.key)
		case named:
			other = true
		}
	}
	return found, other
}

// renew waits until a fetch that began after the call of renew has succeeded. If no fetch has ended yet, renew waits
// for the first fetch instead, which has begun already. renew returns earlier if the function enough returns true;
// renew calls enough at the start and after every fetch. The error is errNoKeys if the awaited fetch fails or does not
// end within k.pace.patience, and if ctx or the context of NewVerifier ends first.
func (k *keySet) renew(ctx context.Context, enough func() bool) error {
	awaited := k.want()
	patience := time.NewTimer(k.pace.patience)
	defer patience.Stop()
	for {
		k.mu.Lock()
		done, failed, changed := k.done, k.failed, k.changed
		k.mu.Unlock()
		switch {
		case enough():
			return nil
		case done >= awaited && failed != nil:
			return errNoKeys
		case done >= awaited:
			return nil
		}
		select {
		case <-changed:
		case <-patience.C:
			return errNoKeys
		case <-ctx.Done():
			return errNoKeys
		case <-k.ended:
			return errNoKeys
		}
	}
}

// want requests a fetch, which begins as soon as it is allowed, and returns the number of that fetch, counted as in the
// field begun. While the first fetch is running, want returns the number of the first fetch and requests no other.
func (k *keySet) want() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done == 0 {
		return k.begun // the first fetch is running
	}
	if !k.wanted {
		k.wanted = true
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	return k.begun + 1
}
