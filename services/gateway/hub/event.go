package hub

import (
	"encoding/json"
	"fmt"
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
}

// NewEvent takes an event as its topic carried it. Declared is nil for one that this gateway is too old to know: it
// moves rooms like any other, and clients see it without data.
func NewEvent(e envelope.Event, declared *catalog.Event) *Event {
	return &Event{Event: e, declared: declared}
}

// state says that the event tells what is true now and has no place in a log.
func (e *Event) state() bool { return e.Class == routingv1.Class_CLASS_EPHEMERAL }

// Frame is the event as clients get it.
func (e *Event) Frame() ([]byte, error) {
	e.once.Do(func() { e.frame, e.err = e.encode() })
	return e.frame, e.err
}

func (e *Event) encode() ([]byte, error) {
	data := json.RawMessage("{}")
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
	return json.Marshal(struct {
		Event    string          `json:"event"`
		Stream   string          `json:"stream"`
		Version  int64           `json:"version"`
		ID       string          `json:"id"`
		Time     time.Time       `json:"time"`
		Actor    string          `json:"actor,omitempty"`
		Redacted bool            `json:"redacted,omitempty"`
		Data     json.RawMessage `json:"data"`
	}{e.Type, e.Stream, e.Version, e.ID, e.Time, e.Actor, e.Redacted, data})
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

// size is what the event costs while it is kept, roughly.
func (e *Event) size() int { return 512 + 2*len(e.Body) }
