package hub

import (
	"sync"
	"sync/atomic"
)

// View is the part of the hub that belongs to one owner: the connections in each of the owner's rooms, the position of
// the owner's log as of which each connection got its rooms, and the event buffer.
//
// One lock makes attaching and subscribing atomic with respect to delivery: an event is either in the answer that a
// connection started with, or is queued for it afterwards, once. Work that takes long for a connection with many rooms
// is done in slices, between which events are delivered; a subscriber gets none before it is attached.
type View struct {
	hub   *Hub
	owner string
	index int // of its subscriber in each connection
	log   int // the number of the owner's log; -1 where it has none

	complete    atomic.Int64
	incarnation atomic.Uint32 // of the log, as resume tokens hold it

	mu            sync.Mutex
	number        uint64 // of deliveries
	rooms         map[string]*room
	subscriptions map[*membership]bool
	buffer        eventBuffer
	history       string          // incarnation of the log
	former        map[string]bool // incarnations that it had before
}

func newView(h *Hub, owner string, index, log, bound int) *View {
	return &View{hub: h, owner: owner, index: index, log: log, rooms: map[string]*room{},
		subscriptions: map[*membership]bool{}, buffer: eventBuffer{bound: bound}}
}

// SetComplete notes that all events of the log up to a position were delivered.
func (v *View) SetComplete(position int64) {
	for {
		old := v.complete.Load()
		if position <= old || v.complete.CompareAndSwap(old, position) {
			return
		}
	}
}

// Complete returns the position up to which all events of the log were delivered, or lay before this gateway began.
func (v *View) Complete() int64 { return v.complete.Load() }

// SetIncarnation notes the incarnation of the log that events are read from. When it changes, the log may have lost
// events that clients got: the buffer is cleared and all connections are closed, so that clients resume with tokens of
// the incarnation before.
func (v *View) SetIncarnation(incarnation string, position int64) {
	v.mu.Lock()
	if incarnation == "" || incarnation == v.history || v.former[incarnation] {
		v.mu.Unlock()
		return
	}
	restored := v.history != ""
	if restored {
		if v.former == nil {
			v.former = map[string]bool{}
		}
		v.former[v.history] = true
		v.buffer.clear(position)
	}
	v.history = incarnation
	v.mu.Unlock()
	if restored {
		v.hub.closeAll(Restored)
	}
	v.incarnation.Store(IncarnationOf(incarnation))
}

// Skip notes that events up to a position are not delivered. It clears the buffer and closes all connections, so that
// clients resume and get the events that they missed.
func (v *View) Skip(position int64) {
	v.mu.Lock()
	v.buffer.clear(position)
	v.mu.Unlock()
	v.hub.closeAll(Interrupted)
}

// AsOf returns the position of the log as of which a connection knows it: that of its rooms, or the highest one that
// was queued for it since. The answer to its next query has to contain everything up to there. It is 0 while the
// connection does not know its rooms, and where the log was empty then.
func (v *View) AsOf(c *Conn) int64 { return c.subscribers[v.index].known.Load() }

// know raises the position as of which the connection knows the log. It is called under the view's lock.
func (s *subscriber) know(position int64) {
	if position > s.known.Load() {
		s.known.Store(position)
	}
}

// Begin notes that the fan-out begins above a position: no event up to there is delivered.
func (v *View) Begin(position int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.buffer.dropped = max(v.buffer.dropped, position)
}

// BufferedAfter returns the position above which the buffer has all events that were delivered.
func (v *View) BufferedAfter() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.buffer.dropped
}

// Buffered lists the events of the log that were delivered above a position. It returns false when the buffer has not
// all of them.
func (v *View) Buffered(after int64) ([]*Event, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.buffer.after(after)
}
