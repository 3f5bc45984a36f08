package hub

import (
	"sync"
	"sync/atomic"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Shard is the part of the hub that belongs to one owner: the connections in each of the owner's rooms, the position of
// the owner's log as of which each connection's rooms were read, and the event buffer.
//
// One lock makes attaching and subscribing atomic with respect to delivery. Each event in the rooms of a connection is
// either included in the owner's answer with which the connection starts, or is queued for the connection afterwards,
// exactly once. Operations on many rooms of a connection release the lock from time to time, so that other
// connections get events in between. The connection itself gets no events of the log until it is in all of its rooms.
type Shard struct {
	hub   *Hub
	index int // of the shard in Hub.all, and of the shard's subscriber in Conn.subscribers
	log   int // the number of the owner's log; -1 if the owner has none

	complete    atomic.Int64
	incarnation atomic.Uint32 // of the log, in the form that resume tokens contain

	mu            sync.Mutex
	number        uint64 // of the last delivery
	rooms         map[string]*room
	subscriptions map[*membership]bool
	buffer        eventBuffer
	history       string          // incarnation of the log
	former        map[string]bool // earlier incarnations of the log
}

func newShard(h *Hub, index, log, bound int) *Shard {
	return &Shard{hub: h, index: index, log: log, rooms: map[string]*room{},
		subscriptions: map[*membership]bool{}, buffer: eventBuffer{bound: bound}}
}

// SetComplete sets the position that Complete returns. A lower position than before has no effect.
func (sh *Shard) SetComplete(position catalog.Position) {
	for {
		old := sh.complete.Load()
		if position <= catalog.Position(old) || sh.complete.CompareAndSwap(old, int64(position)) {
			return
		}
	}
}

// Complete returns a position of the log. Each event up to this position was delivered, was committed before this
// gateway started, or was skipped. Events are skipped by Skip, or because they cannot be read or delivered.
func (sh *Shard) Complete() catalog.Position { return catalog.Position(sh.complete.Load()) }

// SetIncarnation records the incarnation of the log. It ignores an empty incarnation. It also ignores an earlier
// incarnation of the log, which records in a partition that lags may still contain. A change means that the log may
// have lost events that clients got. After a change, SetIncarnation clears the buffer (see eventBuffer.clear for the
// parameter position) and closes all connections of the hub. Clients resume with tokens of the previous incarnation,
// which show that the clients may have events that the log has lost.
func (sh *Shard) SetIncarnation(incarnation string, position catalog.Position) {
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

// Skip records that some events up to a position are not delivered. It clears the buffer and closes all connections of
// the hub. Clients then resume, and get the events that they missed.
func (sh *Shard) Skip(position catalog.Position) {
	sh.mu.Lock()
	sh.buffer.clear(position)
	sh.mu.Unlock()
	sh.hub.closeAll(Interrupted)
}

// AsOf returns the position up to which the answer to a connection's next query must contain all events. It is the
// highest of these positions: the one as of which the connection's rooms were read, those of its authorizations to
// subscribe (Authorization.Position), and those of the events queued for it. AsOf returns 0 before the rooms are known.
// If the log was empty when the rooms were read, AsOf returns 0 until one of the other positions is higher.
func (sh *Shard) AsOf(c *Conn) catalog.Position {
	return catalog.Position(c.subscribers[sh.index].known.Load())
}

// know makes AsOf return the given position from now on, if it is higher than the position that AsOf returned so far.
// The caller holds the shard's lock.
func (s *subscriber) know(position catalog.Position) {
	if position > catalog.Position(s.known.Load()) {
		s.known.Store(int64(position))
	}
}

// Begin records that the fan-out starts to read above a position: events up to this position may be missing from the
// buffer.
func (sh *Shard) Begin(position catalog.Position) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.buffer.dropped = max(sh.buffer.dropped, position)
}

// BufferedAfter returns the position above which the buffer contains all events that were delivered.
func (sh *Shard) BufferedAfter() catalog.Position {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.buffer.dropped
}

// Buffered returns the delivered events of the log whose positions are above the given one. It returns false if the
// buffer does not contain all of them.
func (sh *Shard) Buffered(after catalog.Position) ([]*Event, bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.buffer.after(after)
}
