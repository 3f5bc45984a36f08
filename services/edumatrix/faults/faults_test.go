//go:build integration

package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
)

// What `make faults` sets.
const (
	variableSeeds = "FAULTS_SEEDS" // how many seeds to run
	variableSeed  = "FAULTS_SEED"  // which one to run (again)
	variableEach  = "FAULTS_EACH"  // run every fault alone
	variableList  = "FAULTS_LIST"  // the list to add verdicts to
)

// A run is to have as many clients and commands, at least, and as many faults.
var (
	whole = size{clients: 30, commands: 3000, faults: 3, rate: 220}
	short = size{clients: 10, commands: 600, faults: 3, rate: 120}
)

// shortSeeds are what `make test` runs.
var shortSeeds = []uint64{1, 2}

var programs meshrun.Binaries

func TestMain(m *testing.M) {
	var err error
	if programs, err = meshrun.Build([]string{"gateway", "presence", "chat", "feed", "notification"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	programs.Remove()
	os.Exit(status)
}

// TestFaults_NothingIsLostNothingTwice runs plans drawn from seeds: a fixed few, or what `make faults` asks for.
func TestFaults_NothingIsLostNothingTwice(t *testing.T) {
	plans, size := chosen(t)
	s := newStand(t)
	for _, plan := range plans {
		t.Run(fmt.Sprintf("seed=%d", plan.Seed), func(t *testing.T) { run(t, s, programs, plan, size).report(t) })
	}
}

// chosen are the plans that the environment asks for.
func chosen(t *testing.T) (plans []Plan, s size) {
	t.Helper()
	number := func(variable string) (n uint64, set bool) {
		value := os.Getenv(variable)
		if value == "" {
			return 0, false
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			t.Fatalf("%s has to be a number: %v", variable, err)
		}
		return n, true
	}
	if seed, set := number(variableSeed); set {
		return []Plan{NewPlan(seed, whole.faults, whole.commands)}, whole
	}
	if os.Getenv(variableEach) != "" {
		return Each(whole.commands / 3), size{clients: whole.clients, commands: whole.commands / 3, rate: whole.rate}
	}
	if seeds, set := number(variableSeeds); set {
		first := uint64(time.Now().Unix())
		for n := range seeds {
			plans = append(plans, NewPlan(first+n, whole.faults, whole.commands))
		}
		return plans, whole
	}
	for _, seed := range shortSeeds {
		plans = append(plans, NewPlan(seed, short.faults, short.commands))
	}
	return plans, short
}

// result is what came of a run.
type result struct {
	plan       Plan
	commands   int
	sessions   int
	resumed    int
	seen       int
	hits       []hit
	took       time.Duration
	violations []Violation
}

// run is one plan from an empty mesh to a verdict.
func run(t *testing.T, s *stand, programs meshrun.Binaries, plan Plan, size size) *result {
	t.Helper()
	t.Logf("seed %d: %v", plan.Seed, plan)
	begun := time.Now()
	m := newMesh(t, s, programs)
	p := newPopulation(t, m, plan.Seed, size)
	p.begin(t)
	n := newNemesis(t, m, p)
	p.send()
	n.run(plan, size.commands)
	p.settle(90 * time.Second)
	if !p.connected(60 * time.Second) {
		m.broken("not every client is connected")
	}
	stored, err := m.quiet(p)
	if err != nil {
		m.broken("afterwards: %v", err)
	}
	p.end()
	m.stop()
	r := &result{plan: plan, hits: n.hits, violations: Check(p.h, stored, n.poisoned), took: time.Since(begun)}
	for _, problem := range m.problems {
		r.violations = append(r.violations, Violation{survives, problem})
	}
	r.commands, _, _ = p.h.Sent()
	r.sessions, r.resumed, r.seen = p.h.Counts()
	return r
}

// quiet waits until everything that was sent has come everywhere, and reads what the stores hold.
func (m *mesh) quiet(p *population) (*Stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, m.stand.database(m.database, m.stand.postgres.Addr()))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	stored := &Stored{}
	if err := m.mark(ctx, conn, p); err != nil {
		return stored, err
	}
	var late []error // what is not there in the end the judge tells better
	waits, stop := context.WithTimeout(ctx, 45*time.Second)
	defer stop()
	for _, owner := range owners {
		late = append(late, poll(waits, "relay of "+owner, func() (string, error) {
			behind, err := column(ctx, conn, strings.ReplaceAll(`SELECT position::text FROM owner.relay
				WHERE position < (SELECT coalesce(max(position), 0) FROM owner.events)`, "owner", owner))
			return strings.Join(behind, ""), err
		}))
	}
	late = append(late, m.applied(waits, conn, "chat"), poll(waits, "readings", func() (string, error) {
		behind, err := column(ctx, conn, `SELECT stream FROM (SELECT stream, max(version) AS head FROM chat.events GROUP BY 1) c
			LEFT JOIN notification.readings r USING (stream) WHERE r.version IS DISTINCT FROM c.head`)
		return strings.Join(behind, " "), err
	}), p.seenAll(waits, ctx, conn, m))
	for _, err := range late {
		if err != nil {
			m.t.Log(err)
		}
	}
	for _, owner := range owners {
		l, err := readLog(ctx, conn, m.catalog, owner)
		if err != nil {
			return stored, err
		}
		stored.Logs = append(stored.Logs, l)
	}
	if stored.Records, stored.Dead, err = m.readTopics(ctx); err != nil {
		return stored, err
	}
	stored.Differences, err = m.rebuild(ctx, conn, "chat")
	return stored, err
}

// mark has a message sent into every conversation, so that everybody in it has something to see that was said when they
// were there for sure.
func (m *mesh) mark(ctx context.Context, conn *pgx.Conn, p *population) error {
	rows, err := conn.Query(ctx, `SELECT room, min(member) FROM chat.memberships WHERE closed_position IS NULL GROUP BY room`)
	if err != nil {
		return err
	}
	var room, member string
	marks := map[string]string{}
	if _, err := pgx.ForEachRow(rows, []any{&room, &member}, func() error { marks[room] = member; return nil }); err != nil {
		return err
	}
	n := 0
	for room, member := range marks {
		for _, d := range p.devices {
			if d.user == member {
				n++
				w := &worker{device: d, random: p.random(50_000 + n)}
				p.sending.Go(func() { w.say(conversationOf(room)) })
				break
			}
		}
	}
	p.settle(60 * time.Second)
	return nil
}

// seenAll waits until every session that lives has seen the newest event of every room of its user.
func (p *population) seenAll(waits, ctx context.Context, conn *pgx.Conn, m *mesh) error {
	l, err := readLog(ctx, conn, m.catalog, "chat")
	if err != nil {
		return err
	}
	members, heads := l.stretches(), l.heads()
	return poll(waits, "clients", func() (string, error) {
		for _, d := range p.devices {
			c := d.session()
			if c == nil {
				return d.name + " is not connected", nil
			}
			for stream, head := range heads {
				if within(members[stream][d.user], head) && p.h.Saw(c.session, stream) < head {
					return fmt.Sprintf("%s has seen %s up to %d of %d", d.name, stream, p.h.Saw(c.session, stream), head), nil
				}
			}
		}
		return "", nil
	})
}

// report prints the verdict, adds it to the list, and fails the test where a promise was broken.
func (r *result) report(t *testing.T) {
	t.Helper()
	inFlight, verdict := 0, "held"
	for _, h := range r.hits {
		if h.open > 0 {
			inFlight++
		}
	}
	if len(r.violations) > 0 || t.Failed() {
		verdict = "broken"
	}
	fmt.Printf("seed %d: %s; %d commands, %d of %d faults hit with commands in flight (%v), "+
		"%d sessions came back %d times and saw %d events, %v\n", r.plan.Seed, verdict, r.commands, inFlight,
		len(r.plan.Faults), r.plan, r.sessions, r.resumed, r.seen, r.took.Round(time.Second))
	for _, v := range r.violations {
		t.Error(v)
	}
	if len(r.plan.Faults) > inFlight {
		t.Errorf("%d of %d faults hit while commands were in flight", inFlight, len(r.plan.Faults))
	}
	list := os.Getenv(variableList)
	if list == "" {
		return
	}
	f, err := os.OpenFile(list, os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d\t%s\t%v\t%d\t%d\t%s\n", r.plan.Seed, commit(), r.plan, r.commands, inFlight, verdict); err != nil {
		t.Fatal(err)
	}
}

// commit is what is being run.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=10").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
