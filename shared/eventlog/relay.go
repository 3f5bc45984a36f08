package eventlog

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Publisher is what a Relay needs of bus.Publisher. A failed call may have published any part of it.
type Publisher interface {
	Publish(topic string, messages ...*message.Message) error
}

// RelayOptions say where a log is published.
type RelayOptions struct {
	Publisher Publisher
	// Partitions of a topic; nil: as the catalog declares.
	Partitions func(topic string) int32
	// PositionEvery is how often, at most, the log's position is written into a partition that lags; 0: a second.
	PositionEvery time.Duration
	// SignOfLife is how often it is written into every partition all the same; 0: 30 s.
	SignOfLife time.Duration
}

// Relay publishes a log to its topics, in order and at least once. Of all relays of one log, in whatever instance, one
// works at a time.
type Relay struct{}

// NewRelay makes the relay of a log.
func NewRelay(l *Log, o RelayOptions) *Relay { panic("being written") }

// Run publishes until ctx ends. It survives the loss of Postgres and of Kafka.
func (r *Relay) Run(ctx context.Context) error { panic("being written") }
