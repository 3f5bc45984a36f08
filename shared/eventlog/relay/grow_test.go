package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// topicCounts stands in for a broker that is asked for the number of partitions of each topic.
type topicCounts struct{ of map[string]*atomic.Int32 }

func newCounts(l *eventlog.Log) *topicCounts {
	c := &topicCounts{of: map[string]*atomic.Int32{}}
	for _, t := range l.Options().Catalog.LoggedTopics("chat") {
		c.of[t.Name] = &atomic.Int32{}
		c.of[t.Name].Store(t.Partitions)
	}
	return c
}

func (c *topicCounts) ask(_ context.Context, topic string) (int32, error) {
	return c.of[topic].Load(), nil
}

func (c *topicCounts) relay(l *eventlog.Log) func(*Relay) {
	return func(r *Relay) { r.o.Partitions, r.o.CountEvery = c.ask, 20*time.Millisecond }
}

// epochReader reads all partitions of a topic as consumers do. It stores one position for each partition and drops
// repeated records. If a partition has a gap, epochReader takes the missing events from the log. To decide whether an
// event belongs to the partition, it hashes the event's stream with the number of partitions in the partition's epoch.
type epochReader struct {
	t      *testing.T
	log    map[string]map[catalog.Position]string // the stream of each event of the log, by topic and position
	number map[topicPartition]catalog.Position
	epoch  map[topicPartition]epoch
	times  map[catalog.Position]int // how often each event was read, by position
	fences map[topicPartition]int
}

func (x *epochReader) give(topic string, partition int32, above, until catalog.Position, count int32) {
	for position, stream := range x.log[topic] {
		if position > above && position <= until && envelope.Partition(stream, count) == partition {
			x.times[position]++
		}
	}
}

func (x *epochReader) take(p topicPartition, e envelope.Event) {
	of := x.epoch[p]
	if e.Epoch < of.Epoch {
		return
	}
	if of.Count == 0 {
		of = epoch{Epoch: e.Epoch, Count: e.Partitions}
		x.epoch[p] = of
	}
	if e.Fence && e.Epoch > of.Epoch || e.Position > x.number[p] {
		if e.Before > x.number[p] {
			x.give(p.topic, p.partition, x.number[p], e.Before, of.Count)
		}
		if !e.IsPosition() {
			x.times[e.Position]++
			assert.Equal(x.t, p.partition, envelope.Partition(e.Stream, e.Partitions), "event %d", e.Position)
		}
		x.number[p] = max(x.number[p], e.Position)
	}
	if e.Fence && e.Epoch > of.Epoch {
		x.fences[p]++
		x.epoch[p] = epoch{Epoch: e.Epoch, Count: e.Partitions, From: e.Position}
	}
}

// checkEpochs reads all records of a broker and asserts that every event of the log is read once.
func checkEpochs(t *testing.T, l *eventlog.Log, b *broker) *epochReader {
	t.Helper()
	x := &epochReader{t: t, log: map[string]map[catalog.Position]string{}, number: map[topicPartition]catalog.Position{}, epoch: map[topicPartition]epoch{},
		times: map[catalog.Position]int{}, fences: map[topicPartition]int{}}
	all := map[catalog.Position]int{}
	for after, more := catalog.Position(0), true; more; {
		page, err := l.Read(t.Context(), eventlog.Query{After: after, Limit: 1000})
		require.NoError(t, err)
		for _, e := range page.Events {
			if x.log[topicOf(l, e)] == nil {
				x.log[topicOf(l, e)] = map[catalog.Position]string{}
			}
			x.log[topicOf(l, e)][e.Position] = e.Stream
			all[e.Position] = 1
		}
		after, more = page.Complete, page.Complete < page.Head
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, records := range b.records {
		for _, e := range records {
			x.take(p, e)
		}
	}
	assert.Equal(t, all, x.times, "how often each event is read")
	return x
}

// A topic grows twice while events are committed. Meanwhile the relay that leads crashes repeatedly, a second relay
// takes over, and the broker fails at times. A reader must see each event once.
func TestRelay_GrowsATopicUnderTraffic(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	b, c := newBroker(), newCounts(l)
	var calls atomic.Int64
	var crashing atomic.Bool
	b.fault = func(string, int) (func(int) bool, error) {
		n := calls.Add(1)
		if n%11 == 5 && crashing.Load() {
			_ = killLeader(context.Background(), l)
		}
		if n%7 == 3 {
			return func(i int) bool { return i%3 != int(n)%3 }, errors.New("the broker is away")
		}
		return func(int) bool { return true }, nil
	}
	relaying(t, l, b, c.relay(l))
	relaying(t, other, b, c.relay(other))
	next := 0
	write := func(n int) {
		for range n {
			commit(t, l, said(fmt.Sprint(next%13), fmt.Sprint(next)))
			next++
		}
	}
	grown := func(to int32) func() bool {
		return func() bool { return len(b.of(topicPartition{"chat-events", to - 1})) > 0 }
	}
	write(60)
	for _, to := range []int32{4, 6} {
		crashing.Store(true)
		c.of["chat-events"].Store(to)
		write(60)
		meshtest.Eventually(t, "the topic has grown", grown(to))
		crashing.Store(false)
		write(30)
	}
	meshtest.Eventually(t, "all is published", func() bool { return b.events() == next })
	x := checkEpochs(t, l, b)
	for p := range int32(6) {
		at := topicPartition{"chat-events", p}
		assert.Equal(t, int32(6), x.epoch[at].Count, "%v", at)
		records := b.of(at)
		i := slices.IndexFunc(records, func(e envelope.Event) bool { return e.Epoch == 3 })
		require.GreaterOrEqual(t, i, 0)
		assert.True(t, records[i].Fence, "the first record of an epoch is its fence: %+v", records[i])
		// The fence may be sent several times, but must have the same position in every partition.
		for _, e := range records {
			if e.Fence && e.Epoch == 3 {
				assert.Equal(t, b.of(topicPartition{"chat-events", 5})[0].Position, e.Position)
			}
		}
	}
}

// A release declares more partitions than the broker has. The relay must use the number that the broker has.
func TestRelay_UsesTheBrokersPartitionCount(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b, c := newBroker(), newCounts(l)
	c.of["chat-events"].Store(2)
	relaying(t, l, b, c.relay(l))
	for i := range 40 {
		commit(t, l, said(fmt.Sprint(i%7), fmt.Sprint(i)))
	}
	meshtest.Eventually(t, "all is published", func() bool { return b.events() == 40 })
	checkEpochs(t, l, b)
	assert.Empty(t, b.of(topicPartition{"chat-events", 2}))
}

// An earlier release has chosen partitions by the declared number of partitions, 3, although the broker has 4. After
// the upgrade, a fence must show readers the position above which the broker's number of partitions applies.
func TestRelay_AfterAReleaseThatHashedByTheDeclaredCount(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	for i := range 20 {
		commit(t, l, said(fmt.Sprint(i%7), fmt.Sprint(i)))
	}
	_, err := l.Options().Pool.Exec(t.Context(), `UPDATE chat.relay SET position = 20,
partitions = '{"chat-events": {"0": 18, "1": 19, "2": 20}}'`)
	require.NoError(t, err)
	b, c := newBroker(), newCounts(l)
	c.of["chat-events"].Store(4)
	commit(t, l, said("1", "new"))
	relaying(t, l, b, c.relay(l))
	meshtest.Eventually(t, "the new event is published", func() bool { return b.events() == 1 })
	// The old number of partitions still determines the partitions of the events that are in the log at the upgrade. The
	// fence follows these events.
	fence := func(p int32) int {
		return slices.IndexFunc(b.of(topicPartition{"chat-events", p}), func(e envelope.Event) bool { return e.Fence })
	}
	for p := range int32(4) {
		meshtest.Eventually(t, "the fence", func() bool { return fence(p) >= 0 })
		records, i := b.of(topicPartition{"chat-events", p}), fence(p)
		before := catalog.Position(0)
		if i > 0 {
			before = records[i-1].Position
		}
		assert.Equal(t, before, records[i].Before, "%d", p)
		assert.Equal(t, []any{catalog.Position(21), int32(2), int32(4)}, []any{records[i].Position, records[i].Epoch, records[i].Partitions})
	}
	first := b.of(topicPartition{"chat-events", 1})[0]
	assert.Equal(t, []any{int32(1), int32(3), catalog.Position(19)}, []any{first.Epoch, first.Partitions, first.Before})
}

// A topic loses partitions or vanishes. The relay must report that it waits for the broker, and go on publishing to the
// other topics. Once the topic is as before, no event may be missing.
func TestRelay_AnUnusableTopicDoesNotDelayOthers(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]int32{"shrunk": 2, "vanished": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var waiting atomic.Int32
			l := running(t, database(t), func(o *eventlog.Options) {
				o.Waiting = func(_ string, err error) {
					if err != nil {
						waiting.Add(1)
					} else {
						waiting.Add(-1)
					}
				}
			})
			b, c := newBroker(), newCounts(l)
			c.of["other-events"] = &atomic.Int32{}
			c.of["other-events"].Store(1)
			gone := func() bool { return c.of["chat-events"].Load() == broken }
			b.fault = func(topic string, _ int) (func(int) bool, error) {
				if topic == "chat-events" && gone() {
					return func(int) bool { return false }, retry.Unavailable("kafka", errors.New("unknown topic"))
				}
				return func(int) bool { return true }, nil
			}
			relaying(t, l, b, c.relay(l), func(r *Relay) {
				r.topics["other-events"] = &topic{name: "other-events", declared: 1}
			})
			commit(t, l, said("1", "before"))
			meshtest.Eventually(t, "the event is published", func() bool { return b.events() == 1 })
			c.of["chat-events"].Store(broken)
			for i := range 30 {
				commit(t, l, said(fmt.Sprint(i%7), fmt.Sprint("meanwhile", i)))
			}
			other := topicPartition{"other-events", 0}
			meshtest.Eventually(t, "another topic goes on", func() bool {
				r := b.of(other)
				return len(r) > 0 && r[len(r)-1].Position == 31
			})
			assert.Equal(t, int32(1), waiting.Load(), "one dependency is reported as unavailable")
			c.of["chat-events"].Store(3)
			meshtest.Eventually(t, "every partition gets the position of the log", func() bool {
				for p := range int32(3) {
					if r := b.of(topicPartition{"chat-events", p}); len(r) == 0 || r[len(r)-1].Position < 31 {
						return false
					}
				}
				return true
			})
			meshtest.Eventually(t, "the alarm ends", func() bool { return waiting.Load() == 0 })
			checkEpochs(t, l, b)
		})
	}
}

// The broker permanently refuses an event. The relay must publish the later events. Readers of the topic must see a gap
// in place of the event, so that they read the event from the log.
func TestRelay_PassesAnEventThatTheBrokerRefuses(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	relaying(t, l, refusing{b, "c3"})
	for i := range 8 {
		commit(t, l, said(fmt.Sprint(i%3), fmt.Sprint("c", i)))
	}
	meshtest.Eventually(t, "all others are published", func() bool { return b.events() == 7 })
	stream := "conversation:0"
	meshtest.Eventually(t, "a position record takes the place of the event", func() bool {
		return slices.ContainsFunc(b.of(topicPartition{"chat-events", envelope.Partition(stream, 3)}), func(e envelope.Event) bool {
			return e.IsPosition() && e.Before == 4
		})
	})
	checkEpochs(t, l, b)
}
