package owner

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/owner/consume"
)

// ReplayTopic returns the topic on which events of other owners are published again for one service. The topic is not
// in the catalog, so no gateway and no other service reads it. When a service that reacts to other owners starts, it
// creates the topic if the topic is missing.
func ReplayTopic(service string) catalog.Topic {
	return catalog.Topic{Name: service + "-replay", Owner: service, Partitions: 3, Retention: 24 * time.Hour}
}

// replays handles events that are published again. Such an event proves that its owner's log reaches the event's
// position. So for each partition of the event's topic that this instance consumes, it reads the events up to this
// position from the log, unless the partition's checkpoint has reached this position. An event of a topic that the
// service does not consume is dropped, and so is a message that is not a valid event.
type replays struct {
	catalog   *catalog.Catalog
	consumers []*consume.Consumer
}

func (r *replays) handle(m *message.Message) error {
	if e, err := envelope.ReadEvent(m); err == nil {
		declared, ok := r.catalog.Event(e.Type)
		for _, c := range r.consumers {
			if ok && c.Source() == e.Source && c.Topic() == declared.Topic {
				c.CatchUp(e)
			}
		}
	}
	return nil
}
