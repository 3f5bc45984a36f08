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
	usual   time.Duration // once they are there
	retry   time.Duration // after a fetch that failed; doubled up to slowest
	slowest time.Duration
	unknown time.Duration // at most as often because a token names a key that is not known: anyone can make such tokens
}

const (
	fetchWithin = 5 * time.Second
	largestSet  = 1 << 20
)

var errNoKeys = errors.New("no keys have been fetched yet")

// keySet is the keys at a JWKS URL. One goroutine fetches them: until they are there, then by the hour, and at once
// when a token names a key that is not among them, because it may be new.
type keySet struct {
	url    string
	pace   pace
	client *http.Client
	stored jwkset.Storage
	keys   keyfunc.Keyfunc
	ended  <-chan struct{}
	wake   chan struct{}

	mu      sync.Mutex
	have    bool          // some fetch succeeded
	last    time.Time     // when the last one ended
	fetched chan struct{} // closed when the one that is under way, or the next, ends
	running bool
}

func newKeySet(ctx context.Context, address string, p pace) (*keySet, error) {
	parsed, err := url.Parse(address)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return nil, errors.New("JWKS_URL has to look like https://school.example/.well-known/jwks.json")
	}
	k := &keySet{url: address, pace: p, client: &http.Client{Timeout: fetchWithin}, stored: jwkset.NewMemoryStorage(),
		ended: ctx.Done(), wake: make(chan struct{}, 1), fetched: make(chan struct{}), running: true}
	if k.keys, err = keyfunc.New(keyfunc.Options{Ctx: ctx, Storage: k.stored}); err != nil {
		return nil, fmt.Errorf("keys of JWKS_URL: %w", err)
	}
	go k.run(ctx)
	return k, nil
}

func (k *keySet) run(ctx context.Context) {
	retry, failing := k.pace.retry, false
	for {
		err := k.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		k.mu.Lock()
		k.have, k.last, k.running = k.have || err == nil, time.Now(), false
		close(k.fetched)
		k.fetched = make(chan struct{})
		k.mu.Unlock()

		wait := k.pace.usual
		if err != nil {
			wait, retry = retry, min(2*retry, k.pace.slowest)
		} else {
			retry = k.pace.retry
		}
		switch {
		case err != nil && !failing:
			slog.Warn("the keys of JWKS_URL cannot be fetched; it is tried again", "error", err)
		case err == nil && failing:
			slog.Info("the keys of JWKS_URL are there again")
		}
		failing = err != nil

		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-k.wake:
		}
		timer.Stop()
		k.mu.Lock()
		k.running = true
		k.mu.Unlock()
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
		return fmt.Errorf("fetch keys: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch keys: status %s", response.Status)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, largestSet)).Decode(&set); err != nil {
		return fmt.Errorf("fetch keys: read the set: %w", err)
	}
	if set.Keys == nil {
		return errors.New("fetch keys: what is there is no JSON Web Key Set")
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

// key finds the key of a token.
func (k *keySet) key(ctx context.Context) jwt.Keyfunc {
	find := k.keys.KeyfuncCtx(ctx)
	return func(token *jwt.Token) (any, error) {
		key, err := find(token)
		if unknown(key, err) && k.again(ctx) {
			key, err = find(token)
		}
		if unknown(key, err) && !k.known() {
			return nil, errNoKeys
		}
		return key, err
	}
}

func unknown(key any, err error) bool {
	all, set := key.(jwt.VerificationKeySet) // of a token that names no key
	return errors.Is(err, jwkset.ErrKeyNotFound) || set && len(all.Keys) == 0
}

func (k *keySet) known() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.have
}

// again waits until the keys have been fetched once more; false when that was done a moment ago or ctx ends.
func (k *keySet) again(ctx context.Context) bool {
	k.mu.Lock()
	fetched, running, last := k.fetched, k.running, k.last
	k.mu.Unlock()
	if !running {
		if time.Since(last) < k.pace.unknown {
			return false
		}
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	select {
	case <-fetched:
		return true
	case <-ctx.Done():
		return false
	case <-k.ended:
		return false
	}
}
