//go:build integration

package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/retry"
)

// talk stands in for the service chat. It has a log in memory, and publishes the log's events on chat's topic.
type talk struct {
	meshv1connect.OwnerServiceClient
	t         *testing.T
	url       string
	kafka     backend.Kafka
	catalog   *catalog.Catalog
	publisher *bus.Publisher

	mu       sync.Mutex
	log      []envelope.Event
	versions map[string]catalog.Version
	chain    map[int32]catalog.Position
}

func newTalk(t *testing.T) *talk {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	k := &talk{t: t, url: meshtest.Postgres(t), kafka: meshtest.EmbeddedKafka(t), catalog: c, versions: map[string]catalog.Version{},
		chain: map[int32]catalog.Position{}}
	_, err = k.kafka.EnsureTopics(t.Context(), c.Topics(""))
	require.NoError(t, err)
	k.publisher, err = bus.NewPublisher(k.kafka, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = k.publisher.Close() })
	return k
}

const talkPartitions = 3

// say makes ann send messages in a conversation: it appends their events to the log and publishes the events.
func (k *talk) say(conversation string, bodies ...string) {
	k.t.Helper()
	k.publish(k.write(conversation, bodies...)...)
}

// write is like say, but does not publish the events that it appends to the log.
func (k *talk) write(conversation string, bodies ...string) (said []envelope.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, body := range bodies {
		stream := "conversation:" + conversation
		k.versions[stream]++
		raw, _ := proto.Marshal(&chatv1.MessageSent{ConversationId: conversation, MessageId: "m", Body: body})
		position, n := catalog.Position(len(k.log))+1, envelope.Partition(stream, talkPartitions)
		e := envelope.Event{ID: fmt.Sprint("event-", position), Type: "chat.message_sent", Source: "chat", Stream: stream,
			Version: k.versions[stream], Position: position, Before: k.chain[n], Time: time.Now().UTC(), Actor: "ann", Body: raw,
			Class: routingv1.Class_CLASS_DURABLE, Incarnation: "i", Epoch: 1, Partitions: talkPartitions}
		k.chain[n] = position
		k.log, said = append(k.log, e), append(said, e)
	}
	return said
}

func (k *talk) publish(events ...envelope.Event) {
	k.t.Helper()
	for _, e := range events {
		m := e.Message()
		m.Metadata.Set(bus.MetadataPartition, strconv.Itoa(int(envelope.Partition(e.Stream, talkPartitions))))
		require.NoError(k.t, k.publisher.Publish("chat-events", m))
	}
}

// publishPosition publishes, in each partition, a record that contains the log's last position.
func (k *talk) publishPosition() {
	k.t.Helper()
	for n := range int32(talkPartitions) {
		e := envelope.Position("chat", catalog.Position(len(k.log)), k.chain[n])
		e.Epoch, e.Partitions, e.Incarnation = 1, talkPartitions, "i"
		k.chain[n] = catalog.Position(len(k.log))
		m := e.Message()
		m.Metadata.Set(bus.MetadataPartition, strconv.Itoa(int(n)))
		require.NoError(k.t, k.publisher.Publish("chat-events", m))
	}
}

func (k *talk) ReadLog(_ context.Context, r *connect.Request[meshv1.ReadLogRequest]) (
	*connect.Response[meshv1.ReadLogResponse], error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	head := int64(len(k.log))
	page := &meshv1.ReadLogResponse{Head: head, Complete: max(head, r.Msg.GetAfter()), Incarnation: "i"}
	if until := r.Msg.GetUntil(); until > 0 {
		page.Complete = min(page.Complete, max(until, r.Msg.GetAfter()))
	}
	for _, e := range k.log {
		if e.Position > catalog.Position(r.Msg.GetAfter()) && e.Position <= catalog.Position(page.Complete) &&
			(r.Msg.GetStream() == "" || r.Msg.GetStream() == e.Stream) {
			page.Records = append(page.Records, e.Record("chat-events"))
		}
	}
	return connect.NewResponse(page), nil
}

// reactTo is the reaction of the toy service: the text of a message is a list of effects, separated by "; ". Each
// effect is a verb with words, such as "note ann hello".
func reactTo(_ envelope.Event, event proto.Message) (effects []consume.Effect) {
	for _, one := range strings.Split(event.(*chatv1.MessageSent).GetBody(), "; ") {
		words := strings.SplitN(one, " ", 3)
		switch f := (consume.Effect{}); words[0] {
		case "note": // user, text
			f.Command = &toyv1.WriteNote{UserId: words[1], Text: words[2]}
			effects = append(effects, f)
		case "append": // user, text
			f.Stream, f.Events = "diary:"+words[1], []proto.Message{&toyv1.NoteWritten{UserId: words[1], Text: words[2]}}
			effects = append(effects, f)
		case "open": // circle, user; the circle is named after the user
			f.Command = &toyv1.OpenCircle{CircleId: words[1], Name: words[2], UserIds: []string{words[2]}}
			effects = append(effects, f)
		case "leave": // circle, user
			f.Command = &toyv1.LeaveCircle{CircleId: words[1], UserId: words[2]}
			effects = append(effects, f)
		case "mark": // circle, number
			n, _ := strconv.ParseInt(words[2], 10, 64)
			f.Command = &toyv1.MarkRead{CircleId: words[1], UpTo: n}
			effects = append(effects, f)
		case "many": // number of users
			n, _ := strconv.Atoi(words[1])
			for i := range n {
				effects = append(effects, consume.Effect{Command: &toyv1.WriteNote{UserId: fmt.Sprint("many", i), Text: "x"}})
			}
		case "both": // an effect that has both a stream and a command, which is not valid
			effects = append(effects, consume.Effect{Stream: "diary:ann", Command: &toyv1.WriteNote{UserId: "ann"}})
		}
	}
	return effects
}

// reactor is an instance of the toy service that reacts to chat.
type reactor struct {
	*toy
	consumer *consume.Consumer
	stop     func()
}

// start runs an instance of the toy service that reacts to chat. The parameter change, if it is not nil, returns the
// function with which the consumer commits.
func (k *talk) start(change func(consume.Commit) consume.Commit) *reactor {
	k.t.Helper()
	r := &reactor{toy: newToy(k.t, k.url, nil)}
	work, stopWork := context.WithCancel(context.Background())
	o := consume.Options{Source: "chat", Topic: "chat-events", Since: consume.FromStart(), React: reactTo,
		Partitions: talkPartitions, Log: r.log, Commit: r.d.commitDeciding, Catalog: k.catalog, Owner: k,
		Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		o.Commit = change(o.Commit)
	}
	var err error
	r.consumer, err = consume.New(work, o)
	require.NoError(k.t, err)
	router, err := bus.NewRouter(bus.RouterOptions{Service: "toy", Publisher: k.publisher,
		DeadLetterTopic: catalog.DeadLetterTopic("toy")})
	require.NoError(k.t, err)
	subscriber, err := bus.NewSubscriber(k.kafka, bus.SubscriberOptions{Group: "toy", InOrder: true, Window: consume.Window,
		Drain: time.Second})
	require.NoError(k.t, err)
	router.AddConsumerHandler("toy", "chat-events", subscriber, r.consumer.Handle)
	var running sync.WaitGroup
	running.Go(func() { _ = router.Run(work) })
	<-router.Running()
	r.stop = sync.OnceFunc(func() {
		stopWork()
		_ = router.Close()
		r.consumer.Wait()
		running.Wait()
	})
	k.t.Cleanup(r.stop)
	return r
}

func (y *toy) eventually(what string, is func() bool) {
	y.t.Helper()
	meshtest.Eventually(y.t, what, is)
}

// consumed waits until the instance has applied all events of chat's log.
func (r *reactor) consumed(k *talk) {
	k.t.Helper()
	k.publishPosition()
	r.eventually("all partitions are stored", func() bool {
		return r.count(`SELECT count(*) FROM toy.checkpoints WHERE position >= $1 AND index = 0`, len(k.log)) == talkPartitions
	})
}

// notes returns the texts of a diary's notes, each with the number that the aggregate gave the note.
func (y *toy) notes(user string) (all []string) {
	y.t.Helper()
	for _, e := range y.events("diary:" + user) {
		m := &toyv1.NoteWritten{}
		require.NoError(y.t, proto.Unmarshal(e.Body, m))
		all = append(all, fmt.Sprint(m.Text, " ", m.Number))
	}
	return all
}

// outcomes returns the sorted outcomes of all commands of one type, each as its kind and its code, such as
// "refused name_taken".
func (y *toy) outcomes(name string) (all []string) {
	y.t.Helper()
	rows, err := y.pool.Query(y.t.Context(),
		`SELECT trim(kind || ' ' || code) FROM toy.outcomes WHERE type = $1 ORDER BY kind, code`, name)
	require.NoError(y.t, err)
	defer rows.Close()
	for rows.Next() {
		var one string
		require.NoError(y.t, rows.Scan(&one))
		all = append(all, one)
	}
	require.NoError(y.t, rows.Err())
	return all
}

// forget deletes the toy service's checkpoints, so that its next instance consumes the topic from the beginning.
func (y *toy) forget() {
	y.t.Helper()
	for _, table := range []string{"checkpoints", "consumers", "fences"} {
		_, err := y.pool.Exec(y.t.Context(), "DELETE FROM toy."+table)
		require.NoError(y.t, err)
	}
}

// A reaction returns a command for an event, and the event is delivered several times: twice to one instance, after a
// restart, and after all checkpoints were lost. The command must be decided once.
func TestReaction_ItsCommandIsDecidedOnce(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(nil)
	var want []string
	for i := range 20 {
		k.say(fmt.Sprint(i%4), fmt.Sprint("note u", i%4, " ", i))
	}
	k.publish(k.log[:10]...)
	for i := range 5 {
		want = append(want, fmt.Sprint(4*i, " ", i+1))
	}
	r.consumed(k)
	require.Equal(t, want, r.notes("u0"))
	r.stop()

	r = k.start(nil)
	k.publish(k.log...)
	r.consumed(k)
	require.Equal(t, want, r.notes("u0"))
	r.stop()

	r.forget()
	r = k.start(nil)
	k.publish(k.log...)
	r.consumed(k)
	require.Equal(t, want, r.notes("u0"))
	require.Len(t, r.outcomes("toy.write_note"), 20)
	require.Equal(t, 20, r.count(`SELECT count(*) FROM toy.events`))
	require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
}

// An instance is killed before or after it commits the commands of a reaction, or the result of the commit is lost.
// After consumption has continued, each command must have been decided once.
func TestReaction_KilledAroundACommit(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			k := newTalk(t)
			reached := make(chan struct{})
			once := sync.OnceFunc(func() { close(reached) })
			r := k.start(func(commit consume.Commit) consume.Commit {
				return func(ctx context.Context, commands []consume.Command, w eventlog.Write) (eventlog.Committed, error) {
					if len(commands) > 0 {
						if when == "after" {
							if _, err := commit(ctx, commands, w); err != nil {
								return eventlog.Committed{}, err
							}
						}
						once()
						<-ctx.Done()
						return eventlog.Committed{}, retry.Unavailable("postgres", ctx.Err())
					}
					return commit(ctx, commands, w)
				}
			})
			k.say("7", "note ann a", "note ann b")
			<-reached
			r.stop()
			r = k.start(nil)
			k.say("7", "note ann c")
			r.consumed(k)
			require.Equal(t, []string{"a 1", "b 2", "c 3"}, r.notes("ann"))
			require.Len(t, r.outcomes("toy.write_note"), 3)
		})
	}
	t.Run("without the answer", func(t *testing.T) {
		t.Parallel()
		k := newTalk(t)
		var lost sync.Map
		r := k.start(func(commit consume.Commit) consume.Commit {
			return func(ctx context.Context, commands []consume.Command, w eventlog.Write) (eventlog.Committed, error) {
				committed, err := commit(ctx, commands, w)
				if _, before := lost.LoadOrStore(w.Advance.From.Position, true); len(commands) > 0 && !before {
					return eventlog.Committed{}, retry.Unavailable("postgres", context.DeadlineExceeded)
				}
				return committed, err
			}
		})
		for _, text := range []string{"a", "b", "c"} {
			k.say("7", "note ann "+text)
			r.consumed(k)
		}
		require.Equal(t, []string{"a 1", "b 2", "c 3"}, r.notes("ann"))
		require.Len(t, r.outcomes("toy.write_note"), 3)
	})
}

// A command that a reaction returns is refused. A refusal is an outcome, so it must be stored, no stream may be parked,
// and later events must be applied.
func TestReaction_RefusedCommandsAreDone(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(nil)
	k.say("7", "open 1 bob", "open 2 bob", "mark 1 5", "note ann after")
	r.consumed(k)
	require.Equal(t, []string{"committed", "refused name_taken"}, r.outcomes("toy.open_circle"))
	require.Equal(t, []string{"refused not_a_member"}, r.outcomes("toy.mark_read"), "ann is not in the circle")
	require.Equal(t, []string{"after 1"}, r.notes("ann"))
	require.Empty(t, r.events("circle:2"))
	require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
}

// A command has the outcome "unchanged". Then another command changes the stream's state, and the event of the first
// command is delivered again. The stored outcome must count, and the first command must not be decided again.
func TestReaction_AnUnchangedOutcomeIsStored(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(nil)
	k.say("7", "leave 1 bob", "open 1 bob")
	r.consumed(k)
	require.Equal(t, []string{"unchanged"}, r.outcomes("toy.leave_circle"))
	r.stop()
	r.forget()
	r = k.start(nil)
	k.publish(k.log...)
	r.consumed(k)
	require.Len(t, r.events("circle:1"), 1, "bob was taken out of a circle that he had not been in")
}

// The reaction to one event returns several effects. Effects for one stream must keep their order, even if some are
// events and others are commands. When an effect is decided, the decision must take into account the events that
// earlier effects have added to other streams, and the memberships that earlier effects have ended.
func TestReaction_SeveralEffectsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(nil)
	k.say("7", "open 1 ann; open 2 ann; note ann x")
	k.say("8", "append bob a; note bob b; append bob c; note bob d", "note bob e; append bob f; note bob g")
	k.say("7", "mark 1 5; leave 1 ann; mark 1 6; note ann y")
	r.consumed(k)
	require.Equal(t, []string{"committed", "refused name_taken"}, r.outcomes("toy.open_circle"))
	require.Equal(t, []string{"a 0", "b 2", "c 0", "d 4", "e 5", "f 0", "g 7"}, r.notes("bob"))
	require.Equal(t, []string{"committed", "refused not_a_member"}, r.outcomes("toy.mark_read"))
	require.Equal(t, []string{"x 1", "left 1 0", "y 3"}, r.notes("ann"))
	require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
}

// The command for an event cannot be decided. The earlier events must be applied, and only the event's own stream must
// be parked. When the cause is fixed and the stream is retried, the event and the events that wait behind it must be
// applied, once and in order.
func TestReaction_ACommandThatCannotBeDecidedParksItsStream(t *testing.T) {
	t.Parallel()
	spoil := func(body string) func(*reactor) {
		return func(r *reactor) {
			_, err := r.pool.Exec(r.t.Context(), `UPDATE toy.events SET body = $1::bytea || body WHERE stream = 'diary:eve'`, []byte(body))
			require.NoError(r.t, err)
			r.d.states.take("diary:eve")
		}
	}
	for name, c := range map[string]struct {
		text         string
		break_, mend func(*reactor)
		problem      string
		applied      []string // notes that the message appends before its command fails
	}{
		"an error": {"fail", func(r *reactor) { r.wait.Store(true) }, func(r *reactor) { r.wait.Store(false) }, "requested by the test", []string{"p 0"}},
		"a panic":  {"panic", func(r *reactor) { r.wait.Store(true) }, func(r *reactor) { r.wait.Store(false) }, "requested by the test", []string{"p 0"}},
		"a fact that stays unknown": {"wait", func(r *reactor) { r.wait.Store(true) }, func(r *reactor) { r.wait.Store(false) },
			"the diary is not known yet", []string{"p 0"}},
		"a state that cannot be loaded": {"x", spoil("\x07"), func(r *reactor) {
			_, err := r.pool.Exec(r.t.Context(), `UPDATE toy.events SET body = substr(body, 2) WHERE stream = 'diary:eve'`)
			require.NoError(r.t, err)
		}, "fold diary:eve", []string{"p 0"}},
		"two effects for one stream": {"x; both", func(*reactor) {}, nil, "either events for a stream, or a command", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newTalk(t)
			r := k.start(nil)
			r.do("eve", &toyv1.WriteNote{UserId: "eve", Text: "first"})
			c.break_(r)
			// The effects of the second message are an event for pat's diary and then two commands. The event is
			// appended before the commands are decided.
			k.say("7", "note ann a", "append pat p; note ann b; note eve "+c.text, "note ann c")
			k.say("8", "note bob a", "note bob b")
			r.consumed(k)
			require.Equal(t, []string{"a 1"}, r.notes("ann"))
			require.Equal(t, []string{"a 1", "b 2"}, r.notes("bob"), "other streams are not affected")
			parked, err := r.log.Inbox().ParkedStream(t.Context(), "chat", "conversation:7")
			require.NoError(t, err)
			require.Len(t, parked, 1)
			require.EqualValues(t, 2, parked[0].Version)
			require.EqualValues(t, 1, parked[0].Waiting)
			require.Equal(t, c.applied, r.notes("pat"))
			require.Equal(t, len(c.applied), parked[0].Index)
			require.Contains(t, parked[0].Error, c.problem)
			done, err := r.consumer.Resolve(t.Context(), "conversation:7", 2, false)
			require.NoError(t, err)
			require.EqualValues(t, 2, done.Left)
			require.Contains(t, done.Problem, c.problem)
			require.Equal(t, []string{"a 1"}, r.notes("ann"))
			if c.mend == nil {
				return
			}
			c.mend(r)
			done, err = r.consumer.Resolve(t.Context(), "conversation:7", 2, false)
			require.NoError(t, err)
			require.Zero(t, done.Left)
			require.Equal(t, []string{"a 1", "b 2", "c 3"}, r.notes("ann"))
			require.Equal(t, []string{"first 1", c.text + " 2"}, r.notes("eve"))
			k.say("7", "note ann d")
			r.consumed(k)
			require.Equal(t, []string{"a 1", "b 2", "c 3", "d 4"}, r.notes("ann"))
			require.Equal(t, []string{"p 0"}, r.notes("pat"))
			require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
			// The topic delivers all events again. Their commands have the ids of the commands that the retry has
			// decided, so they must have no further effect.
			r.stop()
			r.forget()
			r = k.start(nil)
			k.publish(k.log...)
			r.consumed(k)
			require.Equal(t, []string{"a 1", "b 2", "c 3", "d 4"}, r.notes("ann"))
		})
	}
}

// The reaction to an event returns commands for 600 streams, but one transaction may change only 256. The commands must
// be decided in several transactions, and each command once.
func TestReaction_DecidesForManyStreams(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(nil)
	k.say("7", "many 600")
	r.consumed(k)
	r.stop()
	r = k.start(nil)
	k.say("7", "many 600")
	r.consumed(k)
	require.Equal(t, 600, r.count(`SELECT count(DISTINCT stream) FROM toy.events`))
	require.Equal(t, 1200, r.count(`SELECT count(*) FROM toy.events`))
	require.LessOrEqual(t, r.count(`SELECT max(n) FROM (SELECT count(DISTINCT stream) AS n FROM toy.events
		GROUP BY xmin::text) written`), 256)
	require.Equal(t, []string{"x 1", "x 2"}, r.notes("many599"))
}

// A command that a reaction returns depends on a fact that is not known yet, but is known at the next attempt. The
// command must be decided then, and its stream must not be parked.
func TestReaction_WaitsForAFactThatIsLate(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(nil)
	r.wait.Store(true)
	k.say("7", "note ann a; note ann wait once")
	r.consumed(k)
	k.say("7", "note ann b")
	r.consumed(k)
	require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
	require.Equal(t, []string{"a 1", "wait once 2", "b 3"}, r.notes("ann"))
}

// Reactions and other commands change one stream at the same time, on two instances. Each command must be decided on
// the current state of the stream. If another commit comes between decision and commit, the command must be decided
// again.
func TestReaction_RacesWithOtherCommands(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	r := k.start(func(commit consume.Commit) consume.Commit {
		return func(ctx context.Context, commands []consume.Command, w eventlog.Write) (eventlog.Committed, error) {
			committed, err := commit(ctx, commands, w)
			var conflict *eventlog.ConflictError
			if errors.As(err, &conflict) {
				t.Error(err)
			}
			return committed, err
		}
	})
	other := newToy(t, k.url, nil)
	const n = 40
	// After the second note, the state that the reaction's instance has cached is outdated.
	k.say("7", "note ann first")
	r.consumed(k)
	other.do("ann", &toyv1.WriteNote{UserId: "ann", Text: "second"})
	k.say("7", "note ann third")
	r.consumed(k)
	require.Equal(t, []string{"first 1", "second 2", "third 3"}, r.notes("ann"))
	var all sync.WaitGroup
	for _, y := range []*toy{other, r.toy} {
		all.Go(func() {
			for i := range n {
				y.do("ann", &toyv1.WriteNote{UserId: "ann", Text: fmt.Sprint("own ", i)})
			}
		})
	}
	for i := range n {
		k.say("7", fmt.Sprint("note ann ", i))
	}
	all.Wait()
	r.consumed(k)
	notes := r.notes("ann")
	require.Len(t, notes, 3+3*n)
	next := 0
	for i, note := range notes {
		require.True(t, strings.HasSuffix(note, fmt.Sprint(" ", i+1)), "note %d is %q", i+1, note)
		if i >= 3 && !strings.HasPrefix(note, "own ") {
			require.Equal(t, fmt.Sprint(next, " ", i+1), note, "in the order of the events")
			next++
		}
	}
	require.Equal(t, n, next)
	require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
}

// The partitions of a topic are read in a random order, some events are missing on the topic and are read from the
// owner's log, some are repeated, and the consumer restarts at random. The result must always be the same: of the
// numbers in the commands MarkRead, the marker contains the highest, and the notes of a conversation are in the order
// of its messages.
func TestReaction_LiveAndFilledRecordsInterleave(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 7))
			k := newTalk(t)
			r := k.start(nil)
			r.do("ann", &toyv1.OpenCircle{CircleId: "1", Name: "one", UserIds: []string{"ann"}})
			const conversations, each = 6, 30
			for i := range each {
				for c := range conversations {
					n := (i*37 + c*11) % (conversations * each) // each number once, but not in ascending order
					k.write(fmt.Sprint(c), fmt.Sprintf("append c%d %d; note c%d %d; mark 1 %d", c, i, c, i, n))
				}
			}
			// Publish the records of each partition in order, except for some that are left out. The next record is
			// always from a random partition.
			var partitions [talkPartitions][]envelope.Event
			for _, e := range k.log {
				n := envelope.Partition(e.Stream, talkPartitions)
				partitions[n] = append(partitions[n], e)
			}
			for left := len(k.log); left > 0; {
				n := random.IntN(talkPartitions)
				if len(partitions[n]) == 0 {
					continue
				}
				e := partitions[n][0]
				partitions[n], left = partitions[n][1:], left-1
				switch dice := random.IntN(10); {
				case dice < 4: // the record is left out
				case dice == 4: // the record is published twice, and an earlier record again
					k.publish(e, k.log[random.IntN(int(e.Position))], e)
				default:
					k.publish(e)
				}
				if random.IntN(conversations*each/2) == 0 {
					r.stop()
					r = k.start(nil)
				}
			}
			r.consumed(k)
			var want []string
			for i := range each {
				want = append(want, fmt.Sprint(i, " 0"), fmt.Sprint(i, " ", 2*i+2))
			}
			for c := range conversations {
				require.Equal(t, want, r.notes(fmt.Sprint("c", c)))
			}
			marked := &toyv1.Marked{}
			all := r.events("bookmark:1:ann")
			require.NoError(t, proto.Unmarshal(all[len(all)-1].Body, marked))
			require.EqualValues(t, conversations*each-1, marked.UpTo)
			require.Len(t, r.outcomes("toy.mark_read"), conversations*each)
			require.Zero(t, r.count(`SELECT count(*) FROM toy.parked_streams`))
		})
	}
}
