package protocol

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// signal relays a signal with Signals.Send, and replies to it.
func (h *Handler) signal(r frame.Request, declared *catalog.Signal) {
	if err := h.parts.Signals.Send(h.conn, declared, r.Data); err != nil {
		h.conn.Send(frame.Refused(r.ID, access.Refusal(err)))
		return
	}
	h.conn.Send(frame.Done(r.ID))
}
