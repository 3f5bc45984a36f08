package eventlog

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Point is a position in one incarnation of a log.
type Point struct {
	Position catalog.Position
	// Incarnation identifies a history of the log. Another incarnation begins when the database has lost commits that
	// clients or consumers had seen already. A position that was read under another incarnation may belong to an event
	// that no longer exists.
	Incarnation string
}

// incarnation is one history of the log.
type incarnation struct {
	number int32
	id     string
	floor  catalog.Position // positions of this incarnation are above the floor
}

// knownHead is a head of the log that this instance has read.
type knownHead struct {
	incarnation
	position catalog.Position
}

// lost reports whether the head (at, position), which was read after k, shows that the database has lost commits.
func (k knownHead) lost(at incarnation, position catalog.Position) bool {
	return at.number < k.number || at == k.incarnation && position < k.position
}

// history is the newest head of the log that this instance has seen.
type history struct {
	mu sync.Mutex
	knownHead
}

// note records a head that was read, unless a newer one is known.
func (h *history) note(at incarnation, position catalog.Position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case at == h.incarnation:
		h.position = max(h.position, position)
	case at.number >= h.number:
		h.knownHead = knownHead{at, position}
	}
}

// replace records the head of an incarnation that has just begun.
func (h *history) replace(at incarnation, position catalog.Position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.knownHead = knownHead{at, position}
}

func (h *history) now() knownHead {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.knownHead
}

// incarnationMargin is the distance between the highest known position (see sqlReincarnate) and the floor of a new
// incarnation. It is chosen to exceed the number of events that may have been committed without being seen.
const incarnationMargin = 1_000_000

// Incarnation returns the newest incarnation of the log that this instance has seen. Keep positions, and what was
// derived from them, together with the incarnation under which they were read.
func (l *Log) Incarnation() string { return l.history.now().id }

// Newest reads the head of the log: the position of its newest event. In an incarnation without events, the head is the
// incarnation's floor, which is the position above which its events will be.
func (l *Log) Newest(ctx context.Context) (Point, error) {
	at, position, err := l.readHead(ctx, l.o.Pool)
	if err != nil {
		return Point{}, fmt.Errorf("read the head of the log of %s: %w", l.o.Owner, Unavailable(err))
	}
	return Point{position, at.id}, nil
}

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func (l *Log) readHead(ctx context.Context, from rowQuerier) (at incarnation, position catalog.Position, err error) {
	if err := from.QueryRow(ctx, l.sql.head).Scan(&position, &at.number, &at.id, &at.floor); err != nil {
		return at, 0, err
	}
	l.history.note(at, position)
	l.head.Reach(position)
	return at, position, nil
}

// Reincarnate begins a new incarnation of the log. Its positions are above the parameter seen, which is the highest
// position that a reader may have seen, or 0 if that is unknown. If the log could not detect lost commits itself, call
// Reincarnate after the database was restored from a backup or failed over to a replica that lacked commits. The
// services may run meanwhile.
func (l *Log) Reincarnate(ctx context.Context, seen catalog.Position) (Point, error) {
	conn, err := pgx.ConnectConfig(ctx, l.o.Pool.Config().ConnConfig)
	if err != nil {
		return Point{}, fmt.Errorf("begin a new incarnation of the log of %s: %w", l.o.Owner, Unavailable(err))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	at, _, err := l.readHead(ctx, conn)
	if err != nil {
		return Point{}, fmt.Errorf("begin a new incarnation of the log of %s: %w", l.o.Owner, Unavailable(err))
	}
	return l.reincarnate(ctx, conn, at.number, seen, "an operator requested it")
}

// reincarnate begins a new incarnation under the log's lock. Its positions are above the parameter seen. The parameter
// number is the number of the current incarnation, as the caller has read it. If another instance has begun a new
// incarnation since then, reincarnate begins none.
func (l *Log) reincarnate(ctx context.Context, conn *pgx.Conn, number int32, seen catalog.Position, why string) (Point, error) {
	var at incarnation
	var head catalog.Position
	var begun bool
	err := l.underLock(ctx, conn, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, l.sql.reincarnate, number, seen, int64(incarnationMargin))
		if err != nil {
			return err
		}
		if begun = done.RowsAffected() == 1; begun {
			if _, err := tx.Exec(ctx, sqlNotify, l.channel(), newIncarnation); err != nil {
				return err
			}
		}
		at, head, err = l.readHead(ctx, tx)
		return err
	})
	if err != nil {
		return Point{}, fmt.Errorf("begin a new incarnation of the log of %s: %w", l.o.Owner, Unavailable(err))
	}
	l.history.replace(at, head)
	l.applied.Forget()
	if begun {
		l.o.Log.ErrorContext(ctx, "the database has lost commits that were already published: a new incarnation of the log "+
			"begins; clients and consumers keep what they saw of the lost events, so compare them with the log (see "+
			"docs/operations.md, Restoring a database)", "why", why, "seen", seen, "incarnation", at.id, "positions above", head)
	}
	return Point{head, at.id}, nil
}

// RecogniseLoss compares the log with the parameter published: the newest events and position records (see
// envelope.Event.IsPosition) that were published. It uses a database connection of the caller. If a published position
// is above the log's head, or the log does not contain a published event of the current incarnation, the database has
// lost commits. RecogniseLoss then begins a new incarnation.
func (l *Log) RecogniseLoss(ctx context.Context, conn *pgx.Conn, published []envelope.Event) error {
	at, head, err := l.readHead(ctx, conn)
	if err != nil {
		return err
	}
	var seen catalog.Position
	var why string
	for _, e := range published {
		seen = max(seen, e.Position)
		if e.Position > head {
			why = fmt.Sprintf("a topic has position %d, and the log ends at %d", e.Position, head)
		} else if !e.IsPosition() && e.Incarnation == at.id {
			var same bool
			if err := conn.QueryRow(ctx, l.sql.same, e.Position, e.ID, e.Cause).Scan(&same); err != nil {
				return err
			}
			if !same {
				why = fmt.Sprintf("a topic and the log have different events at position %d", e.Position)
			}
		}
	}
	if why == "" {
		return nil
	}
	_, err = l.reincarnate(ctx, conn, at.number, seen, why)
	return err
}
