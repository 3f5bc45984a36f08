// Package bus implements Watermill's Publisher and Subscriber on Kafka, for commands, events and their dead letters.
//
// A Publisher sends all messages of one call together, without waiting for each of them. A Subscriber consumes each
// topic as a member of a consumer group; a service has one group for each topic. The Subscriber delivers messages in
// key lanes: many messages of a partition are in flight, but never two of one key, unless the handler has released the
// first of them (see Release). Messages without a key count as messages of one key. The committed offset of the group
// is a watermark that never passes a message in flight. So unfinished messages are delivered again after a crash. The
// distance between the watermark and the newest message in flight is bounded.
//
// A Reader needs no group. It reads every partition in order, one message of a partition at a time. The caller chooses
// the offset of a partition's first message (see ReaderOptions.From). The Reader tracks its offsets itself.
//
// NewRouter returns a Watermill router with the middleware that every handler of the mesh needs: dead letters, bounded
// retries, recovery from panics, waiting for unavailable dependencies, correlation and traces.
//
// Messages are delivered at least once, so handlers must accept repeats. Callers of this package name topics without
// the installation's prefix.
package bus

import (
	"log/slog"

	"github.com/edumatrix/interlinked/shared/envelope"
)

const (
	// MetadataKey is the metadata entry with the message's Kafka key, on published and on consumed messages.
	MetadataKey = envelope.MetadataKey

	// MetadataPartition is the metadata entry with the number, in decimal, of the partition to which a message is
	// published. The number takes precedence over the key, and does not become a header.
	MetadataPartition = "partition"

	kafkaName = "kafka" // the name of the dependency in /health
)

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
