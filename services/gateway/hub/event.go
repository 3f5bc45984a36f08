package hub

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Event is a fact on its way to clients. Its frame is made once, when the first of them is to get it.
type Event struct {
	envelope.Event
	declared *catalog.Event

	once  sync.Once
	frame []byte
	err   error

	hide   sync.Once
	hidden []byte // the frame once the event has expired
}

// NewEvent takes an event as its topic carried it. Declared is nil for one that this gateway is too old to know: it
// moves rooms like any other, and clients see it without data.
func NewEvent(e envelope.Event, declared *catalog.Event) *Event {
	return &Event{Event: e, declared: declared}
}

// state reports whether the event is what is true now, and has no place in a log.
func (e *Event) state() bool { return e.Class == routingv1.Class_CLASS_EPHEMERAL }

// Frame is the event as clients get it.
func (e *Event) Frame() ([]byte, error) {
	e.once.Do(func() { e.frame, e.err = e.encode() })
	return e.frame, e.err
}

// shown is the frame that clients get at a time: once the event has expired, without its personal fields, as its owner
// shows it from then on. It stays in its place, so that versions have no gap.
func (e *Event) shown(now time.Time) []byte {
	if e.Expires.IsZero() || e.Expires.After(now) {
		return e.frame
	}
	e.hide.Do(func() {
		if e.hidden = e.frame; e.declared == nil || e.Redacted {
			return
		}
		copied := e.Event
		copied.Redacted, copied.Body = true, nil // of a body that cannot be read, nothing
		body := e.declared.Type.New().Interface()
		if proto.Unmarshal(e.Body, body) == nil {
			plain, _ := e.declared.Split(body)
			copied.Body, _ = proto.Marshal(plain)
		}
		e.hidden, _ = NewEvent(copied, e.declared).Frame()
	})
	return e.hidden
}

// encode writes the frame around the body's JSON, which is copied once.
func (e *Event) encode() ([]byte, error) {
	data := []byte("{}")
	if e.declared != nil {
		body := e.declared.Type.New().Interface()
		if err := proto.Unmarshal(e.Body, body); err != nil {
			return nil, fmt.Errorf("decode %s %s: %w", e.Type, e.ID, err)
		}
		var err error
		if data, err = wirejson.Marshal(body); err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", e.Type, e.ID, err)
		}
	}
	b := make([]byte, 0, len(data)+len(e.Type)+len(e.Stream)+len(e.ID)+len(e.Actor)+160)
	b = appendText(append(b, `{"event":`...), e.Type)
	b = appendText(append(b, `,"stream":`...), e.Stream)
	b = strconv.AppendInt(append(b, `,"version":`...), e.Version, 10)
	b = appendText(append(b, `,"id":`...), e.ID)
	b = e.Time.AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano)
	b = append(b, '"')
	if e.Actor != "" {
		b = appendText(append(b, `,"actor":`...), e.Actor)
	}
	if e.Redacted {
		b = append(b, `,"redacted":true`...)
	}
	b = append(append(b, `,"data":`...), data...)
	return append(b, '}'), nil
}

// appendText appends a JSON string. Names and ids are of plain characters nearly always.
func appendText(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := wirejson.Encode(text)
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}

// names reports whether the event goes to a user's own room.
func (e *Event) names(user string) bool {
	for _, room := range e.Rooms {
		if name, own := catalog.UserOfRoom(room); own && name == user {
			return true
		}
	}
	return false
}

// redacted is the event without its personal fields, for those who come after it was deleted.
func (e *Event) redacted() *Event {
	if e.Redacted || e.declared == nil {
		return e
	}
	body := e.declared.Type.New().Interface()
	if proto.Unmarshal(e.Body, body) != nil {
		return e
	}
	plain, personal := e.declared.Split(body)
	if personal == nil {
		return e
	}
	copied := e.Event
	copied.Redacted = true
	if body, err := proto.Marshal(plain); err == nil {
		copied.Body = body
	}
	return NewEvent(copied, e.declared)
}

// size is what the event costs while it is kept, with its frame, roughly.
func (e *Event) size() int {
	n := 800 + len(e.Type) + len(e.Stream) + len(e.Subject) + 3*len(e.Body)
	for _, room := range e.Rooms {
		n += 16 + len(room)
	}
	return n
}
