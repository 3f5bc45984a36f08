package eventlog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
)

// Any sequence of writes is passed to admit. Positions and versions must have no gaps, a write that is not admitted
// must have no effect, and each command must have one outcome.
func TestAdmission_LeavesNoGaps(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		first := catalog.Position(rapid.Int64Range(0, 5).Draw(t, "position"))
		a := &admission{owner: "chat", position: first, versions: map[string]catalog.Version{},
			outcomes: map[commandKey]outcome{},
			inbox:    inbox.NewAdmission()}
		a.inbox.FoundCheckpoint(inbox.SourcePartition{}, inbox.Checkpoint{}, 0)
		versions, outcomes := map[string]catalog.Version{}, map[commandKey]outcome{}
		var checkpoint inbox.Checkpoint
		var revision int64
		position := first
		for range rapid.IntRange(0, 30).Draw(t, "writes") {
			p := drawMember(t)
			repeated := false
			for _, e := range p.entries {
				_, has := outcomes[commandKey{e.actor, e.cause}]
				repeated = repeated || e.command && has
			}
			c, err := a.admit(p)
			var conflict *ConflictError
			var again *RepeatedError
			var stale *inbox.StaleCheckpointError
			var parked *inbox.ParkedChangedError
			switch {
			case repeated:
				if !errors.As(err, &again) {
					t.Fatalf("a repeated command: %v", err)
				}
				for i, r := range again.Outcomes {
					e := p.entries[i]
					if first := outcomes[commandKey{e.actor, e.cause}]; r.Code == "" && r != first.Outcome {
						t.Fatalf("%+v, first %+v", r, first)
					}
				}
				continue
			case p.inbox.Advance != nil && p.inbox.Advance.From != checkpoint:
				if !errors.As(err, &stale) || stale.Have != checkpoint {
					t.Fatalf("a stale checkpoint: %v", err)
				}
				continue
			case p.inbox.Advance != nil && p.inbox.Advance.Revision != revision:
				if !errors.As(err, &parked) {
					t.Fatalf("decided on outdated parked streams: %v", err)
				}
				continue
			case p.expected != AnyVersion && p.expected != versions[p.stream]:
				if !errors.As(err, &conflict) || conflict.Actual != versions[p.stream] {
					t.Fatalf("a conflict: %v", err)
				}
				continue
			case err != nil:
				t.Fatal(err)
			}
			results := c.Outcomes
			for _, e := range p.entries {
				position += catalog.Position(len(e.drafts))
				versions[e.stream] += catalog.Version(len(e.drafts))
				if r := results[0]; r.Version != versions[e.stream] || r.Position != position {
					t.Fatalf("%+v, want version %d position %d", r, versions[e.stream], position)
				}
				outcomes[commandKey{e.actor, e.cause}] = outcome{Outcome: results[0]}
				results = results[1:]
			}
			if p.inbox.Advance != nil {
				checkpoint = p.inbox.Advance.To
				revision += int64(len(p.inbox.Advance.Park))
			}
		}
		seen := map[string]int64{}
		for i, stream := range a.rows.streams {
			seen[stream]++
			if a.rows.positions[i] != int64(first)+int64(i+1) || a.rows.versions[i] != seen[stream] {
				t.Fatalf("row %d: position %d, %s version %d", i, a.rows.positions[i], stream, a.rows.versions[i])
			}
		}
		if len(a.rows.outcomes) != len(outcomes) || catalog.Position(len(a.rows.streams)) != position-first {
			t.Fatalf("%d outcomes, %d events", len(a.rows.outcomes), len(a.rows.streams))
		}
	})
}

func drawMember(t *rapid.T) *prepared {
	stream := fmt.Sprint("s", rapid.IntRange(0, 2).Draw(t, "stream"))
	p := &prepared{stream: stream, expected: catalog.Version(rapid.Int64Range(-1, 6).Draw(t, "expected"))}
	seen := map[string]bool{}
	for range rapid.IntRange(1, 3).Draw(t, "commands") {
		id := fmt.Sprint(rapid.IntRange(0, 15).Draw(t, "id"))
		if seen[id] {
			continue
		}
		seen[id] = true
		e := &entry{stream: stream, expected: AnyVersion, actor: "a", cause: id, commandType: "t", command: true,
			kind: envelope.Unchanged}
		for range rapid.IntRange(0, 2).Draw(t, "events") {
			e.kind = envelope.Committed
			e.drafts = append(e.drafts, draft{declared: &catalog.Event{}, place: catalog.Place{Stream: stream}})
		}
		p.entries = append(p.entries, e)
	}
	if rapid.Bool().Draw(t, "reads") {
		from := inbox.Checkpoint{Position: catalog.Position(rapid.Int64Range(0, 2).Draw(t, "from")), Index: rapid.IntRange(0, 1).Draw(t, "index")}
		p.inbox.Advance = &inbox.Advance{From: from, To: inbox.Checkpoint{Position: from.Position + 1},
			Revision: rapid.Int64Range(0, 1).Draw(t, "revision")}
		if rapid.Bool().Draw(t, "parks") {
			p.inbox.Advance.Park = []inbox.Parked{{Stream: stream}}
		}
	}
	return p
}

// membershipChanges puts the changes of memberships into rounds, each of which is written by one statement for the
// openings and one for the closings. The rounds in order must have the same result as the single changes in order.
func TestMembershipChanges_KeepTheOrderOfEachUser(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var all membershipChanges
		wanted := map[membershipKey][]catalog.Position{} // positions at which a membership changed
		open := map[membershipKey]bool{}
		turn := func(m catalog.Membership, opens bool, position catalog.Position) {
			for _, user := range m.Users {
				if k := (membershipKey{m.Room, user}); open[k] != opens {
					open[k] = opens
					wanted[k] = append(wanted[k], position)
				}
			}
		}
		for position := range catalog.Position(rapid.Int64Range(1, 30).Draw(t, "events")) {
			draw := func(what string) (list []catalog.Membership) {
				if rapid.Bool().Draw(t, what) {
					list = append(list, catalog.Membership{Room: rapid.SampledFrom([]string{"r", "s"}).Draw(t, "room"),
						Users: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 2).Draw(t, "users")})
				}
				return list
			}
			p := catalog.Place{Opens: draw("opens"), Closes: draw("closes")}
			all.add(p, catalog.Version(position), position)
			for _, m := range p.Opens {
				turn(m, true, position)
			}
			for _, m := range p.Closes {
				turn(m, false, position)
			}
		}
		got := map[membershipKey][]catalog.Position{}
		now := map[membershipKey]bool{}
		for _, r := range all.rounds {
			seen := map[membershipKey]bool{}
			for _, side := range []struct {
				list  memberships
				opens bool
			}{{r.opens, true}, {r.closes, false}} {
				for i, room := range side.list.rooms {
					k := membershipKey{room, side.list.members[i]}
					if seen[k] {
						t.Fatalf("%v has two changes in one round", k)
					}
					seen[k] = true
					if now[k] != side.opens {
						now[k] = side.opens
						got[k] = append(got[k], catalog.Position(side.list.positions[i]))
					}
				}
			}
		}
		if !maps.EqualFunc(got, wanted, slices.Equal[[]catalog.Position]) {
			t.Fatalf("got %v, want %v", got, wanted)
		}
	})
}
