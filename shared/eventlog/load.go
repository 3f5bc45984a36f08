package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Selection selects the events of a stream that a decision needs: the events about the stream itself (without a
// subject) above version After, and all events about the Subjects.
type Selection struct {
	Stream   string
	After    catalog.Version
	Subjects []string
	// If Newest is set, the selection contains the newest event of the stream instead of all events about the stream
	// itself, and the newest event about each of the Subjects instead of all events about them. The newest event of the
	// stream is left out if its version is not above After. Newest is for streams in which each event contains the whole
	// value.
	Newest bool
}

// Loaded is a stream as it is loaded for a decision: the selected events, ascending by version, without personal
// fields.
type Loaded struct {
	Events  []envelope.Event
	Version catalog.Version // version of the stream; 0: the stream does not exist
	// At is the log's clock. It is set only for a stream that is loaded under the log's lock.
	At time.Time
}

// Load reads the events of a stream that a decision needs.
func (l *Log) Load(ctx context.Context, s Selection) (Loaded, error) {
	all, err := l.LoadAll(ctx, []Selection{s})
	if err != nil {
		return Loaded{}, fmt.Errorf("load %s: %w", s.Stream, err)
	}
	return all[0], nil
}

// LoadAll reads several streams in one round trip, each as of a moment of its own. The results have the order of the
// selections. An error that does not wrap retry.ErrUnavailable may concern any of the streams.
func (l *Log) LoadAll(ctx context.Context, selections []Selection) ([]Loaded, error) {
	all := make([]Loaded, len(selections))
	if len(all) == 0 {
		return all, nil
	}
	b := &pgx.Batch{}
	for i, s := range selections {
		l.queueLoad(b, s, &all[i])
	}
	if err := l.o.Pool.SendBatch(ctx, b).Close(); err != nil {
		return nil, Unavailable(err)
	}
	return all, nil
}

func (l *Log) queueLoad(b *pgx.Batch, s Selection, into *Loaded) {
	statement := l.sql.load
	if s.Newest {
		statement = l.SQL(sqlLoadNewest)
	}
	b.Queue(statement, s.Stream, s.After, s.Subjects).Query(func(found pgx.Rows) error {
		*into = Loaded{}
		for found.Next() {
			var wanted bool
			e, err := l.scan(found, &wanted)
			if err != nil {
				return err
			}
			into.Version = max(into.Version, e.Version)
			if wanted {
				e.Body = e.plain
				into.Events = append(into.Events, e.Event)
			}
		}
		return found.Err()
	})
}
