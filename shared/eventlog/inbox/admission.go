package inbox

import (
	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
)

type topicKey struct{ source, topic string }

type parkedKey struct{ source, topic, stream string }

// Change is the part of a write that concerns other owners' topics. Both fields may be nil.
type Change struct {
	Advance    *Advance
	Resolution *Resolution
}

type checkpointKey struct {
	of   SourcePartition
	from Checkpoint
}

type resolutionKey struct {
	of       parkedKey
	position catalog.Position
	index    int
}

// Key returns a comparable key that identifies a change when its write is tried again, or nil if there is no change.
func (c Change) Key() any {
	switch {
	case c.Advance != nil:
		return checkpointKey{c.Advance.Of, c.Advance.From}
	case c.Resolution != nil:
		of := c.Resolution.Of
		return resolutionKey{parkedKey{of.Source, of.Topic, of.Stream}, of.Position, of.Index}
	}
	return nil
}

// Admission decides which changes of a transaction are admitted. It holds the checkpoints and the parked streams that
// the changes are checked against: first as they were read under the log's lock, then with each admitted change.
type Admission struct {
	checkpoints map[SourcePartition]Checkpoint
	revisions   map[topicKey]int64
	parked      map[parkedKey]Parked // position, index and waiting count of the streams to resolve

	advanced []*Advance
	resolved []*Resolution
}

// NewAdmission returns the Admission of a transaction for which nothing has been read yet.
func NewAdmission() *Admission {
	return &Admission{checkpoints: map[SourcePartition]Checkpoint{}, revisions: map[topicKey]int64{},
		parked: map[parkedKey]Parked{}}
}

// FoundCheckpoint records a checkpoint as it was read, with the revision of its topic's parked streams.
func (a *Admission) FoundCheckpoint(of SourcePartition, have Checkpoint, revision int64) {
	a.checkpoints[of] = have
	a.revisions[topicKey{of.Source, of.Topic}] = revision
}

// QueueReads queues the statements that read the checkpoints and parked streams that changes are checked against.
func (a *Admission) QueueReads(b *pgx.Batch, i *Inbox, all []Change) {
	var sources, topics, parkedSources, parkedTopics, parkedStreams []string
	var numbers []int32
	for _, c := range all {
		if moves := c.Advance; moves != nil {
			sources, topics = append(sources, moves.Of.Source), append(topics, moves.Of.Topic)
			numbers = append(numbers, moves.Of.Partition)
		}
		if r := c.Resolution; r != nil {
			parkedSources, parkedTopics = append(parkedSources, r.Of.Source), append(parkedTopics, r.Of.Topic)
			parkedStreams = append(parkedStreams, r.Of.Stream)
		}
	}
	if len(numbers) > 0 {
		b.Queue(i.o.SQL(sqlAdvances), sources, topics, numbers).Query(func(found pgx.Rows) error {
			var of SourcePartition
			var have Checkpoint
			var revision int64
			_, err := pgx.ForEachRow(found, []any{&of.Source, &of.Topic, &of.Partition, &have.Position, &have.Index,
				&have.Incarnation, &have.Epoch, &have.Partitions, &revision}, func() error {
				a.FoundCheckpoint(of, have, revision)
				return nil
			})
			return err
		})
	}
	if len(parkedStreams) > 0 {
		b.Queue(i.o.SQL(sqlResolutions), parkedSources, parkedTopics, parkedStreams).Query(func(found pgx.Rows) error {
			var k parkedKey
			var p Parked
			var revision int64
			_, err := pgx.ForEachRow(found, []any{&k.source, &k.topic, &k.stream, &p.Position, &p.Index, &p.Waiting,
				&revision}, func() error {
				a.parked[k] = p
				a.revisions[topicKey{k.source, k.topic}] = revision
				return nil
			})
			return err
		})
	}
}

// Check returns a *StaleCheckpointError or a *ParkedChangedError if a change was decided on an outdated state. The
// result nil means that the change can be admitted.
func (a *Admission) Check(c Change) error {
	if moves := c.Advance; moves != nil {
		if have, ok := a.checkpoints[moves.Of]; !ok || have != moves.From {
			return &StaleCheckpointError{Of: moves.Of, Have: have}
		}
		if a.revisions[topicKey{moves.Of.Source, moves.Of.Topic}] != moves.Revision {
			return &ParkedChangedError{Source: moves.Of.Source, Topic: moves.Of.Topic}
		}
	}
	if r := c.Resolution; r != nil {
		have, ok := a.parked[parkedKey{r.Of.Source, r.Of.Topic, r.Of.Stream}]
		if ok && !r.HoldUntil.IsZero() {
			return nil
		}
		if !ok || have.Position != r.Of.Position || have.Index != r.Of.Index || have.Waiting != r.Of.Waiting {
			return &ParkedChangedError{Source: r.Of.Source, Topic: r.Of.Topic}
		}
	}
	return nil
}

// Add records an admitted change, so that later changes are checked against it.
func (a *Admission) Add(c Change) {
	if moves := c.Advance; moves != nil {
		a.checkpoints[moves.Of] = moves.To
		a.advanced = append(a.advanced, moves)
		if len(moves.Park) > 0 {
			a.revisions[topicKey{moves.Of.Source, moves.Of.Topic}]++
		}
		for _, n := range moves.Passed {
			k := parkedKey{moves.Of.Source, moves.Of.Topic, n.Stream}
			if have, ok := a.parked[k]; ok {
				have.Waiting += n.Events
				a.parked[k] = have
			}
		}
	}
	if r := c.Resolution; r != nil {
		a.resolved = append(a.resolved, r)
		a.revisions[topicKey{r.Of.Source, r.Of.Topic}]++
		k := parkedKey{r.Of.Source, r.Of.Topic, r.Of.Stream}
		switch {
		case !r.HoldUntil.IsZero():
		case r.Left == nil:
			delete(a.parked, k)
		default:
			a.parked[k] = *r.Left
		}
	}
}

// QueueWrites queues the statements that store the admitted changes.
func (a *Admission) QueueWrites(b *pgx.Batch, i *Inbox) error {
	revised := map[topicKey]bool{}
	for _, moves := range a.advanced {
		of, to := moves.Of, moves.To
		b.Queue(i.o.SQL(sqlAdvance), of.Source, of.Topic, of.Partition, to.Position, to.Index, to.Incarnation, to.Epoch,
			to.Partitions)
		for _, p := range moves.Park {
			if err := queuePark(b, i.o.SQL(sqlPark), p); err != nil {
				return err
			}
			revised[topicKey{of.Source, of.Topic}] = true
		}
		for _, n := range moves.Passed {
			b.Queue(i.o.SQL(sqlPassed), of.Source, of.Topic, n.Stream, n.Events)
		}
	}
	for _, r := range a.resolved {
		revised[topicKey{r.Of.Source, r.Of.Topic}] = true
		if !r.HoldUntil.IsZero() {
			b.Queue(i.o.SQL(sqlHold), r.Of.Source, r.Of.Topic, r.Of.Stream, r.HoldUntil)
		} else if r.Left == nil {
			b.Queue(i.o.SQL(sqlUnpark), r.Of.Source, r.Of.Topic, r.Of.Stream)
		} else if err := queueParkedLeft(b, i.o.SQL(sqlParkedLeft), *r.Left); err != nil {
			return err
		}
	}
	for k := range revised {
		b.Queue(i.o.SQL(sqlRevise), k.source, k.topic, a.revisions[k])
	}
	return nil
}
