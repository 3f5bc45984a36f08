package eventlog

import (
	"cmp"
	"maps"
	"slices"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// BoundRooms limits the number of rooms of a kind ("conversation") that a user may be in at the same time. A command
// whose events would exceed the limit is refused (refusal.TooMany). A user who is in more rooms when the limit is
// introduced stays in all of them. Events of an Append are not limited. If the parameter rooms is 0 or negative,
// BoundRooms sets no limit. Call BoundRooms before Run.
//
// The cost of connecting, listing rooms and leaving grows with the number of a user's rooms. Without a limit, other
// users could raise this cost by adding the user to rooms. For commands, the limit is exact, because it is checked
// under the log's lock.
func (l *Log) BoundRooms(kind string, rooms int) {
	if rooms <= 0 {
		return
	}
	if l.maxRooms == nil {
		l.maxRooms = map[string]int{}
	}
	l.maxRooms[kind] = rooms
}

// roomsKey identifies the rooms of one kind that a user is in.
type roomsKey struct{ member, kind string }

// eachBoundedRoom calls f for each user whom an event adds to a bounded room (1) or removes from one (-1).
func eachBoundedRoom(bounds map[string]int, p catalog.Place, f func(k roomsKey, change int)) {
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

// counted returns pairs of a user and a kind of rooms: those for which the writes of a transaction change the number of
// the user's rooms. Each pair is returned once.
func (t *transaction) counted() (members, kinds []string) {
	seen := map[roomsKey]bool{}
	for _, pw := range t.writes {
		for _, e := range pw.prepared.entries {
			for _, d := range e.drafts {
				eachBoundedRoom(t.log.maxRooms, d.place, func(k roomsKey, _ int) { seen[k] = true })
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

// countRooms counts the rooms that users enter and leave by an event. If a command has caused the event, and the event
// adds a user to more rooms than BoundRooms allows, countRooms refuses the command.
func (t *trial) countRooms(e *entry, d draft) {
	eachBoundedRoom(t.admission.maxRooms, d.place, func(k roomsKey, change int) {
		if t.rooms == nil {
			t.rooms = map[roomsKey]int{}
		}
		t.rooms[k] += change
		if rooms := t.admission.maxRooms[k.kind]; change > 0 && e.index >= 0 && t.admission.rooms[k]+t.rooms[k] > rooms {
			text := "a user whom you named would be in more than %d %ss, which is the maximum"
			if k.member == e.actor {
				text = "you may be in at most %d %ss; leave one first"
			}
			t.refuse(e.index, refusal.New(refusal.TooMany, text, rooms, k.kind))
		}
	})
}
