// Package rpc is how services of the mesh call each other: Connect on an inner listener that asks for the
// installation's service credential. The user that a call is for, and the position of the log that it has to reflect,
// travel in headers.
package rpc

import (
	"context"
	"math"
	"net/http"
	"strconv"
)

// Credential is what services prove to each other that they are of one installation.
type Credential string

// String does not tell it.
func (c Credential) String() string { return "(credential)" }

const (
	headerActor    = "Edumatrix-Actor"
	headerPosition = "Edumatrix-Position"
	headerCode     = "Edumatrix-Code"
)

type actorKey struct{}
type positionKey struct{}

// WithActor has calls made for a user.
func WithActor(ctx context.Context, user string) context.Context {
	return context.WithValue(ctx, actorKey{}, user)
}

// Actor is the user for whom a call is made; empty: for nobody.
func Actor(ctx context.Context) string {
	user, _ := ctx.Value(actorKey{}).(string)
	return user
}

// Now is a position that has a query see everything that is committed when its owner is asked.
const Now int64 = math.MaxInt64

// now is how Now is written in a header.
const now = "now"

// WithPosition has a query see the owner's log at least up to a position, so that one reads one's own writes.
func WithPosition(ctx context.Context, position int64) context.Context {
	return context.WithValue(ctx, positionKey{}, position)
}

// Position is what of the log a query has to see.
func Position(ctx context.Context) int64 {
	position, _ := ctx.Value(positionKey{}).(int64)
	return position
}

func carry(ctx context.Context, h http.Header) {
	if user := Actor(ctx); user != "" {
		h.Set(headerActor, user)
	}
	switch position := Position(ctx); {
	case position == Now:
		h.Set(headerPosition, now)
	case position > 0:
		h.Set(headerPosition, strconv.FormatInt(position, 10))
	}
}

func carried(ctx context.Context, h http.Header) context.Context {
	if user := h.Get(headerActor); user != "" {
		ctx = WithActor(ctx, user)
	}
	if text := h.Get(headerPosition); text == now {
		ctx = WithPosition(ctx, Now)
	} else if position, err := strconv.ParseInt(text, 10, 64); err == nil {
		ctx = WithPosition(ctx, position)
	}
	return ctx
}
