package bus

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"

	"github.com/IBM/sarama"
)

// Partition is where the Publisher puts messages with a key, among so many partitions: that of sarama's hash
// partitioner, FNV-1a.
func Partition(key string, partitions int32) int32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	p := int32(h.Sum32()) % partitions
	if p < 0 {
		return -p
	}
	return p
}

// partitioner puts messages where their metadata say, else by key, else anywhere.
type partitioner struct{}

func newPartitioner(string) sarama.Partitioner { return partitioner{} }

// address is what a produced message carries for the partitioner.
type address struct {
	key       string
	partition int32 // negative: by key
}

func (partitioner) Partition(m *sarama.ProducerMessage, partitions int32) (int32, error) {
	to, _ := m.Metadata.(address)
	switch {
	case to.partition >= partitions:
		return 0, fmt.Errorf("%w: %d of %s, which has %d", sarama.ErrInvalidPartition, to.partition, m.Topic, partitions)
	case to.partition >= 0:
		return to.partition, nil
	case to.key == "":
		return rand.Int32N(partitions), nil
	}
	return Partition(to.key, partitions), nil
}

// RequiresConsistency makes sarama count all partitions, also those without a leader at the moment.
func (partitioner) RequiresConsistency() bool { return true }
