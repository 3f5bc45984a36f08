package owner

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// ReplayTopic is where a range of other owners' logs is sent once more to one service, and to nobody else: it is not in
// the catalog, so no gateway reads it, and no service but that one does. A service that reacts to others creates it at
// start where it is missing.
func ReplayTopic(service string) catalog.Topic {
	return catalog.Topic{Name: service + "-replay", Owner: service, Partitions: 3, Retention: 24 * time.Hour}
}

// replays hands each event to the reaction that its own topic's events are handed to, which drops what it has taken
// already. What the service does not react to is nobody's.
type replays struct {
	catalog  *catalog.Catalog
	reactors []*reactor
}

func (r *replays) handle(m *message.Message) error {
	if e, err := envelope.ReadEvent(m); err == nil {
		declared, ok := r.catalog.Event(e.Type)
		for _, reactor := range r.reactors {
			if ok && reactor.from == e.Source && reactor.topic == declared.Topic {
				return reactor.handle(m)
			}
		}
	}
	return nil
}
