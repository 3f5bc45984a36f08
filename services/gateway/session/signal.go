package session

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/access"
)

// signal relays a signal to those who are in its room.
func (s *Session) signal(f Frame, declared *catalog.Signal) {
	if err := s.mesh.Signals.Send(s.conn, declared, f.Data); err != nil {
		s.conn.Send(Failed(f.ID, access.Refusal(err)))
		return
	}
	s.conn.Send(Done(f.ID))
}
