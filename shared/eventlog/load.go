package eventlog

import (
	"context"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Selection says which events of a stream deciding needs: those about the stream itself (without subject) above version
// After, and all about the subjects.
type Selection struct {
	Stream   string
	After    int64
	Subjects []string
}

// Loaded is a stream as decisions see it: ascending by version, the bodies without their personal fields.
type Loaded struct {
	Events  []envelope.Event
	Version int64 // of the stream; 0: it does not exist
}

// Load reads from a stream what deciding needs.
func (l *Log) Load(ctx context.Context, s Selection) (Loaded, error) { panic("being written") }
