package frame

import (
	"errors"
	"iter"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// MaxMessage bounds a WebSocket message of a client, and the body of an HTTP request, in bytes. The limits of commands
// are in characters, and JSON can take up to twelve bytes for a character (an emoji as two \u escapes). So the longest
// text that a command may contain, 20,000 characters, takes up to 240,000 bytes.
const MaxMessage = 256 << 10

// MaxID bounds the id of a frame, in characters.
const MaxID = 64

// Request is a frame of a client.
type Request struct {
	ID        string
	Type      string
	CommandID string
	ExpiresIn time.Duration // how long the command may wait; 0 if the client did not limit it
	Data      Data
	Size      int // of the whole frame as the client sent it, in bytes; also set if the frame is refused
}

// Data is the data of a request. It is decoded when the type of its message is known.
type Data struct {
	Encoding Encoding
	Bytes    []byte // empty if the frame has no data
}

// Read decodes the data into an empty message, and refuses fields that the message does not declare. The error is a
// refusal.
func (d Data) Read(m proto.Message) error { return d.read(m, wirejson.Unmarshal, true) }

// ReadKnown is like Read, but ignores undeclared fields.
func (d Data) ReadKnown(m proto.Message) error { return d.read(m, wirejson.UnmarshalKnown, false) }

func (d Data) read(m proto.Message, fromJSON func([]byte, proto.Message) error, declaredOnly bool) error {
	if d.Encoding == JSON {
		if len(d.Bytes) == 0 {
			return nil
		}
		return fromJSON(d.Bytes, m)
	}
	if err := proto.Unmarshal(d.Bytes, m); err != nil {
		return refusal.New(refusal.InvalidField, "data is not an encoded %s", m.ProtoReflect().Descriptor().FullName())
	}
	return check(m.ProtoReflect(), declaredOnly)
}

// check refuses in Protobuf what the JSON decoder refuses too: texts with the character U+0000, which cannot be stored,
// and, if declaredOnly is true, fields that the message does not declare. Maps are not checked, because no request
// contains a map.
func check(m protoreflect.Message, declaredOnly bool) (err error) {
	if unknown := m.GetUnknown(); declaredOnly && len(unknown) > 0 {
		number, _, _ := protowire.ConsumeTag(unknown)
		return refusal.New(refusal.InvalidField, "%s has no field with the number %d", m.Descriptor().FullName(), number)
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		each := func(v protoreflect.Value) {
			switch {
			case f.Kind() == protoreflect.StringKind && strings.ContainsRune(v.String(), 0):
				err = refusal.NewField(string(f.Name()), "contains the character U+0000, which cannot be stored")
			case f.Message() != nil && !f.IsMap():
				err = check(v.Message(), declaredOnly)
			}
		}
		if f.IsList() {
			for i := 0; i < v.List().Len() && err == nil; i++ {
				each(v.List().Get(i))
			}
		} else {
			each(v)
		}
		return err == nil
	})
	return err
}

// Decode decodes the frames of one WebSocket message, in order. It yields each frame with nil or with a refusal. A
// refused frame contains its id, if the id can be read and is valid. Decode stops after a frame whose end cannot be
// found.
func Decode(e Encoding, message []byte) iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		if e == JSON {
			for text := range wirejson.Values(message) {
				r, err := decodeJSON(text)
				if r.Size = len(text); !yield(r, err) {
					return
				}
			}
			return
		}
		for first := true; first || len(message) > 0; first = false {
			single, n := protowire.ConsumeBytes(message)
			if n < 0 {
				yield(Request{Size: len(message)}, refusal.New(refusal.Malformed,
					"the message is not one or more frames, each with its length as a varint before it"))
				return
			}
			message = message[n:]
			r, err := decodeProtobuf(single)
			if r.Size = len(single); !yield(r, err) {
				return
			}
		}
	}
}

func decodeJSON(text []byte) (Request, error) {
	var r Request
	var expires int64
	err := wirejson.Object(text, wirejson.Text("id", &r.ID), wirejson.Text("type", &r.Type),
		wirejson.Text("command_id", &r.CommandID), wirejson.Integer("expires_in_ms", &expires),
		wirejson.Raw("data", &r.Data.Bytes))
	if err == nil {
		err = r.setExpiry(expires)
	}
	return r.checked(err, `a frame looks like {"id":"1","type":"…","data":{…}}`)
}

func decodeProtobuf(encoded []byte) (Request, error) {
	var f gatewayv1.ClientFrame
	if proto.Unmarshal(encoded, &f) != nil || len(f.ProtoReflect().GetUnknown()) > 0 {
		return Request{}, refusal.New(refusal.Malformed, "the frame is not an encoded %s",
			f.ProtoReflect().Descriptor().FullName())
	}
	r := Request{ID: f.Id, Type: f.Type, CommandID: f.CommandId, Data: Data{Protobuf, f.Data}}
	return r.checked(r.setExpiry(f.ExpiresInMs), "type is the field with the number 2")
}

func (r *Request) setExpiry(ms int64) error {
	if ms < 0 {
		return refusal.NewField("expires_in_ms", "has to be 1 or more, not %d", ms)
	}
	r.ExpiresIn = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	return nil
}

// checked returns the frame if err is nil and the frame is valid. If not, it returns a refusal, and a Request of which
// only the ID may be used. The ID is empty if it is not valid, or if the frame cannot be read.
func (r Request) checked(err error, example string) (Request, error) {
	if utf8.RuneCountInString(r.ID) > MaxID {
		return Request{}, refusal.NewField("id", "has more than %d characters", MaxID)
	}
	if strings.ContainsRune(r.ID, 0) {
		return Request{}, refusal.NewField("id", "contains the character U+0000")
	}
	var problem *refusal.Error
	switch {
	case errors.As(err, &problem) && problem.Code == refusal.Malformed:
		return Request{}, refusal.New(refusal.Malformed, "the frame cannot be read: %s", problem.Text)
	case err != nil:
		return Request{ID: r.ID}, err
	case r.Type == "":
		return r, refusal.New(refusal.Malformed, "the frame has no type; %s", example)
	}
	return r, nil
}
