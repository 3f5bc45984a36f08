package hub

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Holds reports whether a connection is in a room by the log, and does not only look at it.
func (v *View) Holds(c *Conn, room string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.seats[v.index]
	if user, own := catalog.UserOfRoom(room); own {
		return s.attached && user == c.User
	}
	m := v.in(s, room)
	return s.attached && m != nil && m.opened
}

// Signal queues a frame for every connection that is in a room by the log, but for the one whose id is given, and returns
// how many those are. The frame takes the place of an older one with its key, and is dropped first under load.
func (v *View) Signal(room, except, key string, shared *frame.Shared) (n int) {
	var items [frame.Encodings]item
	give := func(s *seat) {
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
	v.mu.Lock()
	defer v.mu.Unlock()
	if user, own := catalog.UserOfRoom(room); own {
		for _, c := range v.hub.of(user) {
			give(&c.seats[v.index])
		}
		return n
	}
	if r := v.rooms[room]; r != nil {
		for _, m := range r.members {
			if m.opened {
				give(m.seat)
			}
		}
	}
	return n
}
