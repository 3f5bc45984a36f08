package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// broker is a publisher that stores the messages of each call, or fails as a test requires.
type broker struct {
	// fault is called for each call of Publish. It returns which of the messages arrive, and the error of the call. If
	// fault is nil, all messages arrive and no call fails.
	fault func(topic string, messages int) (arrives func(i int) bool, err error)

	mu      sync.Mutex
	records map[topicPartition][]envelope.Event
	arrived map[catalog.Position]time.Time // when each event first arrived, by position
}

func newBroker() *broker {
	return &broker{records: map[topicPartition][]envelope.Event{}, arrived: map[catalog.Position]time.Time{}}
}

func (b *broker) Publish(topic string, messages ...*message.Message) error {
	arrives, err := func(int) bool { return true }, error(nil)
	if b.fault != nil {
		arrives, err = b.fault(topic, len(messages))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, m := range messages {
		if !arrives(i) {
			continue
		}
		e, problem := envelope.ReadEvent(m)
		if problem != nil {
			return problem
		}
		to := topicPartition{topic, 0}
		if p, ok := m.Metadata[bus.MetadataPartition]; ok {
			n, _ := strconv.Atoi(p)
			to.partition = int32(n)
		} else {
			to.partition = envelope.Partition(m.Metadata[envelope.MetadataKey], 3)
		}
		b.records[to] = append(b.records[to], e)
		if _, before := b.arrived[e.Position]; !before && !e.IsPosition() {
			b.arrived[e.Position] = time.Now()
		}
	}
	return err
}

func (b *broker) of(p topicPartition) []envelope.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.records[p])
}

// events returns the number of events that arrived, without repeats.
func (b *broker) events() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.arrived)
}

// reader reads one partition as gateways do: it stores the position of the last record, and drops records that are not
// above this position as repeats.
type reader struct {
	number catalog.Position
	seen   []catalog.Position
	gaps   int
}

func (r *reader) take(e envelope.Event, log map[catalog.Position]bool) error {
	if e.Position <= r.number {
		return nil
	}
	if e.Before > r.number {
		r.gaps++
		r.fill(e.Before, log)
	}
	if !e.IsPosition() {
		r.seen = append(r.seen, e.Position)
	}
	r.number = e.Position
	// The reader must have seen all events of the partition up to its position.
	for position := range log {
		if position <= r.number && !slices.Contains(r.seen, position) {
			return fmt.Errorf("the reader is at %d and has not seen %d", r.number, position)
		}
	}
	return nil
}

// fill adds the events that the reader has not seen, up to a position. A gateway would read them from the owner's log.
func (r *reader) fill(until catalog.Position, log map[catalog.Position]bool) {
	for _, position := range slices.Sorted(maps.Keys(log)) {
		if position > r.number && position <= until {
			r.seen = append(r.seen, position)
		}
	}
}

// checkRead reads all partitions of a broker and asserts that a reader sees each event of the log once and in order. It
// returns the number of gaps that the readers had to fill.
func checkRead(t *testing.T, l *eventlog.Log, b *broker) (gaps int) {
	t.Helper()
	logs := map[topicPartition]map[catalog.Position]bool{}
	for after, more := catalog.Position(0), true; more; {
		page, err := l.Read(t.Context(), eventlog.Query{After: after, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			p := topicPartition{topicOf(l, e), envelope.Partition(e.Stream, 3)}
			if logs[p] == nil {
				logs[p] = map[catalog.Position]bool{}
			}
			logs[p][e.Position] = true
		}
		after, more = page.Complete, page.Complete < page.Head
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, records := range b.records {
		r := &reader{}
		for _, e := range records {
			if err := r.take(e, logs[p]); err != nil {
				t.Fatalf("%v: %v", p, err)
			}
		}
		if want := slices.Sorted(maps.Keys(logs[p])); !slices.Equal(r.seen, want) {
			t.Errorf("%v: saw %v, want %v", p, r.seen, want)
		}
		gaps += r.gaps
	}
	return gaps
}

func relaying(t testing.TB, l *eventlog.Log, b Publisher, change ...func(*Relay)) *Relay {
	t.Helper()
	r := New(l, Options{Publisher: b, PositionEvery: 50 * time.Millisecond})
	for _, f := range change {
		f(r)
	}
	during(t, r.Run)
	return r
}

// killLeader ends the session of the relay that leads, so that this relay can save nothing more, as after a crash.
func killLeader(ctx context.Context, l *eventlog.Log) error {
	key := uint64(advisory.Key("eventlog/" + l.Options().Owner + "/relay"))
	_, err := l.Options().Pool.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND classid = $1 AND objid = $2`,
		uint32(key>>32), uint32(key))
	return err
}

func TestRelay_PublishesInOrderWithThePositionBefore(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	relaying(t, l, b)
	for i := range 60 {
		commit(t, l, said(fmt.Sprint(i%7), fmt.Sprint(i)))
	}
	meshtest.Eventually(t, "all is published", func() bool { return b.events() == 60 })
	if gaps := checkRead(t, l, b); gaps != 0 {
		t.Errorf("%d gaps", gaps)
	}
}

// The events of a counter that is delivered in the room of a conversation must be in the partition of the conversation,
// whatever the counter's own stream is. A page of the log for one partition must contain them, too.
func TestRelay_ACounterOfARoomIsInThePartitionOfTheRoom(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	relaying(t, l, b)
	const users = 12
	for n := range users {
		user := fmt.Sprint("user", n)
		_, err := l.Commit(t.Context(), eventlog.Write{Appends: []eventlog.Append{{Expected: eventlog.AnyVersion, Actor: user,
			Stream: "seen:1:" + user, Events: []proto.Message{&chatv1.MessagesSeen{ConversationId: "1", UserId: user, UpTo: 1}}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	meshtest.Eventually(t, "all is published", func() bool { return b.events() == users })
	partition, found := envelope.Partition("conversation:1", 3), 0
	for _, e := range b.of(topicPartition{"chat-events", partition}) {
		if !e.IsPosition() {
			found++
		}
	}
	page, err := l.Read(t.Context(), eventlog.Query{Topic: "chat-events", Partition: partition, Partitions: 3, Limit: 100})
	if err != nil || found != users || len(page.Events) != users {
		t.Errorf("%d of %d events are in partition %d, and %d in the page of the log, %v", found, users, partition, len(page.Events), err)
	}
}

// Some calls of the publisher fail, and none, some or all of their messages arrive nevertheless. The relay also crashes
// between publishing and saving its state. A reader must still see every event once. If the messages that arrive in a
// failed call are always the first ones, a reader must also see no gap.
func TestRelay_DeliversEachEventOnceDespiteFailures(t *testing.T) {
	t.Parallel()
	for name, arrival := range map[string]func(n int) func(int) bool{
		"from the front": func(n int) func(int) bool { k := rand.N(n + 1); return func(i int) bool { return i < k } },
		"any":            func(int) func(int) bool { return func(int) bool { return rand.N(2) == 0 } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := database(t)
			l, other := running(t, url), running(t, url)
			b := newBroker()
			var calls, crashes, large atomic.Int64
			b.fault = func(_ string, messages int) (func(int) bool, error) {
				switch n := calls.Add(1); {
				case messages > 100 && large.Add(1) <= 3 || n%7 == 3:
					return arrival(messages), errors.New("the broker is away")
				case n%7 == 5 && crashes.Load() < 12:
					crashes.Add(1)
					if err := killLeader(context.Background(), l); err != nil {
						t.Error(err)
					}
				}
				return func(int) bool { return true }, nil
			}
			for i := range 300 {
				if i == 150 { // the relays start with a backlog of 150 events; later events are published as they come
					relaying(t, l, b)
					relaying(t, other, b)
					meshtest.Eventually(t, "the backlog is published", func() bool { return b.events() == 150 })
				}
				commit(t, l, said(fmt.Sprint(i%7), fmt.Sprint(i)))
				if i > 150 && i%3 == 0 {
					retry.Sleep(t.Context(), rand.N(20*time.Millisecond))
				}
			}
			meshtest.Eventually(t, "all is published", func() bool { return b.events() == 300 })
			gaps := checkRead(t, l, b)
			t.Logf("%d calls, %d crashes, %d gaps", calls.Load(), crashes.Load(), gaps)
			if crashes.Load() == 0 || name == "from the front" && gaps > 0 {
				t.Errorf("%d crashes, %d gaps", crashes.Load(), gaps)
			}
		})
	}
}

// One of two relays freezes while it publishes, and does not notice that it has lost its lease. The other relay must
// take over within 3.5 s. When the first relay goes on, it must publish only repeats.
func TestRelay_ContinuesWhenTheLeaderFreezes(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	b := newBroker()
	frozen, thaw, thawed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var freeze atomic.Bool
	cold := newBroker()
	cold.fault = func(string, int) (func(int) bool, error) {
		if freeze.CompareAndSwap(true, false) {
			close(frozen)
			<-thaw
			defer close(thawed)
		}
		return func(int) bool { return true }, nil
	}
	cold.records, cold.arrived = b.records, b.arrived // cold and b are the same broker, but only cold can freeze
	first := New(l, Options{Publisher: shared{cold, b}, PositionEvery: 50 * time.Millisecond})
	first.renewal = time.Hour
	during(t, first.Run)
	commit(t, l, said("1", "a"))
	meshtest.Eventually(t, "the first relay leads", func() bool { return b.events() == 1 })
	relaying(t, other, b)
	freeze.Store(true)
	commit(t, l, said("1", "b"))
	<-frozen
	begun := time.Now()
	for i := range 20 {
		commit(t, l, said(fmt.Sprint(i%5), fmt.Sprint("later", i)))
	}
	meshtest.Eventually(t, "the other relay publishes", func() bool { return b.events() == 22 })
	took := time.Since(begun)
	t.Logf("the other relay took over after %v", took)
	if took > 3*time.Second+500*time.Millisecond {
		t.Errorf("the other relay took over after %v", took)
	}
	close(thaw)
	<-thawed
	for i := range 20 {
		commit(t, l, said(fmt.Sprint(i%5), fmt.Sprint("thawed", i)))
	}
	meshtest.Eventually(t, "all is published", func() bool { return b.events() == 42 })
	if gaps := checkRead(t, l, b); gaps != 0 {
		t.Errorf("%d gaps", gaps)
	}
}

// shared publishes to the broker "topics", and fails as the broker "faulty" would.
type shared struct{ faulty, topics *broker }

func (s shared) Publish(topic string, messages ...*message.Message) error {
	if _, err := s.faulty.fault(topic, len(messages)); err != nil {
		return err
	}
	return s.topics.Publish(topic, messages...)
}

func TestRelay_PublishesItsPositionToQuietPartitions(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	const often = 200 * time.Millisecond
	relaying(t, l, b, func(r *Relay) { r.o.PositionEvery, r.o.SignOfLife = often, time.Hour })
	var places []topicPartition
	for _, topic := range l.Options().Catalog.LoggedTopics("chat") {
		for p := range topic.Partitions {
			places = append(places, topicPartition{topic.Name, p})
		}
	}
	meshtest.Eventually(t, "every partition gets a position record at the start", func() bool {
		return !slices.ContainsFunc(places, func(p topicPartition) bool { return len(b.of(p)) != 1 })
	})
	begun := time.Now()
	for i := range 50 {
		commit(t, l, said("1", fmt.Sprint(i)))
		retry.Sleep(t.Context(), 10*time.Millisecond)
	}
	meshtest.Eventually(t, "every partition has the newest position", func() bool {
		return !slices.ContainsFunc(places, func(p topicPartition) bool { r := b.of(p); return r[len(r)-1].Position != 50 })
	})
	most := int(time.Since(begun)/often) + 2
	carrying := topicPartition{"chat-events", envelope.Partition("conversation:1", 3)}
	for _, p := range places {
		records := b.of(p)
		told := len(slices.DeleteFunc(slices.Clone(records), func(e envelope.Event) bool { return !e.IsPosition() }))
		if told > most || p == carrying && told > 1+1 {
			t.Errorf("%v got %d position records", p, told)
		}
		for i, e := range records {
			if i > 0 && (e.Before != records[i-1].Position || e.Position <= e.Before) {
				t.Errorf("%v: record %d names %d as the previous position, not %d", p, e.Position, e.Before, records[i-1].Position)
			}
		}
	}
	quiet := len(b.of(carrying))
	retry.Sleep(t.Context(), 3*often)
	if got := len(b.of(carrying)); got != quiet {
		t.Errorf("the log does not move, but %d records came", got-quiet)
	}
	checkRead(t, l, b)
}

func TestRelay_ReportsThatItIsAlive(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	relaying(t, l, b, func(r *Relay) { r.o.SignOfLife = 100 * time.Millisecond })
	commit(t, l, said("1", "a"))
	meshtest.Eventually(t, "signs of life in every partition", func() bool {
		for p := range int32(3) {
			if r := b.of(topicPartition{"chat-events", p}); len(r) < 6 || r[len(r)-1].Position != 1 {
				return false
			}
		}
		return true
	})
	checkRead(t, l, b)
}

// Two instances commit, and one of them relays. The commits of both instances must be published at once, and not only
// when the relay polls.
func TestRelay_WakesAtOnce(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	b := newBroker()
	relaying(t, l, b)
	commit(t, other, said("1", "first"))
	meshtest.Eventually(t, "the relay leads", func() bool { return b.events() == 1 })
	for who, instance := range map[string]*eventlog.Log{"its own": l, "another's": other} {
		var delays []time.Duration
		for i := range 20 {
			c := commit(t, instance, said("1", fmt.Sprint(who, i)))
			begun := time.Now()
			var at time.Time
			meshtest.Eventually(t, "the event is published", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				var ok bool
				at, ok = b.arrived[c.Position]
				return ok
			})
			delays = append(delays, at.Sub(begun))
		}
		slices.Sort(delays)
		t.Logf("commits of %s instance are published after %v, at most %v", who, delays[10], delays[19])
		if delays[10] > 200*time.Millisecond {
			t.Errorf("commits of %s instance wait", who)
		}
	}
}

func TestRelay_WaitsForTheBrokerAndReportsIt(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var told []string
	l := running(t, database(t), func(o *eventlog.Options) {
		o.Waiting = func(dependency string, err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(dependency, " ", err != nil))
		}
	})
	b := newBroker()
	var away atomic.Bool
	away.Store(true)
	b.fault = func(string, int) (func(int) bool, error) {
		if away.Load() {
			return func(int) bool { return false }, errors.New("away")
		}
		return func(int) bool { return true }, nil
	}
	relaying(t, l, b)
	commit(t, l, said("1", "a"))
	said := func(n int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == n }
	}
	meshtest.Eventually(t, "the relay reports that it waits", said(1))
	away.Store(false)
	meshtest.Eventually(t, "the event is published", func() bool { return b.events() == 1 })
	meshtest.Eventually(t, "the relay reports that it continues", said(2))
	if want := []string{"kafka true", "kafka false"}; !slices.Equal(told, want) {
		t.Errorf("reported %q", told)
	}
}

// A command is committed and its event is published. The trace of the command must continue to the record. The trace
// spans of the transaction and of the relay's batch serve several commands, so they must be linked with the spans of
// the command and not be their parents.
func TestTrace_GoesFromTheCommandToTheRecord(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tracer := trace.NewTracerProvider(trace.WithSyncer(spans)).Tracer("test")
	l := running(t, database(t), func(o *eventlog.Options) { o.Tracer = tracer })
	b := newBroker()
	relaying(t, l, b)
	w := said("1", "c")
	w.Commands[0].TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	commit(t, l, w)
	meshtest.Eventually(t, "the event is published", func() bool { return b.events() == 1 })
	find := func(name string) (s tracetest.SpanStub) {
		meshtest.Eventually(t, "span "+name, func() bool {
			for _, s = range spans.GetSpans() {
				if s.Name == name {
					return true
				}
			}
			return false
		})
		return s
	}
	appended, committed := find("append chat"), find("commit chat")
	send, relayed := find("send chat-events"), find("relay chat")
	if got := appended.Parent.SpanID().String(); got != "b7ad6b7169203331" {
		t.Errorf("append is a child of %s", got)
	}
	if parent := appended.SpanContext; send.Parent.SpanID() != parent.SpanID() ||
		send.SpanContext.TraceID() != parent.TraceID() {
		t.Error("send is not a child of append")
	}
	if committed.Parent.IsValid() || relayed.Parent.IsValid() {
		t.Error("the span of the transaction or of the batch has a parent")
	}
	for _, s := range []struct{ from, to tracetest.SpanStub }{
		{appended, committed}, {committed, appended}, {send, relayed},
	} {
		if len(s.from.Links) != 1 || s.from.Links[0].SpanContext.SpanID() != s.to.SpanContext.SpanID() {
			t.Errorf("%s is not linked with %s", s.from.Name, s.to.Name)
		}
	}
	p := topicPartition{"chat-events", envelope.Partition("conversation:1", 3)}
	records := b.of(p)
	i := slices.IndexFunc(records, func(e envelope.Event) bool { return !e.IsPosition() })
	want := fmt.Sprintf("00-%s-%s-01", send.SpanContext.TraceID(), send.SpanContext.SpanID())
	if records[i].TraceParent != want {
		t.Errorf("the record continues %s, want %s", records[i].TraceParent, want)
	}
}

// refusing is a broker that permanently refuses the event of one command.
type refusing struct {
	*broker
	cause string
}

func (r refusing) Publish(topic string, messages ...*message.Message) error {
	var others []*message.Message
	failed := &bus.PublishError{Topic: topic, Messages: len(messages)}
	for _, m := range messages {
		if e, err := envelope.ReadEvent(m); err == nil && e.Cause == r.cause {
			failed.Failed = append(failed.Failed, bus.FailedMessage{Message: m, Err: errors.New("too large")})
			continue
		}
		others = append(others, m)
	}
	if err := r.broker.Publish(topic, others...); err != nil || len(failed.Failed) == 0 {
		return err
	}
	return failed
}

// One relay leads, and the standby loses its session. Once the standby can reach the database again, it must report
// that it no longer waits, although it does not get the lease.
func TestRelay_StandingByIsHealthy(t *testing.T) {
	t.Parallel()
	url := database(t)
	leads, b := running(t, url), newBroker()
	relaying(t, leads, b)
	commit(t, leads, said("1", "a"))
	meshtest.Eventually(t, "the first relay leads", func() bool { return b.events() == 1 })
	var away, back atomic.Int64
	standby := instance(t, pgtest.Named(t, url, "standby"), func(o *eventlog.Options) {
		o.Waiting = func(_ string, err error) {
			if err != nil {
				away.Add(1)
			} else {
				back.Add(1)
			}
		}
	})
	relaying(t, standby, b)
	meshtest.Eventually(t, "the session of the standby is ended", func() bool {
		_, err := leads.Options().Pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'standby' AND datname = current_database() AND query LIKE '%pg_try_advisory_lock%'`)
		return err == nil && away.Load() > 0
	})
	meshtest.Eventually(t, "the standby reports that it continues", func() bool { return back.Load() == away.Load() })
}

func TestSampled_ReadsTheFlags(t *testing.T) {
	t.Parallel()
	for traceparent, want := range map[string]bool{
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": true,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03": true, // sampled, with a random trace id
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00": false,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02": false,
		"": false,
	} {
		if got := sampled(traceparent); got != want {
			t.Errorf("%q: %t", traceparent, got)
		}
	}
}
