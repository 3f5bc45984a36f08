// Package access decides which web pages (by origin) and which users (by token) may connect. It also refuses names that
// clients may not use. WebSocket and HTTP both use this package.
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

// Verifier returns the user of a token. Its errors are refusals. The code is refusal.Unavailable if the token cannot be
// checked at the moment.
type Verifier interface {
	Verify(ctx context.Context, token string) (auth.User, error)
}

// Access decides which origins and which users may connect.
type Access struct {
	Verifier Verifier
	// Origins are the origins that may connect in addition to the gateway's own host, such as "https://school.example".
	Origins []string
	// AnyLocal allows pages from localhost, on any port, for development (see the function local).
	AnyLocal bool
	Log      *slog.Logger

	refused refusedOrigins
}

// Origin reports whether the request's Origin may connect. Requests without an Origin, such as those of programs other
// than browsers, may connect.
func (a *Access) Origin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	if len(r.Header.Values("Origin")) > 1 {
		return false // a browser sends one Origin
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
	if a.refused.log(origin, time.Now()) {
		a.Log.Warn("access: a page of another origin was refused; add the origin to ALLOWED_ORIGINS to allow it",
			"origin", Clip(origin), "path", Clip(r.URL.Path))
	}
	return false
}

// refusedOrigins contains the origins that were logged in the current minute. The field since contains the time at
// which this minute began.
type refusedOrigins struct {
	mu     sync.Mutex
	since  time.Time
	logged map[string]bool
}

// log reports whether to log an origin. In each minute (see refusedOrigins), it returns true at most once for each
// origin, and for at most 16 origins.
func (o *refusedOrigins) log(origin string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Sub(o.since) >= time.Minute {
		o.since, o.logged = now, map[string]bool{}
	}
	origin = Clip(origin)
	if o.logged[origin] || len(o.logged) >= 16 {
		return false
	}
	o.logged[origin] = true
	return true
}

// maxClip is the maximum length, in bytes, of the part of a client's text that is logged or sent back.
const maxClip = 256

// Clip shortens a text from a client to about maxClip bytes.
func Clip(text string) string {
	if len(text) <= maxClip {
		return text
	}
	return strings.ToValidUTF8(text[:maxClip], "") + "…"
}

func local(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "127.0.0.1" || host == "::1"
}

// Token returns the bearer token in the Authorization header, or "" if there is none. A header of another scheme is
// ignored, because it may be meant for a proxy. The error is a refusal.
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

// Single returns the value of a header that a request may contain at most once, or "" if the request does not contain
// the header. The error is a refusal.
func Single(r *http.Request, name string) (string, error) {
	values := r.Header.Values(name)
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", refusal.New(refusal.Malformed, "the request has the header %s %d times", name, len(values))
}

// User returns the user of a token. The error is that of the Verifier.
func (a *Access) User(ctx context.Context, token string) (auth.User, error) {
	return a.Verifier.Verify(ctx, token)
}

// Refusal returns the refusal in an error. If the error contains none, Refusal returns one with the code "unavailable"
// if the error is that of an ended context, and with the code "internal" otherwise.
func Refusal(err error) *refusal.Error {
	if r, ok := refusal.Of(err); ok {
		return r
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return refusal.New(refusal.Unavailable, "there was no answer in time; try again")
	}
	return refusal.New(refusal.Internal, "the gateway failed")
}
