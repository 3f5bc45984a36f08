package fanout

import (
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// maxAhead is the maximum number of records in which superseded searches for a newer event. It is a little more than
// the number of commands of one stream that an owner decides and commits together.
const maxAhead = 300

// superseded reports whether an event of class counter has a newer event of its stream among the records that follow
// it. Each event contains the whole value, so clients need only the newest one: when 2,000 members react to a message
// at once, their 2,000 events arrive in a few batches, and each member gets a few frames instead of 2,000.
//
// The newer event is in the log, so the fan-out will deliver it, even if its record turns out to be a repeat.
func superseded(e *envelope.Event, ahead []*bus.Fetched) bool {
	if e.Class != routingv1.Class_CLASS_COUNTER {
		return false
	}
	for _, r := range ahead[:min(len(ahead), maxAhead)] {
		if string(envelope.RawStream(r.Headers)) != e.Stream {
			continue
		}
		newer, err := envelope.ReadRawEvent(r.Headers, r.Value)
		if err == nil && newer.Incarnation == e.Incarnation && newer.Position > e.Position {
			return true
		}
	}
	return false
}
