// Package inbox stores the progress of consuming other owners' topics, in the schema of the consumer's own log: where
// the consumption of a topic began, the checkpoint of each of its partitions, the fences between partition counts, the
// streams that are parked, and the dead letters that an operator has dropped.
//
// A log commits changes of checkpoints and parked streams together with the events that follow from the consumed
// events. It checks the changes with an Admission, under the log's lock. So if two instances consume the same
// partition, only one of them continues. All other reads and writes go through an Inbox, which eventlog.Log.Inbox
// returns.
package inbox

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Options configure an Inbox. All fields are required.
type Options struct {
	Owner string // owner of the log
	Pool  *pgxpool.Pool
	// SQL returns a statement with the log's schema in place of "owner.".
	SQL func(statement string) string
	Now func() time.Time
}

// Inbox is the inbox of one owner. It is safe for concurrent use.
type Inbox struct{ o Options }

// New returns the inbox of an owner. The migrations of the owner's log create the tables. Programs get the inbox from
// eventlog.Log.Inbox.
func New(o Options) *Inbox { return &Inbox{o} }
