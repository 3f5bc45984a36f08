package eventlog

import (
	"errors"
	"fmt"
	"hash/fnv"
)

// ErrAway is bus.ErrAway.
var ErrAway = errors.New("a dependency is away")

func away(dependency string, err error) error {
	return fmt.Errorf("%s: %w: %w", dependency, ErrAway, err)
}

const metadataPartition = "partition"

func partitionOf(key string, partitions int32) int32 {
	h := fnv.New32a()
	h.Write([]byte(key))
	p := int32(h.Sum32()) % partitions
	if p < 0 {
		p = -p
	}
	return p
}
