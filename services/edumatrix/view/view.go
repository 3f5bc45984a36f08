// Package view keeps the answers of queries up to date with events. A client loads a query once and applies each event
// that it receives: the answer then equals what the query would return now. So a client need not query again after each
// event. A test compares the results of each Apply method with those of the query on a real mesh.
//
// An answer contains everything up to a version of its stream, and an event of a later version changes it. Apply
// ignores events that are older than the answer, and events of other streams. If an event does not contain what the
// answer needs, Apply returns ErrReload, and the client has to load the query again.
//
// The Apply methods follow the rules that docs/reference.md contains in the descriptions of the events. A client in
// another language implements the same rules.
package view

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// ErrReload means that an event changed an answer in a way that the event does not describe. The client has to load the
// query again.
var ErrReload = errors.New("load the query again")

// View is the answer of one query.
type View interface {
	// Query returns the name of the query and its request.
	Query() (name string, request proto.Message)
	// Answer returns the message into which the answer of the query is decoded. Apply changes this message.
	Answer() proto.Message
	// Apply applies an event to the answer. The error is nil or ErrReload.
	Apply(e Event) error
}

// Event is an event that a client received, with its decoded data.
type Event struct {
	client.Event
	Body proto.Message
}

// Read decodes the data of an event. The fields that this release does not declare are ignored. Read returns an error
// for an event that this release does not declare; a client ignores such an event.
func Read(c *catalog.Catalog, e client.Event) (Event, error) {
	declared, ok := c.Event(e.Type)
	if !ok {
		return Event{}, fmt.Errorf("the event %s is not declared", e.Type)
	}
	body := declared.Type.New().Interface()
	if err := wirejson.UnmarshalKnown(e.Data, body); err != nil {
		return Event{}, fmt.Errorf("event %s: %w", e.Type, err)
	}
	return Event{Event: e, Body: body}, nil
}

// at returns the time of an event with the precision that times in answers have, a microsecond.
func (e Event) at() *timestamppb.Timestamp { return timestamppb.New(e.Time.Truncate(time.Microsecond)) }

// newer reports whether an event belongs to a conversation, and is newer than the version of an answer.
func (e Event) newer(conversation string, version int64) bool {
	return e.Stream == catalog.Address("conversation", conversation) && e.Version > version
}
