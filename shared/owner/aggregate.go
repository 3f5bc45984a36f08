package owner

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// State is an aggregate: what deciding about one stream needs to know. It is pure, reads no clock and no personal field,
// and is used by one goroutine at a time. Aggregates need not import this package.
type State interface {
	// Decide says what a command leads to: events; none, if all is so already; or a *refusal.Error. It changes nothing.
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	// Evolve applies one event, which actor caused.
	Evolve(actor string, event proto.Message)
	// Forget drops what it knows about single subjects (messages); what is about the stream itself stays. The subjects
	// that a command names are told again before it is decided.
	Forget()
}

// NewState makes the state of a stream ("conversation:7") without events.
type NewState func(stream string) State
