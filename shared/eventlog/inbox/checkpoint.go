package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
)

// SourcePartition is one partition of another owner's topic.
type SourcePartition struct {
	Source    string
	Topic     string
	Partition int32
}

// Checkpoint is the progress of consuming one partition of another owner's topic.
type Checkpoint struct {
	// Position is the position in the source's log up to which every event of the partition is applied or belongs to a
	// parked stream.
	Position catalog.Position
	// Index is the number of effects of the next event above Position that are applied already.
	Index int
	// Incarnation is the incarnation of the source's log when the checkpoint was saved.
	Incarnation string
	// Epoch is the topic's epoch, and Partitions is the number of its partitions in that epoch.
	Epoch      int32
	Partitions int32
}

// Advance moves a checkpoint, in the same transaction as the effects of the records between From and To.
type Advance struct {
	Of       SourcePartition
	From, To Checkpoint
	// Revision is the number of changes of the topic's parked streams when the write was decided, as Inbox.ParkedOf
	// returned it. If the streams have changed since, the write fails with a ParkedChangedError.
	Revision int64
	// Park lists streams to park. Their events from Parked.Position on are not applied, except the first Parked.Index
	// effects of the event at that position.
	Park []Parked
	// Passed counts, for streams that are parked already, the events between From and To.
	Passed []Passed
}

// Passed counts events of a parked stream that were not applied.
type Passed struct {
	Stream string
	Events int64
}

// Consumer records how the consumption of another owner's topic began.
type Consumer struct {
	Source string
	Topic  string
	// Start is the position above which events are consumed.
	Start catalog.Position
	// Since is the time before which events are ignored. Zero: no event is ignored.
	Since time.Time
	// LegacyEnd is the position up to which an earlier release may have applied events. That release stored a version
	// per stream instead of checkpoints (see Inbox.LegacyVersions). 0: there was no such release.
	LegacyEnd catalog.Position
	// Epoch is the topic's epoch when its consumption began, and Partitions is the number of its partitions at that
	// time.
	Epoch      int32
	Partitions int32
}

// Fence marks a change of a topic's partition count: events above Position are in the partitions to which the new
// count, Partitions, assigns their streams.
type Fence struct {
	From, To   int32 // numbers of the epochs before and after the change
	Position   catalog.Position
	Partitions int32
}

// StaleCheckpointError reports that a checkpoint has moved since the write was decided: another instance consumes the
// partition, or an earlier attempt of the same write was committed. It also reports that a checkpoint does not exist.
type StaleCheckpointError struct {
	Of   SourcePartition
	Have Checkpoint
}

func (e *StaleCheckpointError) Error() string {
	return fmt.Sprintf("partition %d of %s of %s is consumed up to %d already", e.Of.Partition, e.Of.Topic, e.Of.Source,
		e.Have.Position)
}

const (
	sqlAdvances = `SELECT k.source, k.topic, k.partition, c.position, c.index, c.incarnation, c.epoch, c.partitions, n.revision
FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (source, topic, partition),
LATERAL (SELECT * FROM owner.checkpoints c
  WHERE c.source = k.source AND c.topic = k.topic AND c.partition = k.partition LIMIT 1) c,
LATERAL (SELECT revision FROM owner.consumers n WHERE n.source = k.source AND n.topic = k.topic LIMIT 1) n`
	sqlAdvance = `UPDATE owner.checkpoints SET position = $4, index = $5, incarnation = $6, epoch = $7, partitions = $8
WHERE source = $1 AND topic = $2 AND partition = $3`
	sqlRevise = `UPDATE owner.consumers SET revision = $3 WHERE source = $1 AND topic = $2`

	sqlConsumer = `SELECT source, topic, start, since, readings_end, epoch, partitions FROM owner.consumers
WHERE source = $1 AND topic = $2`
	sqlAddConsumer = `INSERT INTO owner.consumers (source, topic, start, since, readings_end, epoch, partitions)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`
	sqlCheckpoints = `SELECT partition, position, index, incarnation, epoch, partitions FROM owner.checkpoints
WHERE source = $1 AND topic = $2`
	sqlAddCheckpoint = `INSERT INTO owner.checkpoints (source, topic, partition, position, index, incarnation, epoch,
  partitions) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`
	sqlFences = `SELECT from_epoch, to_epoch, fence, partitions FROM owner.fences
WHERE source = $1 AND topic = $2 ORDER BY from_epoch`
	sqlAddFence = `INSERT INTO owner.fences (source, topic, from_epoch, to_epoch, fence, partitions)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`

	// sqlLegacyVersions and sqlLegacyPosition read rows that an earlier release wrote. The row of a stream contains the
	// last version that was applied. The row "topic <name>" contains the position up to which the whole topic was
	// applied.
	sqlLegacyVersions = `SELECT stream, version FROM owner.readings WHERE source = $1 AND stream = ANY ($2::text[])`
	sqlLegacyPosition = `SELECT max(version) FILTER (WHERE stream = 'topic ' || $2),
  bool_or(stream LIKE 'topic %') FROM owner.readings WHERE source = $1`
)

// Consumer returns how the consumption of a topic began, and whether it has begun.
func (i *Inbox) Consumer(ctx context.Context, source, topic string) (c Consumer, found bool, err error) {
	var since *time.Time
	err = i.o.Pool.QueryRow(ctx, i.o.SQL(sqlConsumer), source, topic).Scan(&c.Source, &c.Topic, &c.Start, &since,
		&c.LegacyEnd, &c.Epoch, &c.Partitions)
	if errors.Is(err, pgx.ErrNoRows) {
		return Consumer{}, false, nil
	}
	if err != nil {
		return Consumer{}, false, fmt.Errorf("read how the consumption of %s of %s began: %w", topic, source,
			pgerror.Unavailable(err))
	}
	if since != nil {
		c.Since = since.UTC()
	}
	return c, true, nil
}

// BeginConsumer saves how the consumption of a topic begins, unless it has begun already. It returns the stored
// Consumer.
func (i *Inbox) BeginConsumer(ctx context.Context, c Consumer) (Consumer, error) {
	var since *time.Time
	if !c.Since.IsZero() {
		since = &c.Since
	}
	if _, err := i.o.Pool.Exec(ctx, i.o.SQL(sqlAddConsumer), c.Source, c.Topic, c.Start, since, c.LegacyEnd, c.Epoch,
		c.Partitions); err != nil {
		return Consumer{}, fmt.Errorf("save how the consumption of %s of %s begins: %w", c.Topic, c.Source,
			pgerror.Unavailable(err))
	}
	saved, _, err := i.Consumer(ctx, c.Source, c.Topic)
	return saved, err
}

// Checkpoints returns the checkpoints of a topic, by partition.
func (i *Inbox) Checkpoints(ctx context.Context, source, topic string) (map[int32]Checkpoint, error) {
	all := map[int32]Checkpoint{}
	found, err := i.o.Pool.Query(ctx, i.o.SQL(sqlCheckpoints), source, topic)
	if err == nil {
		var n int32
		var c Checkpoint
		_, err = pgx.ForEachRow(found, []any{&n, &c.Position, &c.Index, &c.Incarnation, &c.Epoch, &c.Partitions}, func() error {
			all[n] = c
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read how far %s of %s is consumed: %w", topic, source, pgerror.Unavailable(err))
	}
	return all, nil
}

// BeginPartition saves the first checkpoint of a partition, unless it has one already. It returns the stored
// checkpoint.
func (i *Inbox) BeginPartition(ctx context.Context, of SourcePartition, c Checkpoint) (Checkpoint, error) {
	if _, err := i.o.Pool.Exec(ctx, i.o.SQL(sqlAddCheckpoint), of.Source, of.Topic, of.Partition, c.Position, c.Index,
		c.Incarnation, c.Epoch, c.Partitions); err != nil {
		return Checkpoint{}, fmt.Errorf("save where the consumption of %s of %s begins: %w", of.Topic, of.Source,
			pgerror.Unavailable(err))
	}
	saved, err := i.Checkpoints(ctx, of.Source, of.Topic)
	return saved[of.Partition], err
}

// Fences returns the changes of a topic's partition count, in order.
func (i *Inbox) Fences(ctx context.Context, source, topic string) ([]Fence, error) {
	found, err := i.o.Pool.Query(ctx, i.o.SQL(sqlFences), source, topic)
	if err == nil {
		var all []Fence
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[Fence]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read how the partition count of %s of %s changed: %w", topic, source, pgerror.Unavailable(err))
}

// AddFence saves a change of the partition count, unless another instance has saved it already.
func (i *Inbox) AddFence(ctx context.Context, source, topic string, f Fence) error {
	_, err := i.o.Pool.Exec(ctx, i.o.SQL(sqlAddFence), source, topic, f.From, f.To, f.Position, f.Partitions)
	if err != nil {
		return fmt.Errorf("save how the partition count of %s of %s changed: %w", topic, source, pgerror.Unavailable(err))
	}
	return nil
}

// LegacyVersions returns, for each stream, the newest version that an earlier release applied. It omits streams of
// which that release applied nothing.
func (i *Inbox) LegacyVersions(ctx context.Context, source string, streams []string) (map[string]catalog.Version, error) {
	all := map[string]catalog.Version{}
	found, err := i.o.Pool.Query(ctx, i.o.SQL(sqlLegacyVersions), source, streams)
	if err == nil {
		var stream string
		var version catalog.Version
		_, err = pgx.ForEachRow(found, []any{&stream, &version}, func() error {
			all[stream] = version
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read what an earlier release applied of %s: %w", source, pgerror.Unavailable(err))
	}
	return all, nil
}

// LegacyPosition returns the position up to which an earlier release had applied every event of a topic, as that
// release stored it for the topic. The result found is also true, with position 0, if that release had applied events
// of the source, but had not stored such a position for any topic of the source.
func (i *Inbox) LegacyPosition(ctx context.Context, source, topic string) (position catalog.Position, found bool, err error) {
	var stored *catalog.Position
	var began *bool
	if err := i.o.Pool.QueryRow(ctx, i.o.SQL(sqlLegacyPosition), source, topic).Scan(&stored, &began); err != nil {
		return 0, false, fmt.Errorf("read what an earlier release applied of %s: %w", source, pgerror.Unavailable(err))
	}
	switch {
	case stored != nil:
		return *stored, true, nil
	case began != nil && !*began:
		return 0, true, nil // the earlier release had not yet stored a position for any topic of this source
	}
	return 0, false, nil
}
