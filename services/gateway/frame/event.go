package frame

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Event holds the fields of an event frame other than its data.
type Event struct {
	Name      string
	Stream    string
	Version   catalog.Version
	ID        string
	Time      time.Time
	Actor     string
	CommandID string // set only if a command of the user who gets the frame caused the event
	Redacted  bool
}

// Encode encodes an event frame. The parameter body is the encoded message of the event. The parameter typed is an
// empty message of the event's type, or nil if the catalog of this gateway does not contain the type. A JSON frame then
// has empty data. Encode fails if the body has to be decoded for JSON and cannot be decoded, or if a value cannot be
// encoded (see Frame.Encode).
//
// Most frames are events, so Encode must be fast. JSON is written by hand around the data, which is copied only once.
func (v *Event) Encode(e Encoding, body []byte, typed proto.Message) ([]byte, error) {
	if e == Protobuf {
		return v.protobuf(body)
	}
	data := []byte("{}")
	if typed != nil {
		if err := proto.Unmarshal(body, typed); err != nil {
			return nil, fmt.Errorf("decode %s %s: %w", v.Name, v.ID, err)
		}
		var err error
		if data, err = wirejson.Marshal(typed); err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", v.Name, v.ID, err)
		}
	}
	b := make([]byte, 0, len(data)+len(v.Name)+len(v.Stream)+len(v.ID)+len(v.Actor)+len(v.CommandID)+192)
	b = appendText(append(b, `{"type":"event","event":`...), v.Name)
	b = appendText(append(b, `,"stream":`...), v.Stream)
	b = strconv.AppendInt(append(b, `,"version":`...), int64(v.Version), 10)
	b = appendText(append(b, `,"id":`...), v.ID)
	b = v.Time.UTC().AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano)
	b = append(b, '"')
	if v.Actor != "" {
		b = appendText(append(b, `,"actor":`...), v.Actor)
	}
	if v.CommandID != "" {
		b = appendText(append(b, `,"command_id":`...), v.CommandID)
	}
	if v.Redacted {
		b = append(b, `,"redacted":true`...)
	}
	b = append(append(b, `,"data":`...), data...)
	return append(b, '}'), nil
}

func (v *Event) protobuf(body []byte) ([]byte, error) {
	m := &gatewayv1.Event{Event: v.Name, Stream: v.Stream, Version: int64(v.Version), Id: v.ID, Time: timestamppb.New(v.Time),
		Data: body}
	if body == nil {
		m.Data = []byte{}
	}
	if v.Actor != "" {
		m.Actor = &v.Actor
	}
	if v.CommandID != "" {
		m.CommandId = &v.CommandID
	}
	if v.Redacted {
		m.Redacted = &v.Redacted
	}
	return encodeProtobuf("event", m)
}

// appendText appends a JSON string. It is fast for plain characters, which nearly all names and ids consist of.
func appendText(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := wirejson.Encode(text)
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}
