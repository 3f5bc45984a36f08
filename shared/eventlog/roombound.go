package eventlog

import (
	"cmp"
	"maps"
	"slices"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// BoundRooms refuses commands (refusal.TooMany) whose events would have somebody in more than so many rooms of a kind
// ("conversation") at the same time. Those who are in more already stay in them. It is called before Run.
//
// The cost of a user's connecting, listing and leaving grows with their rooms, and others put them into rooms. The bound
// is exact, because it is compared under the log's lock. Rooms 0 sets no bound.
func (l *Log) BoundRooms(kind string, rooms int) {
	if rooms <= 0 {
		return
	}
	if l.maxRooms == nil {
		l.maxRooms = map[string]int{}
	}
	l.maxRooms[kind] = rooms
}

// roomsKey is somebody in rooms of a kind.
type roomsKey struct{ member, kind string }

// eachCounted calls f for each user who enters (1) or leaves (-1) a bounded room.
func eachCounted(bounds map[string]int, p catalog.Place, f func(k roomsKey, change int)) {
	if len(bounds) == 0 || len(p.Opens)+len(p.Closes) == 0 {
		return
	}
	eachMembership(p, func(k membershipKey, is bool) {
		kind := catalog.KindOf(k.room)
		if _, bounded := bounds[kind]; !bounded {
			return
		}
		if is {
			f(roomsKey{k.member, kind}, 1)
		} else {
			f(roomsKey{k.member, kind}, -1)
		}
	})
}

// counted returns who enters bounded rooms by the members of a transaction, each once.
func (t *transaction) counted() (members, kinds []string) {
	seen := map[roomsKey]bool{}
	for _, m := range t.members {
		for _, e := range m.prepared.entries {
			for _, d := range e.drafts {
				eachCounted(t.log.maxRooms, d.place, func(k roomsKey, _ int) { seen[k] = true })
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(seen), func(a, b roomsKey) int {
		return cmp.Or(cmp.Compare(a.member, b.member), cmp.Compare(a.kind, b.kind))
	}) {
		members, kinds = append(members, k.member), append(kinds, k.kind)
	}
	return members, kinds
}

// enter counts who enters and leaves rooms by an event of a command, and refuses the command where somebody would be in
// too many.
func (t *trial) enter(e *entry, d draft) {
	eachCounted(t.g.maxRooms, d.place, func(k roomsKey, change int) {
		if t.rooms == nil {
			t.rooms = map[roomsKey]int{}
		}
		t.rooms[k] += change
		if rooms := t.g.maxRooms[k.kind]; change > 0 && e.index >= 0 && t.g.rooms[k]+t.rooms[k] > rooms {
			who := "somebody who is named here is"
			if k.member == e.actor {
				who = "you are"
			}
			t.refuse(e.index, refusal.New(refusal.TooMany, "%s in %d %ss already, which is as many as one may be in", who,
				rooms, k.kind))
		}
	})
}
