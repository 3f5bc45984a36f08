package hub

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Event is a fact on its way to clients. Each variant of its frame is made once, when the first connection is to get it.
type Event struct {
	envelope.Event
	declared *catalog.Event

	mu      sync.Mutex
	encoded [variants][]byte
	failed  error  // of a body that cannot be shown
	hidden  *Event // the event without its personal fields, once it has expired
}

// variant says which form of an event's frame a connection gets: it depends on the encoding, and on whether the
// connection's user caused the event, and so gets the id of the command.
type variant int8

const variants = 2 * frame.Encodings

func (v variant) encoding() frame.Encoding { return frame.Encoding(v / 2) }

// causer reports whether the frame has the id of the command.
func (v variant) causer() bool { return v%2 == 1 }

// variant is the form of an event's frame that the connection gets.
func (c *Conn) variant(e *Event) variant {
	v := variant(2 * c.encoding)
	if e.Cause != "" && e.Actor == c.User {
		v++
	}
	return v
}

// NewEvent takes an event as its topic carried it. Declared is nil for one that this gateway is too old to know: it
// moves rooms like any other, and clients see it without data.
func NewEvent(e envelope.Event, declared *catalog.Event) *Event {
	return &Event{Event: e, declared: declared}
}

// state reports whether the event is what is true now, and has no place in a log.
func (e *Event) state() bool { return e.Class == routingv1.Class_CLASS_EPHEMERAL }

// Frame is the event as a connection gets it.
func (e *Event) Frame(v variant) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.encoded[v] == nil && e.failed == nil {
		e.encoded[v], e.failed = e.encode(v)
	}
	return e.encoded[v], e.failed
}

// Err returns why the event cannot be shown, once a connection was to get it.
func (e *Event) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// frame is the event's frame after Frame has made it.
func (e *Event) frame(v variant) []byte { return e.encoded[v] }

// shown is the frame that clients get at a time: once the event has expired, without its personal fields, as its owner
// shows it from then on. It stays in its place, so that versions have no gap.
func (e *Event) shown(v variant, now time.Time) []byte {
	if e.Expires.IsZero() || e.Expires.After(now) || e.declared == nil || e.Redacted {
		return e.frame(v)
	}
	e.mu.Lock()
	if e.hidden == nil {
		copied := e.Event
		copied.Redacted, copied.Body = true, nil // of a body that cannot be read, nothing
		body := e.declared.Type.New().Interface()
		if proto.Unmarshal(e.Body, body) == nil {
			plain, _ := e.declared.Split(body)
			copied.Body, _ = proto.Marshal(plain)
		}
		e.hidden = NewEvent(copied, e.declared)
	}
	hidden := e.hidden
	e.mu.Unlock()
	text, _ := hidden.Frame(v)
	return text
}

func (e *Event) encode(v variant) ([]byte, error) {
	shown := frame.Event{Name: e.Type, Stream: e.Stream, Version: e.Version, ID: e.ID, Time: e.Time, Actor: e.Actor,
		Redacted: e.Redacted}
	if v.causer() {
		shown.CommandID = e.Cause
	}
	var typed proto.Message
	if e.declared != nil {
		typed = e.declared.Type.New().Interface()
	}
	return shown.Encode(v.encoding(), e.Body, typed)
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
