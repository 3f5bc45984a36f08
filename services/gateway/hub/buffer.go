package hub

import "github.com/edumatrix/interlinked/proto/catalog"

// eventBuffer contains the newest events of one owner, in the order in which they were delivered.
type eventBuffer struct {
	bound   int // the maximum of the field size; the newest event is kept even if it alone is larger
	size    int // the sum of Event.size over all entries, in bytes
	entries []kept
	first   uint64           // number of entries[0]; entries are numbered in order
	dropped catalog.Position // each delivered event of the log above this position is in the buffer
}

type kept struct {
	event *Event
	// highest is the highest position of this entry and all entries before it. Partitions are read concurrently, so the
	// positions of the entries may descend, but the values of this field do not. So a search for the entries above a
	// position begins with the newest entry, and ends at the first value of this field that is not above the position.
	highest catalog.Position
}

func (r *eventBuffer) add(e *Event) {
	highest := e.Position
	if n := len(r.entries); n > 0 {
		highest = max(highest, r.entries[n-1].highest)
	}
	r.entries = append(r.entries, kept{e, highest})
	r.size += e.size()
	for r.size > r.bound && len(r.entries) > 1 {
		old := r.entries[0].event
		r.dropped = max(r.dropped, old.Position)
		r.size -= old.size()
		r.entries[0] = kept{}
		r.entries = r.entries[1:]
		r.first++
	}
}

// next returns the number that the next entry gets.
func (r *eventBuffer) next() uint64 { return r.first + uint64(len(r.entries)) }

// after returns the events of the log above a position, in the order in which they were delivered. Events that a later
// event redacts are returned without their personal fields. The result false means that some of the events may not be
// in the buffer.
func (r *eventBuffer) after(position catalog.Position) ([]*Event, bool) {
	if r.dropped > position {
		return nil, false
	}
	from := len(r.entries)
	for from > 0 && r.entries[from-1].highest > position {
		from--
	}
	var list []*Event
	for _, k := range r.entries[from:] {
		if !k.event.state() && k.event.Position > position {
			list = append(list, k.event)
		}
	}
	return redact(list), true
}

// clear removes all events. It records that events up to the given position, and up to the highest position of a
// removed event, may be missing from the buffer.
func (r *eventBuffer) clear(position catalog.Position) {
	r.dropped = max(r.dropped, position)
	if n := len(r.entries); n > 0 {
		r.dropped = max(r.dropped, r.entries[n-1].highest)
	}
	r.first = r.next()
	r.entries, r.size = nil, 0
}

// since returns the state events whose entries have the given number or a higher one. It returns false if some of these
// entries are no longer in the buffer.
func (r *eventBuffer) since(number uint64) ([]*Event, bool) {
	if number < r.first {
		return nil, false
	}
	var list []*Event
	for _, k := range r.entries[number-r.first:] {
		if k.event.state() {
			list = append(list, k.event)
		}
	}
	return list, true
}

// size returns an estimate of the memory that the event and its frames use, in bytes.
func (e *Event) size() int {
	n := 800 + len(e.Type) + len(e.Stream) + len(e.Subject) + 3*len(e.Body)
	for _, room := range e.Rooms {
		n += 16 + len(room)
	}
	return n
}
