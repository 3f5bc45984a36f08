package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// topic is the state of one topic of the log in its relay.
type topic struct {
	name     string
	declared int32 // number of partitions that the catalog declares
	count    count

	paused error            // why nothing is published to the topic; nil: the topic is not paused
	retry  time.Time        // when publishing to the paused topic is tried again
	until  catalog.Position // while the topic grows: events up to this position use the old count
}

// count is the number of partitions that a topic has on the broker.
type count struct {
	mu      sync.Mutex
	known   bool
	n       int32
	missing error // why nothing can be published to the topic; nil: the topic exists
}

func (c *count) set(n int32, missing error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known, c.n, c.missing = true, n, missing
}

func (c *count) get() (n int32, known bool, missing error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.known, c.missing
}

// unusable returns why the relay cannot publish to a topic with the count of its epoch; nil: the relay can publish to
// the topic, or the broker's count is not known.
func (t *topic) unusable(of epoch) error {
	n, known, missing := t.count.get()
	switch {
	case !known:
		return nil
	case missing != nil:
		return missing
	case n < of.Count:
		return fmt.Errorf("topic %s has shrunk: it has %d partitions instead of %d; create it with %d again",
			t.name, n, of.Count, of.Count)
	}
	return nil
}

// countTopics waits until the partition count of each topic is known, from the relay's state or from the broker, and
// begins the first epoch of topics that have none. It then reads the broker's counts at intervals, until ctx ends or
// the returned function is called.
func (x *leading) countTopics(ctx context.Context) (stop func(), err error) {
	var delay retry.Backoff
	for {
		err := x.countOnce(ctx)
		if missing := x.uncounted(); err == nil || len(missing) == 0 {
			break
		}
		x.log.SetWaiting("relay", "kafka", err)
		if !delay.Wait(ctx) {
			return nil, context.Cause(ctx)
		}
	}
	x.log.SetWaiting("relay", "kafka", nil)
	s := x.sequence
	if s.Topics == nil {
		s.Topics = map[string]epoch{}
	}
	for _, t := range x.topics {
		t.paused, t.until = nil, 0
		if _, begun := s.Topics[t.name]; begun {
			continue
		}
		n, known, _ := t.count.get()
		if !known || n == 0 || len(s.Last[t.name]) > 0 {
			n = t.declared // the topic does not exist yet, or an earlier release has published by the declared count
		}
		s.Topics[t.name] = epoch{Epoch: 1, Count: n, Fenced: true}
	}
	ctx, cancel := context.WithCancel(ctx)
	var counting sync.WaitGroup
	counting.Go(func() {
		for retry.Sleep(ctx, x.o.CountEvery) {
			_ = x.countOnce(ctx) // if the broker does not answer, the counts stay as they are
		}
	})
	return func() { cancel(); counting.Wait() }, nil
}

// uncounted returns the topics whose count neither the relay's state nor the broker provides.
func (x *leading) uncounted() (names []string) {
	for _, t := range x.topics {
		_, begun := x.sequence.Topics[t.name]
		if _, known, _ := t.count.get(); !known && !begun {
			names = append(names, t.name)
		}
	}
	return names
}

func (r *Relay) countOnce(ctx context.Context) (err error) {
	for _, t := range r.topics {
		n := t.declared
		if r.o.Partitions != nil {
			bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
			var problem error
			n, problem = r.o.Partitions(bounded, t.name)
			cancel()
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case isUnknown(problem):
				err = problem
				continue
			case problem == nil && n == 0:
				problem = errors.New("the broker does not have it")
			}
			if problem != nil {
				t.count.set(0, fmt.Errorf("topic %s cannot be published to: %w", t.name, problem))
				continue
			}
		}
		t.count.set(n, nil)
	}
	return err
}

// isUnknown reports whether an error of Options.Partitions means that the broker has not answered.
func isUnknown(err error) bool {
	return errors.Is(err, retry.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// exists reports whether a topic exists, or may exist because the broker does not answer.
func (x *leading) exists(ctx context.Context, name string) bool {
	if x.o.Partitions == nil {
		return true
	}
	n, err := x.o.Partitions(ctx, name)
	return isUnknown(err) || err == nil && n > 0
}

// changing reports whether the state of a topic must change before anything else is published.
func (x *leading) changing() bool {
	for _, t := range x.topics {
		of := x.sequence.Topics[t.name]
		if t.paused != nil {
			if !time.Now().Before(t.retry) {
				return true
			}
			continue
		}
		if n, known, _ := t.count.get(); known && n != of.Count || !of.Fenced {
			return true
		}
	}
	return false
}

// change pauses topics that have become unusable, resumes topics that are usable again, and begins a new epoch of
// topics that have grown. It is called when everything published is confirmed.
func (x *leading) change(ctx context.Context) error {
	s := x.sequence
	for _, t := range x.topics {
		of := s.Topics[t.name]
		if t.paused != nil && time.Now().Before(t.retry) {
			continue
		}
		if err := t.unusable(of); err != nil {
			x.pause(ctx, t, err)
			continue
		}
		if n, known, _ := t.count.get(); known && n > of.Count {
			ready, err := x.grow(ctx, t, n)
			if err != nil {
				return err
			}
			if !ready {
				continue
			}
		}
		if !s.Topics[t.name].Fenced {
			if err := x.fence(ctx, t); err != nil {
				return err
			}
		}
		if t.paused != nil && s.Topics[t.name].Fenced {
			x.logger.InfoContext(ctx, "relay publishes to a topic again", "topic", t.name)
			t.paused = nil
			for p := range s.Topics[t.name].Count {
				// A position record is then due at once. It shows the topic's readers that they have missed events.
				delete(s.recorded, topicPartition{t.name, p})
			}
		}
	}
	return nil
}

func (x *leading) pause(ctx context.Context, t *topic, err error) {
	if t.paused == nil {
		x.logger.ErrorContext(ctx, "relay pauses a topic; the others continue, and readers will fill the gap from the log",
			"topic", t.name, "error", err)
	}
	t.paused, t.retry = err, time.Now().Add(x.o.CountEvery)
	x.log.SetWaiting("relay "+t.name, "kafka", err)
}

// grow begins a new epoch once all events are published that were committed when the growth was noticed. It reports
// whether the epoch has begun.
//
// An earlier relay that has not noticed yet that it has lost the lease may still be publishing by the old count. It
// publishes only events that it read before it lost the lease. This relay noticed the growth later, so none of these
// events is above the fence.
func (x *leading) grow(ctx context.Context, t *topic, n int32) (bool, error) {
	s := x.sequence
	if t.until == 0 {
		err := x.lease.Use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			head, err := x.log.ReadHead(ctx, conn)
			t.until = head.Position
			return err
		})
		if err != nil {
			return false, fmt.Errorf("read the head of the log: %w", err)
		}
		x.read = time.Time{}
	}
	if s.Position < t.until {
		return false, nil
	}
	t.until = 0
	of := s.Topics[t.name]
	x.logger.InfoContext(ctx, "topic has grown", "topic", t.name, "from", of.Count, "to", n, "epoch", of.Epoch+1,
		"position", s.Position)
	s.Topics[t.name] = epoch{Epoch: of.Epoch + 1, Count: n, From: s.Position}
	// Save the new epoch before its fence is written, so that a relay that takes over writes the same fence.
	x.confirmed, x.unsaved = s.saved(), true
	err := x.lease.Use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		b := &pgx.Batch{}
		b.Queue("BEGIN")
		b.Queue("SET LOCAL synchronous_commit = 'on'")
		b.Queue(x.log.SQL(sqlSave), x.confirmed.Position, x.confirmed.Last, x.confirmed.Topics)
		b.Queue("COMMIT")
		return conn.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return false, fmt.Errorf("save that topic %s has grown: %w", t.name, err)
	}
	return true, nil
}

// fence writes the fence of a topic's epoch into all its partitions, and waits for the confirmation. If the topic turns
// out to be unusable, fence leaves it paused.
func (x *leading) fence(ctx context.Context, t *topic) error {
	s, of := x.sequence, x.sequence.Topics[t.name]
	n := x.ship()
	for p := range of.Count {
		e := envelope.Position(x.owner, of.From, min(s.Last[t.name][p], of.From))
		e.Incarnation, e.Epoch, e.Partitions, e.Fence = x.incarnation, of.Epoch, of.Count, true
		n.messages[t.name] = append(n.messages[t.name], addressed(e, p))
	}
	paused := t.paused
	t.paused = nil // publish leaves out paused topics, but has to try this one
	n.publish(ctx)
	if err := n.settled(ctx); err != nil || t.paused != nil {
		return err
	}
	t.paused = paused
	now := time.Now()
	for p := range of.Count {
		s.append(topicPartition{t.name, p}, max(s.Last[t.name][p], of.From), now)
	}
	of.Fenced = true
	s.Topics[t.name] = of
	x.confirmed, x.unsaved = s.saved(), true
	return nil
}

// publish sends the messages of all topics that are not paused, each topic independently. It returns at once, and
// retries in the background until the messages of a topic are confirmed, the topic turns out to be unusable, or ctx
// ends. The method settled waits for the result.
func (n *shipment) publish(ctx context.Context) {
	x := n.relay
	var sends errgroup.Group
	for name, list := range n.messages {
		t, of := x.topics[name], x.sequence.Topics[name]
		if t.paused != nil {
			continue
		}
		sends.Go(func() error {
			unusable, err := x.publishTo(ctx, t, of, list)
			if unusable != nil {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.unusable[t] = unusable
			}
			return err
		})
	}
	go func() { n.done <- sends.Wait() }()
}

// settled waits until publish has ended in the background, and pauses the topics that turned out to be unusable.
func (n *shipment) settled(ctx context.Context) error {
	err := <-n.done
	n.spans.end(err)
	for t, problem := range n.unusable {
		n.relay.pause(ctx, t, problem)
	}
	return err
}

// publishTo publishes messages to a topic, and a position record in place of each event that the broker refuses
// permanently (see standIn). It returns when all of them are confirmed, when the topic turns out to be unusable, or
// when ctx ends.
func (x *leading) publishTo(ctx context.Context, t *topic, of epoch, messages []*message.Message) (unusable, err error) {
	var delay retry.Backoff
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err := x.o.Publisher.Publish(t.name, messages...)
		if err == nil {
			x.log.SetWaiting("relay "+t.name, "kafka", nil)
			return nil, nil
		}
		if unusable := t.unusable(of); unusable != nil {
			return unusable, nil
		}
		switch refused, problem := refusedOf(err, messages); {
		case len(refused) == 0:
		case slices.ContainsFunc(refused, func(i int) bool { return isPosition(messages[i]) }):
			return fmt.Errorf("topic %s cannot be published to: %w", t.name, problem), nil
		default:
			messages = slices.Clone(messages)
			for _, i := range refused {
				if messages[i], err = x.standIn(messages[i]); err != nil {
					return nil, err
				}
				x.logger.ErrorContext(ctx, "the broker refuses an event permanently; readers of its topic read it from "+
					"the log", "topic", t.name, "position", messages[i].Metadata.Get("ce_position"), "error", problem)
			}
			continue
		}
		if delay.Failures == 1 {
			x.log.SetWaiting("relay "+t.name, "kafka", err)
			x.logger.WarnContext(ctx, "relay waits for the broker", "topic", t.name, "error", err)
		}
		delay.Wait(ctx)
	}
}

// refusedOf returns the indexes of the messages that can never be published, and the error of the first of them.
func refusedOf(err error, messages []*message.Message) (refused []int, problem error) {
	var failed *bus.PublishError
	if !errors.As(err, &failed) {
		return nil, nil
	}
	for _, f := range failed.Failed {
		if i := slices.Index(messages, f.Message); i >= 0 && !errors.Is(f.Err, retry.ErrUnavailable) {
			refused = append(refused, i)
			if problem == nil {
				problem = f.Err
			}
		}
	}
	return refused, problem
}

func isPosition(m *message.Message) bool {
	e, err := envelope.ReadEvent(m)
	return err == nil && e.IsPosition()
}

// standIn returns the position record that replaces a refused event in its partition. The record names the event's own
// position as the previous position of the partition. So readers detect that the event is missing, and read it from the
// log.
func (x *leading) standIn(m *message.Message) (*message.Message, error) {
	e, err := envelope.ReadEvent(m)
	if err != nil {
		return nil, err
	}
	p := envelope.Position(x.owner, e.Position, e.Position)
	p.Incarnation, p.Epoch, p.Partitions = e.Incarnation, e.Epoch, e.Partitions
	record := p.Message()
	record.Metadata.Set(bus.MetadataPartition, m.Metadata.Get(bus.MetadataPartition))
	return record, nil
}

// recogniseLoss compares the log with the newest record of each partition. If the records show that the database has
// lost commits, a new incarnation begins. Without Options.LastRecords it does nothing.
func (x *leading) recogniseLoss(ctx context.Context) error {
	if x.o.LastRecords == nil {
		return nil
	}
	var newest []envelope.Event
	for _, name := range slices.Sorted(maps.Keys(x.topics)) {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		records, err := x.o.LastRecords(bounded, name)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			if x.exists(ctx, name) {
				return fmt.Errorf("read the newest records of %s: %w", name, err)
			}
			continue // the topic does not exist, so it will be paused
		}
		for _, m := range records {
			if e, err := envelope.ReadEvent(m); err == nil {
				newest = append(newest, e)
			}
		}
	}
	return x.lease.Use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return x.log.RecogniseLoss(ctx, conn, newest)
	})
}
