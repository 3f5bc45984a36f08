package eventlog

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Projection is rows that follow from the log and from nothing else.
type Projection interface {
	// Name is under which its position is kept; it never changes.
	Name() string
	// Apply writes what follows from events, ascending by position, each given once. The transaction's search_path is the
	// owner's schema.
	Apply(ctx context.Context, tx pgx.Tx, events []envelope.Event) error
}

// Follow applies the log to a projection until ctx ends: in batches, from where it was left, one instance at a time, at
// once after a commit. What fails is tried again with back-off.
func (l *Log) Follow(ctx context.Context, p Projection) error { panic("being written") }

// WaitFor returns when a projection has applied the log up to a position, in whatever instance.
func (l *Log) WaitFor(ctx context.Context, projection string, position int64) error { panic("being written") }
