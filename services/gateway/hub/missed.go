package hub

import (
	"cmp"
	"runtime"
	"slices"
	"sort"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// MembershipInterval is a time in a room, in positions of the owner's log, from the event that opened the room to the
// one that closed it, both included. Closed is 0 while the room is open.
type MembershipInterval struct {
	Room           string
	Opened, Closed int64
}

// encodedAtOnce is how many events are encoded before the goroutine yields to those that deliver to other clients.
const encodedAtOnce = 32

// Bounds limit the missed events of one connection.
type Bounds struct {
	Events int // in one room
	Bytes  int // in all rooms of one owner
}

// MissedEvents is a part of an owner's log that several resuming connections need. It is made once for all of them.
type MissedEvents struct {
	events []*Event         // ascending by position
	rooms  map[string][]int // of events
}

// NewMissedEvents joins lists of events that were read from several places. It redacts events that later ones delete.
func NewMissedEvents(lists ...[]*Event) *MissedEvents {
	events := slices.Concat(lists...)
	slices.SortStableFunc(events, func(a, b *Event) int {
		return cmp.Or(cmp.Compare(a.Position, b.Position), -compareBool(a.Redacted, b.Redacted))
	})
	p := &MissedEvents{rooms: map[string][]int{}}
	p.events = redact(slices.CompactFunc(events, func(a, b *Event) bool { return a.Position == b.Position }))
	for i, e := range p.events {
		for n, room := range e.Rooms {
			if !slices.Contains(e.Rooms[:n], room) {
				p.rooms[room] = append(p.rooms[room], i)
			}
		}
	}
	return p
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Of lists the events that a user missed above one position, up to another: those of the rooms that were open to the
// user, in order. Rooms with more events than the bound are not recovered, none of their events are listed; nor are the
// largest ones when all together have more bytes than the bound. Known are rooms that the owner has found to be beyond
// it.
func (p *MissedEvents) Of(user string, encoding frame.Encoding, after, until int64, intervals []MembershipInterval,
	known []string, b Bounds) (
	events []*Event, notRecovered []string) {
	rooms := make(map[string][]int, len(intervals)+1)
	stay := func(room string, opened, closed int64) {
		if closed == 0 || closed > until {
			closed = until
		}
		all := p.rooms[room]
		from := sort.Search(len(all), func(i int) bool { return p.events[all[i]].Position >= max(after+1, opened) })
		to := sort.Search(len(all), func(i int) bool { return p.events[all[i]].Position > closed })
		rooms[room] = append(rooms[room], all[min(from, to):to]...)
		for _, position := range []int64{opened, closed} {
			if i, ok := p.at(position); ok && position > after && p.events[i].moves(user, room) {
				rooms[room] = append(rooms[room], i)
			}
		}
	}
	stay(catalog.UserRoom(user), 0, 0)
	for _, s := range intervals {
		stay(s.Room, s.Opened, s.Closed)
	}

	type share struct {
		room  string
		bytes int
	}
	shares := make([]share, 0, len(rooms))
	encoded := 0
	for room, list := range rooms {
		slices.Sort(list)
		rooms[room] = slices.Compact(list)
		s := share{room: room}
		for _, i := range rooms[room] {
			if encoded++; encoded%encodedAtOnce == 0 {
				runtime.Gosched()
			}
			text, _ := p.events[i].Frame(variant(2 * encoding))
			s.bytes += len(text)
		}
		shares = append(shares, s)
	}
	slices.SortFunc(shares, func(a, b share) int {
		return cmp.Or(cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.room, b.room))
	})
	notRecovered = slices.Clone(known)
	excluded := make(map[string]bool, len(known))
	for _, room := range known {
		excluded[room] = true
	}
	var all []int
	bytes := 0
	for _, s := range shares {
		switch {
		case excluded[s.room]:
		case len(rooms[s.room]) > b.Events || bytes+s.bytes > b.Bytes:
			notRecovered = append(notRecovered, s.room)
		default:
			bytes += s.bytes
			all = append(all, rooms[s.room]...)
		}
	}
	slices.Sort(all)
	return p.newest(slices.Compact(all)), notRecovered
}

// at returns the index of the event at a position.
func (p *MissedEvents) at(position int64) (int, bool) {
	return slices.BinarySearchFunc(p.events, position, func(e *Event, position int64) int {
		return cmp.Compare(e.Position, position)
	})
}

// newest lists events by their indices, and only the newest value of each counter.
func (p *MissedEvents) newest(indices []int) []*Event {
	var events []*Event
	seen := map[string]bool{}
	for _, i := range slices.Backward(indices) {
		e := p.events[i]
		if e.mergeable() {
			if seen[e.Stream] {
				continue
			}
			seen[e.Stream] = true
		}
		events = append(events, e)
	}
	slices.Reverse(events)
	return events
}

// moves reports whether an event opens or closes a room for a user. The user gets such an event whatever its rooms are.
func (e *Event) moves(user, room string) bool {
	of := func(m catalog.Membership) bool { return m.Room == room && slices.Contains(m.Users, user) }
	return slices.ContainsFunc(e.Opens, of) || slices.ContainsFunc(e.Closes, of)
}
