// Package access decides who may come in, on every surface alike: which web pages (by origin), and which users (by
// token).
package access

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/auth"
)

// Verifier tells who a token names. Its errors are refusals that say why it does not hold.
type Verifier interface {
	Verify(ctx context.Context, token string) (auth.User, error)
}

// Access holds the rules.
type Access struct {
	Verifier Verifier
	// Origins that may come in beside the gateway's own host, "https://school.example".
	Origins []string
	// AnyLocal lets pages of this machine in, whatever their port: for development.
	AnyLocal bool
	Log      *slog.Logger

	refused refusedOrigins
}

// Origin reports whether the page that asks may come in. Programs that are not browsers name none.
func (a *Access) Origin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	if len(r.Header.Values("Origin")) > 1 {
		return false // browsers send one
	}
	u, err := url.Parse(origin)
	if err == nil && u.Host != "" {
		if strings.EqualFold(u.Host, r.Host) || a.AnyLocal && local(u.Hostname()) {
			return true
		}
	}
	named := func(o string) bool { return strings.EqualFold(strings.TrimSuffix(o, "/"), origin) }
	if slices.ContainsFunc(a.Origins, named) {
		return true
	}
	if a.refused.tell(origin, time.Now()) {
		a.Log.Warn("access: a page of another origin was refused; ALLOWED_ORIGINS can name it", "origin", Clip(origin),
			"path", Clip(r.URL.Path))
	}
	return false
}

// refusedOrigins are those that were logged within the last minute.
type refusedOrigins struct {
	mu    sync.Mutex
	since time.Time
	told  map[string]bool
}

// tell reports whether to log an origin: each once a minute, and at most 16 of them.
func (o *refusedOrigins) tell(origin string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Sub(o.since) >= time.Minute {
		o.since, o.told = now, map[string]bool{}
	}
	origin = Clip(origin)
	if o.told[origin] || len(o.told) >= 16 {
		return false
	}
	o.told[origin] = true
	return true
}

// maxClip is how much of a text that anybody may send is logged or sent back, in bytes.
const maxClip = 256

// Clip shortens a text that anybody may send.
func Clip(text string) string {
	if len(text) <= maxClip {
		return text
	}
	return strings.ToValidUTF8(text[:maxClip], "") + "…"
}

func local(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "127.0.0.1" || host == "::1"
}

// Token is the one in the Authorization header; empty when there is none. A header of another scheme is not for us: a
// proxy may have asked for it. The error is a refusal.
func Token(r *http.Request) (string, error) {
	header, err := Single(r, "Authorization")
	if err != nil {
		return "", err
	}
	kind, token := strings.TrimSpace(header), ""
	if end := strings.IndexAny(kind, " \t"); end >= 0 {
		kind, token = kind[:end], strings.TrimSpace(kind[end:])
	}
	if !strings.EqualFold(kind, "Bearer") {
		return "", nil
	}
	if token == "" {
		return "", refusal.New(refusal.Unauthorized, "the Authorization header has no token after Bearer")
	}
	return token, nil
}

// Single is the value of a header that may be there once; empty when it is not there. The error is a refusal.
func Single(r *http.Request, name string) (string, error) {
	values := r.Header.Values(name)
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", refusal.New(refusal.Malformed, "the header %s is there %d times", name, len(values))
}

// User tells who a token names. The error is a refusal, unless nobody can say now.
func (a *Access) User(ctx context.Context, token string) (auth.User, error) {
	return a.Verifier.Verify(ctx, token)
}

// Refusal is what a client is told of an error: the refusal in it, or that it is ours.
func Refusal(err error) *refusal.Error {
	if r, ok := refusal.Of(err); ok {
		return r
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return refusal.New(refusal.Unavailable, "not answered in time, ask again")
	}
	return refusal.New(refusal.Internal, "something went wrong here")
}
