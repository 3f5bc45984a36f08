package hub

import "slices"

// recent keeps the newest events of one owner, bounded by what they cost, in the order in which they were read.
type recent struct {
	bound   int
	size    int
	entries []kept
	first   uint64 // number of entries[0]; entries are numbered as they come
	gone    int64  // highest position that is no longer kept, or lay before the first
}

type kept struct {
	event *Event
	// highest position up to this entry. Partitions are read side by side, so positions do not simply ascend; this
	// does, and lets a search from the newest stop early.
	highest int64
}

func (r *recent) add(e *Event) {
	highest := e.Position
	if n := len(r.entries); n > 0 {
		highest = max(highest, r.entries[n-1].highest)
	}
	r.entries = append(r.entries, kept{e, highest})
	r.size += e.size()
	for r.size > r.bound && len(r.entries) > 1 {
		old := r.entries[0].event
		r.gone = max(r.gone, old.Position)
		r.size -= old.size()
		r.entries[0] = kept{}
		r.entries = r.entries[1:]
		r.first++
	}
}

// next is the number that the next event gets.
func (r *recent) next() uint64 { return r.first + uint64(len(r.entries)) }

// after lists the events of the log above a position, in the order in which they were read; what was redacted in
// between comes redacted. It says false when some of them are no longer kept.
func (r *recent) after(position int64) ([]*Event, bool) {
	if r.gone > position {
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

// clear forgets all, up to a position at least.
func (r *recent) clear(position int64) {
	r.gone = max(r.gone, position)
	if n := len(r.entries); n > 0 {
		r.gone = max(r.gone, r.entries[n-1].highest)
	}
	r.first = r.next()
	r.entries, r.size = nil, 0
}

// since lists the state events numbered so or higher.
func (r *recent) since(number uint64) ([]*Event, bool) {
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

// redact empties what a later event of the list redacts.
func redact(list []*Event) []*Event {
	if !slices.ContainsFunc(list, func(e *Event) bool { return e.declared != nil && e.declared.Redacts }) {
		return list
	}
	type subject struct{ stream, subject string }
	emptied := map[subject]bool{}
	for i := len(list) - 1; i >= 0; i-- {
		e := list[i]
		if emptied[subject{e.Stream, e.Subject}] {
			list[i] = e.redacted()
		}
		if e.declared != nil && e.declared.Redacts {
			emptied[subject{e.Stream, e.Subject}] = true
		}
	}
	return list
}
