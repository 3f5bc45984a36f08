package session

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// MaxID is how long the id of a frame may be, in characters.
const MaxID = 64

// Frame is what a client sends.
type Frame struct {
	ID        string          `json:"id"`
	Type      string          `json:"type"`
	CommandID string          `json:"command_id"`
	Data      json.RawMessage `json:"data"` // a part of the text; nil: there is none
}

// ReadFrame reads what a client sent. With an error, which is a refusal, the frame holds the id if there was one.
func ReadFrame(text []byte) (Frame, error) {
	var f Frame
	err := wirejson.Object(text, wirejson.Text("id", &f.ID), wirejson.Text("type", &f.Type),
		wirejson.Text("command_id", &f.CommandID), wirejson.Raw("data", (*[]byte)(&f.Data)))
	if utf8.RuneCountInString(f.ID) > MaxID {
		return Frame{}, refusal.New(refusal.InvalidField, "id has more than %d characters", MaxID)
	}
	if r, ok := refusal.Of(err); ok {
		if r.Code == refusal.Malformed {
			return Frame{}, refusal.New(refusal.Malformed, "no frame: %s", strings.TrimPrefix(r.Text, "no frame: "))
		}
		return Frame{ID: f.ID}, r
	}
	if f.Type == "" {
		return f, refusal.New(refusal.Malformed, `no frame: it has no type; a frame looks like {"id":"1","type":"…","data":{…}}`)
	}
	return f, nil
}

// Intro is what a client says in its first frame.
type Intro struct {
	Token  string
	Resume bool
	Device string
}

// ReadIntro reads the data of an auth frame.
func ReadIntro(data []byte) (Intro, error) {
	var i Intro
	if len(data) == 0 {
		data = []byte("{}")
	}
	err := wirejson.Object(data, wirejson.Text("token", &i.Token), wirejson.Bool("resume", &i.Resume),
		wirejson.Text("device", &i.Device))
	return i, inData(err, `{"token":"…"}`)
}

// inData is the refusal of what an own frame of the gateway has as its data.
func inData(err error, example string) error {
	if r, ok := refusal.Of(err); ok {
		return refusal.New(refusal.InvalidField, "data: %s; it looks like %s", r.Text, example)
	}
	return err
}

type problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func problemOf(r *refusal.Error) *problem {
	if r == nil {
		return nil
	}
	return &problem{r.Code, r.Text}
}

// reply is what answers a frame.
type reply struct {
	Re      string          `json:"re"`
	OK      bool            `json:"ok,omitempty"`
	Error   *problem        `json:"error,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
	Outcome string          `json:"outcome,omitempty"`
	Command string          `json:"command_id,omitempty"`
	Stream  string          `json:"stream,omitempty"`
	Version int64           `json:"version,omitempty"`
}

// Done is the reply to a frame that asked for nothing more.
func Done(re string) []byte { return encode(reply{Re: re, OK: true}) }

// Failed is the reply to a frame that was refused.
func Failed(re string, r *refusal.Error) []byte { return encode(reply{Re: re, Error: problemOf(r)}) }

func answered(re string, data []byte) []byte { return encode(reply{Re: re, OK: true, Data: data}) }

// outcome is the reply to a command, or, after "queued", the frame that tells its outcome.
func outcome(re string, a intake.Answer) []byte {
	if a.Late {
		type late struct {
			Command string   `json:"command_id"`
			Outcome string   `json:"outcome"`
			Stream  string   `json:"stream,omitempty"`
			Version int64    `json:"version,omitempty"`
			Error   *problem `json:"error,omitempty"`
		}
		return encode(struct {
			Outcome late `json:"outcome"`
		}{late{a.CommandID, string(a.Kind), a.Stream, a.Version, problemOf(a.Refusal)}})
	}
	r := reply{Re: re, OK: a.Refusal == nil, Command: a.CommandID, Error: problemOf(a.Refusal)}
	if r.OK {
		r.Outcome, r.Stream, r.Version = string(a.Kind), a.Stream, a.Version
	}
	return encode(r)
}

func encode(v any) []byte {
	b, _ := wirejson.Encode(v) // of plain fields and valid JSON only
	return b
}
