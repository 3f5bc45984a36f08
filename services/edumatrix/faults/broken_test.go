//go:build integration

package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/config"
)

// variableBroken is the environment variable that makes TestBroken_IsCaught run the broken programs. Without it, the
// test only checks that the changed packages can be built.
const variableBroken = "FAULTS_BROKEN"

// mistake is a change of the mesh's source files that breaks a promise. The build uses changed copies of the files
// instead of the originals.
type mistake struct {
	name    string
	changes []change
	faults  []Fault // the faults during which the mistake breaks the promise
	breaks  []string
}

var mistakes = []mistake{
	{
		name: "acks off",
		changes: []change{{"shared/backend/client.go", `		kgo.RequiredAcks(kgo.AllISRAcks()),
`, `		kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite(),
`}},
		faults: []Fault{
			{Kind: "freeze, then kill", On: "kafka", After: 400, For: 2 * time.Second, Times: 1},
			{Kind: "freeze, then kill", On: "kafka", After: 900, For: 2 * time.Second, Times: 1},
			{Kind: "kill", On: "kafka", After: 1300, For: time.Second, Times: 1},
		},
		breaks: []string{topicsHave, kept},
	},
	{
		// Saving the checkpoint too late would break no promise: a reaction that runs again derives the same ids, so the log
		// drops the repeated effects. Therefore this mistake commits the checkpoint too early, before the effects. A kill
		// between the two commits then loses the effects. The pause between the commits makes such a kill likely, even on
		// fast machines. Nevertheless only a few kills happen between the commits, because the consumer group needs some
		// seconds after each kill until it consumes again.
		name: "checkpoint saved before the transaction",
		changes: []change{{"shared/owner/consume/batch.go", `			_, err := a.o.Commit(a.ctx, commands, w)
			return err
`, `			if _, err := a.o.Log.Commit(a.ctx, eventlog.Write{Expected: eventlog.AnyVersion, Advance: w.Advance}); err != nil {
				return err
			}
			if len(commands) == 0 && len(w.Appends) == 0 {
				return nil
			}
			time.Sleep(50 * time.Millisecond)
			_, err := a.o.Commit(a.ctx, commands, eventlog.Write{Expected: eventlog.AnyVersion, Appends: w.Appends})
			return err
`}},
		faults: []Fault{
			{Kind: "kill", On: "notification", After: 200, For: 2 * time.Second, Times: 5},
			{Kind: "kill", On: "notification", After: 900, For: 2 * time.Second, Times: 5},
			{Kind: "kill", On: "notification", After: 1600, For: 2 * time.Second, Times: 5},
		},
		breaks: []string{oneOutcome},
	},
	{
		name: "positions drawn before the lock",
		changes: []change{
			{"shared/eventlog/log.go", `	if _, err := l.readClock(ctx); err != nil {
		return nil, err
	}
	return l, nil
`, `	if _, err := l.readClock(ctx); err != nil {
		return nil, err
	}
	_, err := o.Pool.Exec(ctx, "CREATE SEQUENCE IF NOT EXISTS "+o.Owner+".drawn INCREMENT 5000")
	return l, err
`},
			{"shared/eventlog/committer.go", `	b := t.guard()
	deciding := t.queueLoads(b)
`, `	var drawn catalog.Position
	if err := t.conn.QueryRow(ctx, "SELECT nextval('"+t.log.o.Owner+".drawn')").Scan(&drawn); err != nil {
		return nil, err
	}
	b := t.guard()
	deciding := t.queueLoads(b)
`},
			{"shared/eventlog/committer.go", `	t.admission.owner = `, `	t.admission.position = drawn
	t.admission.owner = `},
		},
		faults: []Fault{
			{Kind: "delay", On: "postgres of chat-1", After: 300, For: 3 * time.Second, Times: 1},
			{Kind: "delay", On: "postgres of chat-2", After: 900, For: 3 * time.Second, Times: 1},
			{Kind: "freeze", On: "chat-1", After: 1300, For: 2 * time.Second, Times: 1},
		},
		breaks: []string{topicsHave, clientsSee},
	},
}

// TestBroken_IsCaught builds the mesh with each mistake, and checks that the suite finds the mistake. See
// variableBroken.
func TestBroken_IsCaught(t *testing.T) {
	var s *stand
	if os.Getenv(variableBroken) != "" {
		s = newStand(t)
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			overlay, err := overlay(t.TempDir(), append(slices.Clone(clocks), m.changes...))
			require.NoError(t, err)
			if s == nil { // only check that the changed packages can be built
				for _, c := range m.changes {
					compile := exec.Command("go", "build", overlay, "./"+path.Dir(c.file))
					compile.Dir = filepath.Join("..", "..", "..")
					out, err := compile.CombinedOutput()
					require.NoError(t, err, "%s", out)
				}
				return
			}
			broken, err := meshrun.Build(config.Services(), overlay)
			require.NoError(t, err)
			t.Cleanup(broken.Remove)
			m.caught(t, s, broken)
		})
	}
}

// caught runs the faults of the mistake until Check reports that one of the promises in m.breaks is broken. It fails
// the test after three runs without such a report.
func (m mistake) caught(t *testing.T, s *stand, broken meshrun.Binaries) {
	const tries = 3
	size := size{clients: 20, commands: 2200, faults: len(m.faults), rate: 220}
	for seed := uint64(1); seed <= tries; seed++ {
		r := run(t, s, broken, Plan{Seed: seed, Faults: m.faults}, size)
		for _, v := range r.violations {
			for _, promise := range m.breaks {
				if v.Promise == promise {
					fmt.Printf("%s: caught with seed %d (%v), %d violations, the first one of that promise:\n\t%v\n", m.name, seed, r.plan,
						len(r.violations), v)
					return
				}
			}
		}
		t.Logf("seed %d: not caught; violations: %v", seed, r.violations)
	}
	t.Errorf("%s was not caught in %d runs", m.name, tries)
}
