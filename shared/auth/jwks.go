package auth

import (
	"context"
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
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

// pace is how often keys are fetched.
type pace struct {
	usual    time.Duration // once they are there
	retry    time.Duration // after a fetch that failed; doubled up to slowest
	slowest  time.Duration
	unknown  time.Duration // at most as often because a token names a key that is not known: anyone can make such tokens
	patience time.Duration // how long such a token waits for a fetch before it is to try again
}

const (
	fetchWithin = 5 * time.Second
	maxSet      = 1 << 20
)

// errNoKeys says that the keys could not be fetched since the token came, so that nobody knows whether it holds.
var errNoKeys = errors.New("the keys could not be fetched")

// keySet is the keys at a JWKS URL. One goroutine fetches them: until they are there, then every hour, and when a token
// names a key that is not among them, because it may be new.
type keySet struct {
	url    string
	pace   pace
	client *http.Client
	stored jwkset.Storage
	keys   keyfunc.Keyfunc
	log    *slog.Logger
	ended  <-chan struct{}
	wake   chan struct{} // somebody wants a fetch
	first  chan struct{} // closed when keys were fetched for the first time

	mu      sync.Mutex
	begun   int           // fetches that have begun
	done    int           // and ended: as many, or one less
	failed  error         // how the last one ended
	wanted  bool          // a token names an unknown key, and no fetch has begun since
	allowed time.Time     // when a fetch may begin because of that
	changed chan struct{} // closed when a fetch ends
}

func newKeySet(ctx context.Context, o Options, p pace) (*keySet, error) {
	parsed, err := url.Parse(o.JWKSURL)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return nil, errors.New("JWKS_URL has to look like https://school.example/.well-known/jwks.json")
	}
	k := &keySet{url: o.JWKSURL, pace: p, stored: jwkset.NewMemoryStorage(), log: o.Log,
		client: &http.Client{Timeout: fetchWithin, Transport: o.transport}, ended: ctx.Done(), wake: make(chan struct{}, 1), first: make(chan struct{}), changed: make(chan struct{}),
		begun: 1}
	if k.keys, err = keyfunc.New(keyfunc.Options{Ctx: ctx, Storage: k.stored}); err != nil {
		return nil, fmt.Errorf("keys of JWKS_URL: %w", err)
	}
	go k.run(ctx)
	return k, nil
}

func (k *keySet) run(ctx context.Context) {
	retry, failing, had := k.pace.retry, false, false
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
			next = time.Now().Add(retry)
			retry = min(2*retry, k.pace.slowest)
		} else {
			retry = k.pace.retry
		}
		switch {
		case err != nil && !failing:
			k.log.Warn("the keys of JWKS_URL cannot be fetched; it is tried again", "error", err)
		case err == nil && failing:
			k.log.Info("the keys of JWKS_URL are there again")
		}
		failing = err != nil
		if !k.sleep(ctx, next) {
			return
		}
	}
}

// sleep waits until the next fetch is due, which is earlier if a token names an unknown key. It reports false when ctx ends.
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

// fetch replaces the keys by those at the URL, so that a key that was taken back no longer holds. Keys that are of no
// use here are passed over, as sets hold them for others.
func (k *keySet) fetch(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return fmt.Errorf("fetch keys: %w", err)
	}
	response, err := k.client.Do(r)
	if err != nil {
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err // without the URL, which may hold a credential
		}
		return fmt.Errorf("fetch keys from %s: %w", r.URL.Host, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch keys: status %s", response.Status)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxSet)).Decode(&set); err != nil {
		return fmt.Errorf("fetch keys: read the set: %w", err)
	}
	if set.Keys == nil {
		return errors.New("fetch keys: the response is not a JSON Web Key Set")
	}
	usable := make([]jwkset.JWK, 0, len(set.Keys))
	for _, raw := range set.Keys {
		key, err := jwkset.NewJWKFromRawJSON(raw, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil {
			continue
		}
		// A shared secret in a public set would let everybody sign.
		if m := key.Marshal(); m.KTY != jwkset.KtyOct && (m.USE == "" || m.USE == jwkset.UseSig) {
			usable = append(usable, key)
		}
	}
	return k.stored.KeyReplaceAll(ctx, usable)
}

// key finds the key of a token. A token of an unknown key is refused only after a fetch that began after the token came and
// succeeded; if there is none in time the error is errNoKeys.
func (k *keySet) key(ctx context.Context, token *jwt.Token) (key any, err error) {
	find := k.keys.KeyfuncCtx(ctx)
	if key, err = find(token); !unknown(key, err) {
		return key, err
	}
	if err := k.renew(ctx, func() bool {
		key, err = find(token)
		return !unknown(key, err)
	}); err != nil {
		return nil, err
	}
	return key, err
}

// renew waits until the keys have been fetched by a fetch that begins after the call, or until those of an earlier one are
// enough.
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

func unknown(key any, err error) bool {
	all, set := key.(jwt.VerificationKeySet) // of a token that names no key
	return errors.Is(err, jwkset.ErrKeyNotFound) || set && len(all.Keys) == 0
}

// want asks for a fetch, as soon as one is allowed, and returns its number.
func (k *keySet) want() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done == 0 {
		return k.begun // the first one is under way
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
