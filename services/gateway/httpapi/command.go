package httpapi

import (
	"encoding/json"
	"net/http"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// outcome is the answer to a command: the reply of the client protocol without the fields that only frames need.
type outcome struct {
	OK      bool            `json:"ok"`
	Outcome json.RawMessage `json:"outcome"`
}

// command publishes a command and waits for its outcome. If there is no outcome within intake.Options.Patience, the
// client can get the outcome later by sending the command again with the same id.
func (s *Server) command(w http.ResponseWriter, r *http.Request, declared *catalog.Command, actor, id string,
	body []byte) error {
	c, err := intake.Read(declared, actor, id, frame.Data{Bytes: body}, 0)
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
		o := a.Outcome()
		text, err := wirejson.Marshal(o)
		if err != nil {
			return err
		}
		answered := http.StatusOK
		if a.Refusal != nil {
			answered = refusal.Status(a.Refusal.Code)
		}
		write(w, answered, outcome{OK: frame.OK(o), Outcome: text})
		return nil
	case <-r.Context().Done():
		return r.Context().Err()
	}
}
