package owner

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/owner/consume"
)

// ReplayTopic is where a range of other owners' logs is sent once more to one service, and to nobody else: it is not in
// the catalog, so no gateway reads it, and no service but that one does. A service that reacts to others creates it at
// start where it is missing.
func ReplayTopic(service string) catalog.Topic {
	return catalog.Topic{Name: service + "-replay", Owner: service, Partitions: 3, Retention: 24 * time.Hour}
}

// replays takes events that are sent once more. The checkpoints prove what was applied, so an event at or below its
// partition's checkpoint is dropped. One above it proves that the owner's log reaches that far: the partition is filled
// from the log up to there. An event that the service does not react to is dropped.
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
