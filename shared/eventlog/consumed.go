package eventlog

import (
	"github.com/jackc/pgx/v5"
)

type topicKey struct{ source, topic string }

type parkedKey struct{ source, topic, stream string }

// checkpointKey identifies a write that moves a checkpoint.
type checkpointKey struct {
	of   SourcePartition
	from Checkpoint
}

// consumed is the part of the admission check that concerns other owners' topics: the checkpoints of their partitions,
// and the parked streams.
type consumed struct {
	checkpoints map[SourcePartition]Checkpoint
	revisions   map[topicKey]int64
	parked      map[parkedKey]Parked // position, index and waiting count of the streams to resolve

	advanced []*Advance
	resolved []*Resolution
}

// queueConsumed queues the statements that read what advances and resolutions are checked against.
func (t *transaction) queueConsumed(b *pgx.Batch) {
	var sources, topics, parkedSources, parkedTopics, parkedStreams []string
	var numbers []int32
	for _, pw := range t.writes {
		if a := pw.prepared.advance; a != nil {
			sources, topics, numbers = append(sources, a.Of.Source), append(topics, a.Of.Topic), append(numbers, a.Of.Partition)
		}
		if r := pw.prepared.resolves; r != nil {
			parkedSources, parkedTopics = append(parkedSources, r.Of.Source), append(parkedTopics, r.Of.Topic)
			parkedStreams = append(parkedStreams, r.Of.Stream)
		}
	}
	c := &t.admission.consumed
	*c = consumed{checkpoints: map[SourcePartition]Checkpoint{}, revisions: map[topicKey]int64{},
		parked: map[parkedKey]Parked{}}
	if len(numbers) > 0 {
		b.Queue(t.log.SQL(sqlAdvances), sources, topics, numbers).Query(func(found pgx.Rows) error {
			var of SourcePartition
			var have Checkpoint
			var revision int64
			_, err := pgx.ForEachRow(found, []any{&of.Source, &of.Topic, &of.Partition, &have.Position, &have.Index,
				&have.Incarnation, &have.Epoch, &have.Partitions, &revision}, func() error {
				c.checkpoints[of] = have
				c.revisions[topicKey{of.Source, of.Topic}] = revision
				return nil
			})
			return err
		})
	}
	if len(parkedStreams) > 0 {
		b.Queue(t.log.SQL(sqlResolutions), parkedSources, parkedTopics, parkedStreams).Query(func(found pgx.Rows) error {
			var k parkedKey
			var p Parked
			var revision int64
			_, err := pgx.ForEachRow(found, []any{&k.source, &k.topic, &k.stream, &p.Position, &p.Index, &p.Waiting,
				&revision}, func() error {
				c.parked[k] = p
				c.revisions[topicKey{k.source, k.topic}] = revision
				return nil
			})
			return err
		})
	}
}

// check reports why a write was decided on an outdated state; nil if it was not.
func (c *consumed) check(p *prepared) error {
	if a := p.advance; a != nil {
		if have, ok := c.checkpoints[a.Of]; !ok || have != a.From {
			return &StaleCheckpointError{Of: a.Of, Have: have}
		}
		if c.revisions[topicKey{a.Of.Source, a.Of.Topic}] != a.Revision {
			return &ParkedChangedError{Source: a.Of.Source, Topic: a.Of.Topic}
		}
	}
	if r := p.resolves; r != nil {
		have, ok := c.parked[parkedKey{r.Of.Source, r.Of.Topic, r.Of.Stream}]
		if ok && !r.HoldUntil.IsZero() {
			return nil
		}
		if !ok || have.Position != r.Of.Position || have.Index != r.Of.Index || have.Waiting != r.Of.Waiting {
			return &ParkedChangedError{Source: r.Of.Source, Topic: r.Of.Topic}
		}
	}
	return nil
}

// add records what an admitted write changes, so that later writes are checked against that.
func (c *consumed) add(p *prepared) {
	if a := p.advance; a != nil {
		c.checkpoints[a.Of] = a.To
		c.advanced = append(c.advanced, a)
		if len(a.Park) > 0 {
			c.revisions[topicKey{a.Of.Source, a.Of.Topic}]++
		}
		for _, n := range a.Passed {
			k := parkedKey{a.Of.Source, a.Of.Topic, n.Stream}
			if have, ok := c.parked[k]; ok {
				have.Waiting += n.Events
				c.parked[k] = have
			}
		}
	}
	if r := p.resolves; r != nil {
		c.resolved = append(c.resolved, r)
		c.revisions[topicKey{r.Of.Source, r.Of.Topic}]++
		k := parkedKey{r.Of.Source, r.Of.Topic, r.Of.Stream}
		switch {
		case !r.HoldUntil.IsZero():
		case r.Left == nil:
			delete(c.parked, k)
		default:
			c.parked[k] = *r.Left
		}
	}
}

// queue queues the statements that store the changes.
func (c *consumed) queue(b *pgx.Batch, l *Log) error {
	revised := map[topicKey]bool{}
	for _, a := range c.advanced {
		of, to := a.Of, a.To
		b.Queue(l.SQL(sqlAdvance), of.Source, of.Topic, of.Partition, to.Position, to.Index, to.Incarnation, to.Epoch,
			to.Partitions)
		for _, p := range a.Park {
			if err := queuePark(b, l.SQL(sqlPark), p); err != nil {
				return err
			}
			revised[topicKey{of.Source, of.Topic}] = true
		}
		for _, n := range a.Passed {
			b.Queue(l.SQL(sqlPassed), of.Source, of.Topic, n.Stream, n.Events)
		}
	}
	for _, r := range c.resolved {
		revised[topicKey{r.Of.Source, r.Of.Topic}] = true
		if !r.HoldUntil.IsZero() {
			b.Queue(l.SQL(sqlHold), r.Of.Source, r.Of.Topic, r.Of.Stream, r.HoldUntil)
		} else if r.Left == nil {
			b.Queue(l.SQL(sqlUnpark), r.Of.Source, r.Of.Topic, r.Of.Stream)
		} else if err := queueParkedLeft(b, l.SQL(sqlParkedLeft), *r.Left); err != nil {
			return err
		}
	}
	for k := range revised {
		b.Queue(l.SQL(sqlRevise), k.source, k.topic, c.revisions[k])
	}
	return nil
}
