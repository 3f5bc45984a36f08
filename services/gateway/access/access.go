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
}

// Origin says whether the page that asks may. Programs that are no browsers name none.
func (a *Access) Origin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
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
	a.Log.Warn("access: a page of another origin was refused; ALLOWED_ORIGINS can name it", "origin", origin,
		"path", r.URL.Path)
	return false
}

func local(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "127.0.0.1" || host == "::1"
}

// Token is that of the Authorization header; empty when there is none.
func Token(r *http.Request) string {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
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
