package session

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/intake"
)

// Frame is what a client sends.
type Frame struct {
	ID        string          `json:"id"`
	Type      string          `json:"type"`
	CommandID string          `json:"command_id"`
	Data      json.RawMessage `json:"data"`
}

// ReadFrame reads what a client sent. With an error, which is a refusal, the frame holds the id if there was one.
func ReadFrame(text []byte) (Frame, error) {
	var f Frame
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(&f)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON value")
		}
	}
	if err == nil && f.Type == "" {
		return f, refusal.New(refusal.Malformed, `a frame looks like {"id":"1","type":"…","data":{…}}; this one has no type`)
	}
	if err == nil {
		if string(f.Data) == "null" {
			f.Data = nil
		}
		return f, nil
	}
	var named struct {
		ID any `json:"id"`
	}
	f = Frame{}
	if json.Unmarshal(text, &named) == nil {
		f.ID, _ = named.ID.(string)
	}
	var wrong *json.UnmarshalTypeError
	switch unknown, isUnknown := strings.CutPrefix(err.Error(), "json: unknown field "); {
	case isUnknown:
		return f, refusal.New(refusal.InvalidField, "a frame has no field %s, only id, type, command_id and data", unknown)
	case errors.As(err, &wrong) && wrong.Field != "":
		return f, refusal.New(refusal.InvalidField, "%s has to be a text, not a %s", wrong.Field, wrong.Value)
	case errors.As(err, &wrong):
		return f, refusal.New(refusal.Malformed, "a frame is a JSON object, not a %s", wrong.Value)
	}
	return f, refusal.New(refusal.Malformed, "no JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
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
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // of plain fields and valid JSON only
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
