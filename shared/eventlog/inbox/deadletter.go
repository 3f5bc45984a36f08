package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
)

// DeadLetter identifies a dead letter of this owner by its place on the topic and by the id of its message. The place
// alone is not enough, because the offsets of a topic that is deleted and created again start over.
type DeadLetter struct {
	Partition int32
	Offset    int64
	ID        string
}

// droppedKept is how long dropped dead letters are stored. It is longer than the retention of the topics of dead
// letters (14 days).
const droppedKept = 60 * 24 * time.Hour

const (
	sqlDropDeadLetter = `INSERT INTO owner.dropped_letters (partition, "offset", id, at) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING`
	sqlForgetDropped = `DELETE FROM owner.dropped_letters WHERE at < $1`
	sqlDropped       = `SELECT partition, "offset", id FROM owner.dropped_letters ORDER BY partition, "offset"`
)

// DropDeadLetter records that a dead letter was dropped, so that it is no longer listed.
func (i *Inbox) DropDeadLetter(ctx context.Context, d DeadLetter) error {
	now := i.o.Now().UTC()
	b := &pgx.Batch{}
	b.Queue(i.o.SQL(sqlForgetDropped), now.Add(-droppedKept))
	b.Queue(i.o.SQL(sqlDropDeadLetter), d.Partition, d.Offset, storable(d.ID), now)
	if err := i.o.Pool.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("drop the dead letter %d/%d: %w", d.Partition, d.Offset, pgerror.Unavailable(err))
	}
	return nil
}

// DroppedDeadLetters returns the dead letters that were dropped.
func (i *Inbox) DroppedDeadLetters(ctx context.Context) ([]DeadLetter, error) {
	found, err := i.o.Pool.Query(ctx, i.o.SQL(sqlDropped))
	if err == nil {
		var all []DeadLetter
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[DeadLetter]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read the dropped dead letters of %s: %w", i.o.Owner, pgerror.Unavailable(err))
}
