package httpapi

import (
	"net/http"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/intake"
)

type outcome struct {
	OK      bool     `json:"ok"`
	Outcome string   `json:"outcome,omitempty"`
	Command string   `json:"command_id"`
	Stream  string   `json:"stream,omitempty"`
	Version int64    `json:"version,omitempty"`
	Error   *problem `json:"error,omitempty"`
}

// command takes a command and waits for its outcome. One that comes to no outcome in time is asked after by sending it
// again with the same id.
func (s *Server) command(w http.ResponseWriter, r *http.Request, declared *catalog.Command, actor, id string,
	body []byte) error {
	c, err := intake.Read(declared, actor, id, body)
	if err != nil {
		return err
	}
	sender := s.Intake.NewSender()
	defer sender.Close()
	first := make(chan intake.Answer, 1)
	sender.Send(r.Context(), c, func(a intake.Answer) {
		select {
		case first <- a:
		default:
		}
	})
	select {
	case a := <-first:
		answer := outcome{OK: a.Refusal == nil, Outcome: string(a.Kind), Command: a.CommandID, Stream: a.Stream,
			Version: a.Version}
		if a.Refusal != nil {
			answer.Error = &problem{a.Refusal.Code, a.Refusal.Text}
			write(w, status(a.Refusal.Code), answer)
			return nil
		}
		write(w, http.StatusOK, answer)
		return nil
	case <-r.Context().Done():
		return r.Context().Err()
	}
}
