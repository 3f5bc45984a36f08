package frame

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Frame is a frame that the gateway sends.
type Frame struct {
	kind string        // the name of the field of ServerFrame
	body proto.Message // the value of that field; its field "data" is not set
	data proto.Message // the value for the field "data" of body; nil if there is none
}

// Done returns the reply to a request that was accepted and has no answer.
func Done(replyTo string) Frame { return Answer(replyTo, nil) }

// Answer returns the reply to a query or a control frame.
func Answer(replyTo string, data proto.Message) Frame {
	return Frame{"reply", &gatewayv1.Reply{ReplyTo: replyTo, Ok: true}, data}
}

// Refused returns the reply to a refused request, or the frame "error" if the request has no id.
func Refused(replyTo string, r *refusal.Error) Frame {
	if replyTo == "" {
		return Frame{"error", &gatewayv1.Failure{Error: ErrorOf(r)}, nil}
	}
	return Frame{"reply", &gatewayv1.Reply{ReplyTo: replyTo, Error: ErrorOf(r)}, nil}
}

// Outcome returns the reply to a command.
func Outcome(replyTo string, o *gatewayv1.Outcome) Frame {
	return Frame{"reply", &gatewayv1.Reply{ReplyTo: replyTo, Ok: OK(o), Outcome: o}, nil}
}

// OK reports whether a reply with an outcome contains "ok": true. It does if the command is committed, unchanged or
// queued.
func OK(o *gatewayv1.Outcome) bool {
	switch o.Kind {
	case gatewayv1.OutcomeKind_OUTCOME_KIND_COMMITTED, gatewayv1.OutcomeKind_OUTCOME_KIND_UNCHANGED,
		gatewayv1.OutcomeKind_OUTCOME_KIND_QUEUED:
		return true
	}
	return false
}

// LateOutcome returns the frame "outcome", for a command that was answered with "queued" before.
func LateOutcome(o *gatewayv1.Outcome) Frame {
	return Frame{"outcome", &gatewayv1.LateOutcome{Outcome: o}, nil}
}

// Signal returns the frame of a signal that a user has sent to a room.
func Signal(name, room, actor string, data proto.Message) Frame {
	return Frame{"signal", &gatewayv1.Signal{Signal: name, Room: room, Actor: actor}, data}
}

// NotRecovered returns the frame for a room whose missed events are not sent.
func NotRecovered(room string) Frame {
	return Frame{"not_recovered", &gatewayv1.NotRecovered{Room: room}, nil}
}

// Unsubscribed returns the frame for a subscription that the gateway has ended.
func Unsubscribed(room string, r *refusal.Error) Frame {
	return Frame{"unsubscribed", &gatewayv1.Unsubscribed{Room: room, Error: ErrorOf(r)}, nil}
}

// Heartbeat returns a heartbeat with the newest resume token, which may be empty.
func Heartbeat(resumeToken string) Frame {
	h := &gatewayv1.Heartbeat{}
	if resumeToken != "" {
		h.ResumeToken = &resumeToken
	}
	return Frame{"heartbeat", h, nil}
}

// TokenExpiring returns the frame with the time for which the connection's token is still valid.
func TokenExpiring(in time.Duration) Frame {
	return Frame{"token_expiring", &gatewayv1.TokenExpiring{ExpiresInMs: in.Milliseconds()}, nil}
}

// Closing returns the frame that is sent before a close frame, with the close code and the reason.
func Closing(code int, r *refusal.Error) Frame {
	return Frame{"closing", &gatewayv1.Closing{Code: int32(code), Error: ErrorOf(r)}, nil}
}

// ErrorOf returns a refusal in the form in which frames contain it.
func ErrorOf(r *refusal.Error) *gatewayv1.Error {
	e := &gatewayv1.Error{Code: r.Code, Message: r.Text}
	if r.Field != "" {
		e.Field = &r.Field
	}
	if wait := RetryAfter(r); wait > 0 {
		e.RetryAfterMs = proto.Int64(wait.Milliseconds())
	}
	if r.TraceID != "" {
		e.TraceId = &r.TraceID
	}
	return e
}

// retryAfter is how long a client should wait after a refusal that may be temporary, if the refusal contains no other
// time.
const retryAfter = time.Second

// RetryAfter returns how long a client should wait before it sends the same request again, or 0 if waiting does not
// help.
func RetryAfter(r *refusal.Error) time.Duration {
	switch {
	case r.RetryAfter > 0:
		return r.RetryAfter
	case r.Code == refusal.Unavailable || r.Code == refusal.TooManyWaiting:
		return retryAfter
	}
	return 0
}

// Encode encodes the frame for a WebSocket message. It fails if the data cannot be encoded, such as text that is not
// UTF-8, or, in JSON, a time outside the years 1 to 9999.
func (f Frame) Encode(e Encoding) ([]byte, error) {
	if e == JSON {
		return f.json()
	}
	body := f.body
	if f.data != nil {
		encoded, err := proto.Marshal(f.data)
		if err != nil {
			return nil, fmt.Errorf("frame: encode the data of %s: %w", f.kind, err)
		}
		body = proto.Clone(body) // f.body must stay without data, or the JSON of the frame would contain the data twice
		r := body.ProtoReflect()
		r.Set(r.Descriptor().Fields().ByName("data"), protoreflect.ValueOfBytes(encoded))
	}
	return encodeProtobuf(f.kind, body)
}

var serverFrame = (&gatewayv1.ServerFrame{}).ProtoReflect().Descriptor().Fields()

// encodeProtobuf encodes a ServerFrame with one field, preceded by the length of the ServerFrame.
func encodeProtobuf(kind string, body proto.Message) ([]byte, error) {
	field := serverFrame.ByName(protoreflect.Name(kind)).Number()
	size := proto.Size(body)
	inner := protowire.SizeTag(field) + protowire.SizeBytes(size)
	b := make([]byte, 0, protowire.SizeVarint(uint64(inner))+inner)
	b = protowire.AppendVarint(b, uint64(inner))
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, body)
	if err != nil {
		return nil, fmt.Errorf("frame: encode %s: %w", kind, err)
	}
	return b, nil
}

// json returns a JSON object with the type, the fields of the body, and the data.
func (f Frame) json() ([]byte, error) {
	body, err := wirejson.Marshal(f.body)
	if err != nil {
		return nil, fmt.Errorf("frame: encode %s: %w", f.kind, err)
	}
	var data []byte
	if f.data != nil {
		if data, err = wirejson.Marshal(f.data); err != nil {
			return nil, fmt.Errorf("frame: encode the data of %s: %w", f.kind, err)
		}
	}
	b := make([]byte, 0, len(body)+len(data)+len(f.kind)+20)
	b = append(append(append(b, `{"type":"`...), f.kind...), '"')
	if len(body) > len("{}") {
		b = append(append(b, ','), body[1:len(body)-1]...)
	}
	if data != nil {
		b = append(append(b, `,"data":`...), data...)
	}
	return append(b, '}'), nil
}

// Join joins several encoded frames for one WebSocket message.
func Join(e Encoding, frames [][]byte) []byte {
	n := len(frames)
	for _, f := range frames {
		n += len(f)
	}
	b := make([]byte, 0, n)
	for i, f := range frames {
		if e == JSON && i > 0 {
			b = append(b, '\n')
		}
		b = append(b, f...)
	}
	return b
}

// Shared is a frame for many connections. It is encoded once for each of their encodings, and is safe for concurrent
// use.
type Shared struct {
	Frame Frame

	encodings [Encodings]struct {
		once    sync.Once
		encoded []byte
		err     error
	}
}

// Encode is like Frame.Encode, but encodes only once for each encoding.
func (s *Shared) Encode(e Encoding) ([]byte, error) {
	of := &s.encodings[e]
	of.once.Do(func() { of.encoded, of.err = s.Frame.Encode(e) })
	return of.encoded, of.err
}
