package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Selection says which events of a stream deciding needs: those about the stream itself (without subject) above version
// After, and all about the subjects.
type Selection struct {
	Stream   string
	After    int64
	Subjects []string
	// Newest asks for the newest event alone, and those about the subjects: where each event contains the whole value of
	// its stream.
	Newest bool
}

// Loaded is a stream as decisions see it: ascending by version, the bodies without their personal fields.
type Loaded struct {
	Events  []envelope.Event
	Version int64 // of the stream; 0: it does not exist
	// At is the log's clock. Only what is loaded under the log's lock has it.
	At time.Time
}

// Load reads from a stream what deciding needs.
func (l *Log) Load(ctx context.Context, s Selection) (Loaded, error) {
	all, err := l.LoadAll(ctx, []Selection{s})
	if err != nil {
		return Loaded{}, fmt.Errorf("load %s: %w", s.Stream, err)
	}
	return all[0], nil
}

// LoadAll reads from several streams in one round trip, each as of a moment of its own. The answers have the order of the
// selections. An error that is not about the database may be about any of them.
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
		return nil, Away(err)
	}
	return all, nil
}

func (l *Log) queueLoad(b *pgx.Batch, s Selection, into *Loaded) {
	statement := l.sql.load
	if s.Newest {
		statement = l.in(sqlLoadNewest)
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
