//go:build integration

package faults

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/config"
)

// The variables that `make faults` sets.
const (
	variableSeeds = "FAULTS_SEEDS" // the number of seeds to run
	variableSeed  = "FAULTS_SEED"  // the only seed to run, to repeat a run
	variableEach  = "FAULTS_EACH"  // if set, run every fault alone
	variableList  = "FAULTS_LIST"  // the file to which verdicts are added
)

// whole is the size of the runs of `make faults`, and short is the size of the runs of quickPlans. If variableEach is
// set, a run of `make faults` has a third of the commands.
var (
	whole = size{clients: 30, commands: 3000, faults: 3, rate: 220}
	short = size{clients: 10, commands: 500, rate: 100}
)

// quickPlans are the short plans that `make test` runs. Together they disturb every service, Kafka and
// PostgreSQL, but not Redis.
var quickPlans = []Plan{
	{Seed: 1, Faults: []Fault{
		{Kind: "kill", On: "chat-1", After: 60, For: time.Second, Times: 2},
		{Kind: "kill", On: "kafka", After: 200, For: time.Second},
		{Kind: "cut", On: "gateway-2", After: 350, For: 500 * time.Millisecond, Times: 2},
	}},
	{Seed: 2, Faults: []Fault{
		{Kind: "poison", After: 60},
		{Kind: "kill all services", After: 120, For: 500 * time.Millisecond},
		{Kind: "freeze, then kill", On: "postgres", After: 300, For: time.Second},
	}},
}

var programs meshrun.Binaries

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "edumatrix-overlay-")
	if err == nil {
		var flag string
		if flag, err = overlay(dir, clocks); err == nil {
			programs, err = meshrun.Build(config.Services(), flag)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	programs.Remove()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// TestFaults_NothingIsLostOrDuplicated runs quickPlans, or the plans that the variables of `make faults` select.
func TestFaults_NothingIsLostOrDuplicated(t *testing.T) {
	plans, size := chosen(t)
	s := newStand(t)
	for _, plan := range plans {
		t.Run(fmt.Sprintf("seed=%d", plan.Seed), func(t *testing.T) { run(t, s, programs, plan, size).report(t) })
	}
}

// chosen returns the plans that the environment variables select, or else quickPlans, and the size of the runs.
func chosen(t *testing.T) (plans []Plan, s size) {
	t.Helper()
	number := func(variable string) (n uint64, set bool) {
		value := os.Getenv(variable)
		if value == "" {
			return 0, false
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			t.Fatalf("%s must be a number: %v", variable, err)
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
	return quickPlans, short
}

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

// run executes one plan on a new mesh, and returns the result.
func run(t *testing.T, s *stand, programs meshrun.Binaries, plan Plan, size size) *result {
	t.Helper()
	t.Logf("seed %d: %v", plan.Seed, plan)
	begun := time.Now()
	m := newMesh(t, s, programs, plan)
	p := newPopulation(t, m, plan.Seed, size)
	p.begin(t)
	n := newNemesis(t, m, p)
	p.send()
	n.run(plan, size.commands)
	if !p.connected(60 * time.Second) {
		m.broken("not every client could connect")
	}
	m.present(p)
	p.settle(90 * time.Second)
	stored, err := m.quiet(p, n.poisoned)
	if err != nil {
		m.broken("afterwards: %v", err)
	}
	m.leave(p)
	m.stop()
	r := &result{plan: plan, hits: n.hits, violations: Check(p.h, stored, n.poisoned), took: time.Since(begun)}
	for _, problem := range m.problems {
		r.violations = append(r.violations, Violation{survives, problem})
	}
	r.commands, _, _ = p.h.Sent()
	r.sessions, r.resumed, r.seen = p.h.Counts()
	return r
}

// report prints the verdict. If variableList is set, it also adds the verdict to the list of verdicts. It fails the
// test if a promise was broken. It also fails the test if any fault of the plan never began, or began while no command
// was in flight, because such a fault has tested nothing.
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
		"%d sessions resumed %d times and saw %d events, %v\n", r.plan.Seed, verdict, r.commands, inFlight,
		len(r.plan.Faults), r.plan, r.sessions, r.resumed, r.seen, r.took.Round(time.Second))
	for _, v := range r.violations {
		t.Error(v)
	}
	if len(r.plan.Faults) > inFlight {
		t.Errorf("only %d of %d faults hit while commands were in flight", inFlight, len(r.plan.Faults))
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
	_, err = fmt.Fprintf(f, "%d\t%s\t%v\t%d\t%d\t%s\n", r.plan.Seed, commit(), r.plan, r.commands, inFlight, verdict)
	if err != nil {
		t.Fatal(err)
	}
}

// commit returns the id of the commit under test, with the suffix "-dirty" if there are changes that are not committed.
// Changes of the list of verdicts do not count, because the runs append to this list.
func commit() string {
	head, err := exec.Command("git", "rev-parse", "--short=10", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	changed, err := exec.Command("git", "status", "--porcelain", "--", ":/", ":(top,exclude)docs/faults.tsv").Output()
	if err != nil || len(changed) > 0 {
		return strings.TrimSpace(string(head)) + "-dirty"
	}
	return strings.TrimSpace(string(head))
}
