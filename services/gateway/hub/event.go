package hub

import (
	"errors"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Event is an event on its way to clients. Each variant of its frame is encoded once, for the first connection that
// gets it.
type Event struct {
	envelope.Event
	// Superseded reports whether a newer event of the same stream, which contains the whole value, follows soon. Then
	// only the connections of the user who caused the event need it. It is set before the event is delivered.
	Superseded bool

	declared *catalog.Event

	mu      sync.Mutex
	encoded [variants][]byte
	failed  [frame.Encodings]error // the error of encoding, for each frame.Encoding
	hidden  *Event                 // the event without its personal fields; set by afterExpiry
}

// NewEvent returns an event that was read from a topic or from an owner's log. The parameter declared is nil if the
// catalog of this gateway does not contain the event's type. Such an event opens and closes rooms, but JSON clients get
// it with empty data.
func NewEvent(e envelope.Event, declared *catalog.Event) *Event {
	return &Event{Event: e, declared: declared}
}

// state reports whether the event is state, such as which users are online. State has no position in a log.
func (e *Event) state() bool { return e.Class == routingv1.Class_CLASS_EPHEMERAL }

// mergeable reports whether a newer event of the same stream may replace this event in a queue.
func (e *Event) mergeable() bool { return e.state() || e.Class == routingv1.Class_CLASS_COUNTER }

// variant is a form of an event's frame. Each encoding has two variants: one with the id of the command, for the
// connections of the user that sent the command, and one without that id.
type variant int8

const variants = 2 * frame.Encodings

func (v variant) encoding() frame.Encoding { return frame.Encoding(v / 2) }

// withCommand reports whether the frame contains the id of the command.
func (v variant) withCommand() bool { return v%2 == 1 }

// variant returns the form of an event's frame that the connection gets.
func (c *Conn) variant(e *Event) variant {
	v := variant(2 * c.encoding)
	if e.Cause != "" && e.Actor == c.User {
		v++
	}
	return v
}

// Frame returns a variant of the event's frame. For JSON, it returns an error if the body cannot be decoded or cannot
// be written as JSON. Protobuf clients get the body as it is.
func (e *Event) Frame(v variant) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	failed := &e.failed[v.encoding()]
	if e.encoded[v] == nil && *failed == nil {
		e.encoded[v], *failed = e.encode(v)
	}
	return e.encoded[v], *failed
}

// Err returns the errors of earlier calls of Frame, or nil.
func (e *Event) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.failed[:]...)
}

// frame returns a variant that Frame has encoded before.
func (e *Event) frame(v variant) []byte { return e.encoded[v] }

func (e *Event) encode(v variant) ([]byte, error) {
	shown := frame.Event{Name: e.Type, Stream: e.Stream, Version: e.Version, ID: e.ID, Time: e.Time, Actor: e.Actor,
		Redacted: e.Redacted}
	if v.withCommand() {
		shown.CommandID = e.Cause
	}
	var typed proto.Message
	if e.declared != nil {
		typed = e.declared.Type.New().Interface()
	}
	return shown.Encode(v.encoding(), e.Body, typed)
}
