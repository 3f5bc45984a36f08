// Package rpc is the transport of calls between services of the mesh: Connect on an inner listener that requires the
// installation's service credential. Headers of a request carry the user for whom the call is made, the position of the
// log for which a query has to wait, and the trace.
package rpc

import (
	"context"
	"math"
	"net/http"
	"strconv"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Credential is the secret with which the services of one installation authenticate each other.
type Credential string

// String does not reveal the credential.
func (c Credential) String() string { return "(credential)" }

const (
	headerActor    = "Edumatrix-Actor"
	headerPosition = "Edumatrix-Position"
	headerCode     = "Edumatrix-Code"
	headerField    = "Edumatrix-Field"
)

type actorKey struct{}
type positionKey struct{}

// WithActor returns a context for calls on behalf of a user.
func WithActor(ctx context.Context, user string) context.Context {
	return context.WithValue(ctx, actorKey{}, user)
}

// Actor returns the user for whom a call is made; empty if there is none.
func Actor(ctx context.Context) string {
	user, _ := ctx.Value(actorKey{}).(string)
	return user
}

// Now stands for the position of the log at the time at which a query arrives: with WithPosition(ctx, Now), the answer
// must contain everything that is committed by then.
const Now catalog.Position = math.MaxInt64

// now is the value of headerPosition for Now.
const now = "now"

// WithPosition returns a context for queries whose answers must contain the owner's log at least up to a position, so
// that users read their own writes.
func WithPosition(ctx context.Context, position catalog.Position) context.Context {
	return context.WithValue(ctx, positionKey{}, position)
}

// Position returns the position up to which the answer of a query must contain the log; 0 if the query need not wait.
func Position(ctx context.Context) catalog.Position {
	position, _ := ctx.Value(positionKey{}).(catalog.Position)
	return position
}

func setHeaders(ctx context.Context, h http.Header) {
	if user := Actor(ctx); user != "" {
		h.Set(headerActor, user)
	}
	switch position := Position(ctx); {
	case position == Now:
		h.Set(headerPosition, now)
	case position > 0:
		h.Set(headerPosition, strconv.FormatInt(int64(position), 10))
	}
}

func readHeaders(ctx context.Context, h http.Header) context.Context {
	if user := h.Get(headerActor); user != "" {
		ctx = WithActor(ctx, user)
	}
	if text := h.Get(headerPosition); text == now {
		ctx = WithPosition(ctx, Now)
	} else if position, err := strconv.ParseInt(text, 10, 64); err == nil {
		ctx = WithPosition(ctx, catalog.Position(position))
	}
	return ctx
}
