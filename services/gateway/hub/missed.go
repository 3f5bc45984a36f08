package hub

import (
	"cmp"
	"runtime"
	"slices"
	"sort"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/shared/interval"
)

// encodedAtOnce is the number of events that are encoded before the goroutine yields to goroutines that deliver to
// other clients.
const encodedAtOnce = 32

// Bounds limit the missed events that one connection gets.
type Bounds struct {
	Events int // the maximum number of events in one room
	Bytes  int // the maximum size of the events in all rooms of one owner, in bytes
}

// MissedEvents is a part of an owner's log that several resuming connections need. It is built once for all of them.
type MissedEvents struct {
	events []*Event         // ascending by position
	rooms  map[string][]int // indices in the field events, by room
}

// NewMissedEvents merges lists of events that were read from several places. Events that a later event redacts lose
// their personal fields.
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

// Absence describes the part of an owner's log that a client missed before it resumed.
type Absence struct {
	// The client has the events up to the position After, and is attached as of the position Until.
	After, Until catalog.Position
	Intervals    []interval.Interval // the membership intervals of the user
	Subscribed   []string            // other rooms that the connection subscribes to
	NotRecovered []string            // rooms for which the owner has found more events than the bounds allow
}

// Of returns the events that a user has missed, in order, and the rooms that are not recovered. A room is not recovered
// if it is in missed.NotRecovered, or if the client needs more than b.Events of its events. If the other rooms together
// have more than b.Bytes bytes, the largest of them are not recovered either. The events of a room that is not
// recovered are returned only if they are also in a recovered room. Of a stream of class counter, a client needs only
// the newest event, and the newest one that the user has caused.
func (p *MissedEvents) Of(user string, encoding frame.Encoding, missed Absence, b Bounds) (events []*Event, notRecovered []string) {
	rooms := make(map[string][]int, len(missed.Intervals)+1)
	for _, gap := range interval.Missed(user, missed.Subscribed, missed.Intervals, missed.After, missed.Until) {
		all := p.rooms[gap.Room]
		upTo := func(position catalog.Position) int {
			return sort.Search(len(all), func(i int) bool { return p.events[all[i]].Position > position })
		}
		rooms[gap.Room] = append(rooms[gap.Room], all[upTo(gap.After):upTo(gap.Until)]...)
	}
	for _, s := range missed.Intervals {
		for _, position := range s.Boundaries(missed.After) {
			if i, ok := p.at(position); ok && p.events[i].moves(user, s.Room) {
				rooms[s.Room] = append(rooms[s.Room], i)
			}
		}
	}

	type share struct {
		room  string
		bytes int
	}
	shares := make([]share, 0, len(rooms))
	encoded := 0
	for room, list := range rooms {
		slices.Sort(list)
		rooms[room] = p.newest(user, slices.Compact(list))
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
	notRecovered = slices.Clone(missed.NotRecovered)
	excluded := make(map[string]bool, len(missed.NotRecovered))
	for _, room := range missed.NotRecovered {
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
	for _, i := range p.newest(user, slices.Compact(all)) {
		events = append(events, p.events[i])
	}
	return events, notRecovered
}

// at returns the index of the event at a position, or false if the field events does not contain such an event.
func (p *MissedEvents) at(position catalog.Position) (int, bool) {
	return slices.BinarySearchFunc(p.events, position, func(e *Event, position catalog.Position) int {
		return cmp.Compare(e.Position, position)
	})
}

// newest returns those of the given indices that a client needs: of a stream of class counter, only that of the newest
// event, and that of the newest event that the user has caused. The indices ascend.
func (p *MissedEvents) newest(user string, indices []int) (needed []int) {
	type seenBy struct {
		stream string
		own    bool
	}
	seen := map[seenBy]bool{}
	for _, i := range slices.Backward(indices) {
		if e := p.events[i]; e.mergeable() {
			own := e.Actor == user
			if seen[seenBy{e.Stream, own}] || !own && seen[seenBy{e.Stream, true}] {
				continue
			}
			seen[seenBy{e.Stream, own}] = true
		}
		needed = append(needed, i)
	}
	slices.Reverse(needed)
	return needed
}

// moves reports whether an event opens or closes a room for a user. The user gets such an event even if that room is
// not one of e.Rooms.
func (e *Event) moves(user, room string) bool {
	of := func(m catalog.Membership) bool { return m.Room == room && slices.Contains(m.Users, user) }
	return slices.ContainsFunc(e.Opens, of) || slices.ContainsFunc(e.Closes, of)
}
