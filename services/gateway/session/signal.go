package session

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// signal relays a signal to the other members of its room.
func (s *Session) signal(r frame.Request, declared *catalog.Signal) {
	if err := s.mesh.Signals.Send(s.conn, declared, r.Data); err != nil {
		s.conn.Send(frame.Refused(r.ID, access.Refusal(err)))
		return
	}
	s.conn.Send(frame.Done(r.ID))
}
