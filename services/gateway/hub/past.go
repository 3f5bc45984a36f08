package hub

import (
	"cmp"
	"runtime"
	"slices"
	"sort"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Stay is a time in a room, in positions of the owner's log, from the event that opened it to the one that closed it,
// both included. Closed is 0 while it is open.
type Stay struct {
	Room           string
	Opened, Closed int64
}

// encodedAtOnce is how many events are encoded before others get on, whose frames are due meanwhile.
const encodedAtOnce = 32

// Bounds of what one connection is given of what it missed.
type Bounds struct {
	Events int // of one room
	Bytes  int // in all
}

// Past is a part of an owner's log, made once for all who come back together.
type Past struct {
	events []*Event         // ascending by position
	rooms  map[string][]int // of events
}

// NewPast joins lists of events that were read from several places. It redacts the events that later ones delete.
func NewPast(lists ...[]*Event) *Past {
	events := slices.Concat(lists...)
	slices.SortStableFunc(events, func(a, b *Event) int {
		return cmp.Or(cmp.Compare(a.Position, b.Position), -compareBool(a.Redacted, b.Redacted))
	})
	p := &Past{rooms: map[string][]int{}}
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

// Missed lists what somebody missed above one position, up to another: what was logged during their stays, in order. A
// room with more events than the bound is too far, and nothing of it is given; so are the largest ones when all
// together are more bytes than may be. Others know of more that are too far.
func (p *Past) Missed(user string, encoding frame.Encoding, after, until int64, stays []Stay, known []string, b Bounds) (
	events []*Event, tooFar []string) {
	rooms := make(map[string][]int, len(stays)+1)
	stay := func(room string, opened, closed int64) {
		if closed == 0 || closed > until {
			closed = until
		}
		all := p.rooms[room]
		from := sort.Search(len(all), func(i int) bool { return p.events[all[i]].Position >= max(after+1, opened) })
		to := sort.Search(len(all), func(i int) bool { return p.events[all[i]].Position > closed })
		rooms[room] = append(rooms[room], all[min(from, to):to]...)
		for _, position := range []int64{opened, closed} {
			if i, ok := p.at(position); ok && position > after && p.events[i].turns(user, room) {
				rooms[room] = append(rooms[room], i)
			}
		}
	}
	stay(catalog.UserRoom(user), 0, 0)
	for _, s := range stays {
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
	tooFar = slices.Clone(known)
	told := make(map[string]bool, len(known))
	for _, room := range known {
		told[room] = true
	}
	var all []int
	bytes := 0
	for _, s := range shares {
		switch {
		case told[s.room]:
		case len(rooms[s.room]) > b.Events || bytes+s.bytes > b.Bytes:
			tooFar = append(tooFar, s.room)
		default:
			bytes += s.bytes
			all = append(all, rooms[s.room]...)
		}
	}
	slices.Sort(all)
	return p.newest(slices.Compact(all)), tooFar
}

// at finds the event at a position.
func (p *Past) at(position int64) (int, bool) {
	return slices.BinarySearchFunc(p.events, position, func(e *Event, position int64) int {
		return cmp.Compare(e.Position, position)
	})
}

// newest lists events, of counters only the newest value.
func (p *Past) newest(indices []int) []*Event {
	var events []*Event
	seen := map[string]bool{}
	for _, i := range slices.Backward(indices) {
		e := p.events[i]
		if mergeable(e.Class) {
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

// turns reports whether an event opens or closes a room for a user: it goes to that user whatever rooms it names.
func (e *Event) turns(user, room string) bool {
	of := func(m catalog.Membership) bool { return m.Room == room && slices.Contains(m.Users, user) }
	return slices.ContainsFunc(e.Opens, of) || slices.ContainsFunc(e.Closes, of)
}
