package hub

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// IsMember reports whether a connection is a member of a room. A subscription to the room is not enough.
func (sh *Shard) IsMember(c *Conn, room string) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := &c.subscribers[sh.index]
	if user, own := catalog.UserOfRoom(room); own {
		return s.attached && user == c.User
	}
	m := sh.in(s, room)
	return s.attached && m != nil && m.opened
}

// Signal queues a frame for every connection that is a member of a room, and returns the number of these connections.
// It leaves out the sender's connection, whose id is the parameter except. In a queue, the frame replaces an older one
// with the same key, and is dropped first under load.
func (sh *Shard) Signal(room, except, key string, shared *frame.Shared) (n int) {
	var items [frame.Encodings]item
	queue := func(s *subscriber) {
		if !s.attached || s.conn.ID == except {
			return
		}
		it := &items[s.conn.encoding]
		if it.own == nil {
			text, err := shared.Encode(s.conn.encoding)
			if err != nil {
				return
			}
			it.own = &queued{text: text, key: key, spare: true}
		}
		s.conn.mu.Lock()
		s.conn.push(*it)
		s.conn.unlock()
		n++
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if user, own := catalog.UserOfRoom(room); own {
		for _, c := range sh.hub.of(user) {
			queue(&c.subscribers[sh.index])
		}
		return n
	}
	if r := sh.rooms[room]; r != nil {
		for _, m := range r.members {
			if m.opened {
				queue(m.subscriber)
			}
		}
	}
	return n
}
