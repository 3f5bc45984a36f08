package bus

import (
	"context"
	"math/rand/v2"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Partition returns the partition, among n, into which a Publisher puts messages with a key. It is FNV-1a as sarama's
// hash partitioner applies it. It must not change, so that streams keep their partition.
func Partition(key string, n int32) int32 { return partition(key, n) }

func partition[K string | []byte](key K, n int32) int32 {
	const offset, prime = 2166136261, 16777619
	h := uint32(offset)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * prime
	}
	p := int32(h) % n
	if p < 0 {
		return -p
	}
	return p
}

// byKey marks a record whose partition is chosen by its key.
const byKey = -1

// beyondLast is the context that the partitioner sets on a record whose partition the client does not know.
var beyondLast = context.WithValue(context.Background(), struct{ beyondLast bool }{}, true)

// partitioner chooses the partition that a record names, else one by its key, else a random one. It counts all
// partitions, including those without a leader at the moment.
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
			return int(partition(r.Key, int32(n)))
		}
	})
}
