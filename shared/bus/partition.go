package bus

import (
	"context"
	"math/rand/v2"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// byKey is the value of kgo.Record.Partition in a record that does not name a partition (see partitioner).
const byKey = -1

// beyondLast is the context that the partitioner sets on a record that names a partition above those that the client
// knows.
var beyondLast = context.WithValue(context.Background(), struct{ beyondLast bool }{}, true)

// partitioner returns a partitioner that chooses the partition that a record names. If the record names none, its key
// determines the partition. A record with neither a partition nor a key goes to a random partition. All partitions of
// the topic can be chosen, including partitions that have no leader at the moment.
func partitioner() kgo.Partitioner {
	return kgo.BasicConsistentPartitioner(func(string) func(*kgo.Record, int) int {
		return func(r *kgo.Record, n int) int {
			switch {
			case int(r.Partition) >= n:
				r.Context = beyondLast
				return int(r.Partition) // the client refuses the record
			case r.Partition != byKey:
				return int(r.Partition)
			case len(r.Key) == 0:
				return rand.IntN(n)
			}
			return int(envelope.Partition(r.Key, int32(n)))
		}
	})
}
