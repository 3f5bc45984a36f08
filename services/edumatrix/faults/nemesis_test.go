//go:build integration

package faults

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
)

// nemesis begins and ends the faults of a plan. It must be used by the test's goroutine only.
type nemesis struct {
	t        testing.TB
	m        *mesh
	p        *population
	random   *rand.Rand
	actions  []action
	poisoned []Poison
	hits     []hit
}

// action is a function to call at a given time.
type action struct {
	at time.Time
	do func()
}

// hit is a fault that has begun, with the numbers of commands at that time.
type hit struct {
	Fault
	sent, open int // the number of commands sent so far, and how many of them had no outcome yet
}

func newNemesis(t testing.TB, m *mesh, p *population) *nemesis {
	return &nemesis{t: t, m: m, p: p, random: p.random(1)}
}

// run executes the plan. It returns when at least the given number of commands has been sent and all faults are over.
// After 4 minutes, it gives up and records a broken promise.
func (n *nemesis) run(plan Plan, commands int) {
	pending := slices.Clone(plan.Faults)
	var again time.Time
	for end := time.Now().Add(4 * time.Minute); ; {
		sent, open, more := n.p.h.Sent()
		if time.Now().After(end) {
			n.m.broken("after 4 minutes, %d of %d commands were sent and %d faults have not begun", sent, commands,
				len(pending))
			break
		}
		if len(pending) > 0 && sent >= pending[0].After && open > 0 && !time.Now().Before(again) {
			if f := pending[0]; n.begin(f) {
				n.t.Logf("%s: %v, for %v", time.Now().Format(clock), f, f.For)
				n.hits = append(n.hits, hit{f, sent, open})
				pending = pending[1:]
			} else { // the target is unavailable now, so try again later
				again = time.Now().Add(200 * time.Millisecond)
			}
		}
		n.due()
		if sent >= commands && len(pending)+len(n.actions) == 0 {
			break
		}
		n.m.watch()
		wait := time.NewTimer(20 * time.Millisecond)
		select {
		case <-more:
		case <-wait.C:
		}
		wait.Stop()
	}
	n.heal()
}

func (n *nemesis) after(d time.Duration, do func()) {
	n.actions = append(n.actions, action{time.Now().Add(d), do})
}

func (n *nemesis) due() {
	for {
		now := time.Now()
		i := slices.IndexFunc(n.actions, func(a action) bool { return !a.at.After(now) })
		if i < 0 {
			return
		}
		a := n.actions[i]
		n.actions = slices.Delete(n.actions, i, i+1)
		a.do()
	}
}

// heal ends all faults that have not ended yet, and waits until the mesh is ready.
func (n *nemesis) heal() {
	for len(n.actions) > 0 {
		a := n.actions[0]
		n.actions = n.actions[1:]
		a.do()
	}
	for _, l := range n.m.links {
		n.mend(l)
	}
	n.m.awaitReady(2 * time.Minute)
}

func (n *nemesis) mend(l *Link) {
	if err := l.Mend(); err != nil {
		n.t.Fatal(err)
	}
}

// begin begins a fault and schedules its end. It returns false if the target of the fault is unavailable at the moment.
func (n *nemesis) begin(f Fault) bool {
	f.Times = max(1, f.Times)
	switch {
	case slices.Contains(stores, f.On) && slices.Contains([]string{"kill", "freeze", "freeze, then kill", "empty",
		"rewind", "forget", "lose the tail"}, f.Kind):
		return n.store(f)
	case slices.Contains([]string{"cut", "reset", "silence", "delay", "throttle"}, f.Kind):
		n.link(f)
	case f.Kind == "kill all services":
		n.killAll(f)
	case f.Kind == "hold a transaction open":
		return n.hold(f, `SELECT count(*), pg_current_xact_id() FROM chat.events`)
	case f.Kind == "hold the append lock":
		return n.hold(f, fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", appendLock(f.On)))
	case f.Kind == "poison":
		return n.poison()
	case f.Kind == "slow client":
		n.p.devices[n.random.IntN(len(n.p.devices))].slowDown(f.For)
		n.after(f.For, func() {})
	default:
		return n.service(f)
	}
	return true
}

func (n *nemesis) service(f Fault) bool {
	x := n.m.service(f.On)
	if !x.Running() || x.frozen {
		return false
	}
	start := func() {
		if !x.wanted {
			n.m.start(x)
		}
	}
	switch f.Kind {
	case "kill":
		each := f.For / time.Duration(f.Times)
		for i := range f.Times {
			n.after(time.Duration(i)*(each+700*time.Millisecond), func() {
				n.m.kill(x)
				n.after(each/2, start)
			})
		}
		n.due()
	case "stop long":
		n.m.kill(x)
		n.after(f.For, start)
	case "stop until forgotten":
		n.m.kill(x)
		n.after(f.For, func() {
			if !n.forget() {
				n.after(time.Second, func() { n.forget() }) // try again, because Kafka was unavailable
			}
			start()
		})
	case "freeze", "freeze long":
		n.m.freeze(x)
		n.after(f.For, func() { n.m.thaw(x) })
	default:
		n.t.Fatalf("unknown fault: %s %s", f.Kind, f.On)
	}
	return true
}

func (n *nemesis) killAll(f Fault) {
	for _, x := range n.m.services {
		n.m.kill(x)
	}
	n.after(f.For, func() {
		for _, x := range n.m.services {
			if !x.wanted {
				n.m.start(x)
			}
		}
	})
}

// store begins a fault of a store. It returns false if the store is unavailable, for example because another fault has
// stopped it.
func (n *nemesis) store(f Fault) bool {
	if slices.Contains(n.m.away, f.On) {
		return false
	}
	s := n.m.stand.store(f.On)
	takeAway := func() { n.m.away = append(n.m.away, f.On) }
	switch f.Kind {
	case "empty":
		n.m.stand.emptyRedis(n.t)
	case "forget":
		return n.forget()
	case "rewind": // restore what Redis contained when the fault began
		takeAway()
		n.m.stand.redis.Snapshot()
		n.after(f.For, func() {
			s.Kill()
			n.m.stand.redis.Rewind()
			n.back(f.On, s.Start)()
		})
	case "lose the tail":
		takeAway()
		data := n.m.stand.kafkaData()
		s.Kill()
		n.tear(data, "chat-events")
		n.after(f.For, n.back(f.On, s.Start))
	case "kill":
		takeAway()
		s.Kill()
		n.after(f.For, n.back(f.On, s.Start))
	case "freeze":
		takeAway()
		s.Freeze()
		n.after(f.For, n.back(f.On, s.Thaw))
	case "freeze, then kill":
		takeAway()
		s.Freeze()
		n.after(f.For, func() {
			s.Kill()
			n.after(2*time.Second, n.back(f.On, s.Start))
		})
	}
	return true
}

func (n *nemesis) back(store string, start func()) func() {
	return func() {
		start()
		n.m.away = slices.DeleteFunc(n.m.away, func(s string) bool { return s == store })
	}
}

func (n *nemesis) link(f Fault) {
	l := n.m.links[f.On]
	if l == nil {
		n.t.Fatalf("no link %q", f.On)
	}
	bad := Conditions{}
	switch f.Kind {
	case "cut":
		each := f.For / time.Duration(f.Times)
		for i := range f.Times {
			n.after(time.Duration(i)*(each+200*time.Millisecond), func() {
				l.Cut()
				n.after(each, func() { n.mend(l) })
			})
		}
		n.due()
		return
	case "reset":
		bad.Reset = true
	case "silence":
		bad.Silent = true
	case "delay":
		bad.Delay = time.Duration(50+n.random.IntN(350)) * time.Millisecond
	case "throttle":
		bad.Rate = 10_000 + n.random.IntN(90_000)
	}
	l.Change(bad)
	n.after(f.For, func() { n.mend(l) })
}

// appendLock returns the key of the advisory lock that every commit on the owner's log takes.
func appendLock(owner string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("eventlog/" + owner + "/append"))
	return int64(h.Sum64())
}

// hold runs a statement in a transaction and keeps the transaction open until the fault ends. It returns false if the
// database is unavailable or the statement fails.
func (n *nemesis) hold(f Fault, statement string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, n.m.stand.database(n.m.database, n.m.stand.postgres.Addr()))
	if err != nil {
		n.t.Logf("%v: the database is unavailable: %v", f, err)
		return false
	}
	if _, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ"); err == nil {
		_, err = conn.Exec(ctx, statement)
	}
	if err != nil {
		n.t.Logf("%v: %v", f, err)
		_ = conn.Close(ctx)
		return false
	}
	n.after(f.For, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may have closed the connection already
	})
	return true
}

// consumed are the topics whose consumers write dead letters.
var consumed = []string{catalog.CommandTopic("chat"), catalog.CommandTopic("feed"), catalog.CommandTopic("presence"),
	"chat-events"}

// poison publishes three unreadable payloads to each topic except the topics of dead letters. The services that read
// the topics in the variable consumed must turn each payload into a dead letter. Gateways, which read the topics of
// events and of outcomes, must skip the payloads. poison returns false if Kafka has not confirmed the first payload.
func (n *nemesis) poison() bool {
	k := n.m.stand.brokers(n.m.prefix + ".")
	producer, err := impatient(k)
	if err != nil {
		n.t.Logf("poison: %v", err)
		return false
	}
	defer producer.Close()
	taken := 0
	topics := slices.Clone(consumed)
	for _, t := range n.m.catalog.Topics("") {
		if !slices.Contains(topics, t.Name) && t.Name != catalog.DeadLetterTopic(t.Owner) {
			topics = append(topics, t.Name)
		}
	}
	for _, topic := range topics {
		for _, headers := range [][]kgo.RecordHeader{nil, {header("ce_type", "chat.send_message")}, {
			header("ce_specversion", "1.0"), header("ce_id", fmt.Sprintf("poison-%d", len(n.poisoned))),
			header("ce_type", "chat.unheard_of"), header("ce_source", "/gateway"),
			header("ce_subject", "conversation:poison"), header("ce_actor", "poisoner"),
			header("ce_time", time.Now().UTC().Format(time.RFC3339Nano))}} {
			p := Poison{Topic: topic, Payload: fmt.Sprintf("poison %d for %s \xff\x00", len(n.poisoned), topic)}
			err := producer.ProduceSync(context.Background(), &kgo.Record{Topic: k.Topic(topic), Headers: headers,
				Value: []byte(p.Payload), Key: []byte("conversation:poison")}).FirstErr()
			if err != nil && taken == 0 {
				n.t.Logf("poison: Kafka is unavailable: %v", err)
				return false
			}
			// After an error, it is unknown whether the record was published.
			p.Dead = err == nil && slices.Contains(consumed, topic)
			if err == nil {
				taken++
			}
			n.poisoned = append(n.poisoned, p)
		}
	}
	return taken > 0
}

func header(key, value string) kgo.RecordHeader {
	return kgo.RecordHeader{Key: key, Value: []byte(value)}
}

// impatient returns a client with short timeouts, because a fault may have made the broker unavailable for a while.
func impatient(k backend.Kafka, more ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append(append(k.Options(), kgo.DialTimeout(time.Second),
		kgo.RequestTimeoutOverhead(3*time.Second), kgo.ProduceRequestTimeout(time.Second), kgo.RequestRetries(2),
		kgo.RecordRetries(2)), more...)...)
}
