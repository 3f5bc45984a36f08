package hub

import (
	"sync"
	"sync/atomic"
)

// Shard is the part of the hub that belongs to one owner: the connections in each of the owner's rooms, the position of
// the owner's log at which each connection's rooms were read, and the event buffer.
//
// One lock makes attaching and subscribing atomic with respect to delivery: an event is either in the answer that a
// connection started with, or is queued for it afterwards, once. Work that takes long for a connection with many rooms
// is done in slices, between which events are delivered; a subscriber gets none before it is attached.
type Shard struct {
	hub   *Hub
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

func newShard(h *Hub, index, log, bound int) *Shard {
	return &Shard{hub: h, index: index, log: log, rooms: map[string]*room{},
		subscriptions: map[*membership]bool{}, buffer: eventBuffer{bound: bound}}
}

// SetComplete notes that all events of the log up to a position were delivered.
func (sh *Shard) SetComplete(position int64) {
	for {
		old := sh.complete.Load()
		if position <= old || sh.complete.CompareAndSwap(old, position) {
			return
		}
	}
}

// Complete returns the position up to which all events of the log were delivered, or lay before this gateway began.
func (sh *Shard) Complete() int64 { return sh.complete.Load() }

// SetIncarnation notes the incarnation of the log that events are read from. When it changes, the log may have lost
// events that clients got: the buffer is cleared and all connections are closed, so that clients resume with tokens of
// the previous incarnation.
func (sh *Shard) SetIncarnation(incarnation string, position int64) {
	sh.mu.Lock()
	if incarnation == "" || incarnation == sh.history || sh.former[incarnation] {
		sh.mu.Unlock()
		return
	}
	restored := sh.history != ""
	if restored {
		if sh.former == nil {
			sh.former = map[string]bool{}
		}
		sh.former[sh.history] = true
		sh.buffer.clear(position)
	}
	sh.history = incarnation
	sh.mu.Unlock()
	if restored {
		sh.hub.closeAll(Restored)
	}
	sh.incarnation.Store(IncarnationOf(incarnation))
}

// Skip notes that events up to a position are not delivered. It clears the buffer and closes all connections, so that
// clients resume and get the events that they missed.
func (sh *Shard) Skip(position int64) {
	sh.mu.Lock()
	sh.buffer.clear(position)
	sh.mu.Unlock()
	sh.hub.closeAll(Interrupted)
}

// AsOf returns the position of the log as of which a connection knows it: that of its rooms, or the highest one that
// was queued for it since. The answer to its next query has to contain everything up to there. It is 0 while the
// connection does not know its rooms, and where the log was empty then.
func (sh *Shard) AsOf(c *Conn) int64 { return c.subscribers[sh.index].known.Load() }

// know raises the position as of which the connection knows the log. It is called under the shard's lock.
func (s *subscriber) know(position int64) {
	if position > s.known.Load() {
		s.known.Store(position)
	}
}

// Begin notes that the fan-out begins above a position: no event up to there is delivered.
func (sh *Shard) Begin(position int64) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.buffer.dropped = max(sh.buffer.dropped, position)
}

// BufferedAfter returns the position above which the buffer has all events that were delivered.
func (sh *Shard) BufferedAfter() int64 {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.buffer.dropped
}

// Buffered lists the events of the log that were delivered above a position. It returns false when the buffer has not
// all of them.
func (sh *Shard) Buffered(after int64) ([]*Event, bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.buffer.after(after)
}
