// Package bus is Watermill on Kafka, for commands, events and their dead letters.
//
// A Publisher sends what one call names in one batch. A Subscriber belongs to a consumer group, one for each service
// and topic, and hands messages out in key lanes: many of a partition are in flight, never two of one key, unless the
// handler has released the first because its place in some queue is settled. The group's offset is a watermark that
// never passes work in flight, so whatever is killed comes again; how far a partition runs ahead of it is bounded. A
// Reader needs no group: it reads every partition in order, one message at a time, from where it is told to, and keeps
// its offsets itself. NewRouter puts them under a Watermill router with what every handler of the mesh needs: dead
// letters, bounded retries, recovery, patience with dependencies that are away, correlation and traces.
//
// A topic carries everything at least once; handlers have to take repeats. Topics are named without the installation's
// prefix everywhere in this package.
package bus

import (
	"log/slog"

	"github.com/edumatrix/interlinked/shared/envelope"
)

const (
	// MetadataKey is the metadata entry that becomes the Kafka key; on a consumed message it is that key.
	MetadataKey = envelope.MetadataKey

	// MetadataPartition is the metadata entry that names the partition outright, as a decimal number.
	MetadataPartition = "partition"

	kafkaName = "kafka" // as dependencies are named in /health
)

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
