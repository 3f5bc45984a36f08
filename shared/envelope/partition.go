package envelope

// Partition returns the partition of a key's messages, as a number from 0 to n-1. It hashes the key with FNV-1a, as
// sarama's hash partitioner does. The function must not change, so that streams keep their partition.
func Partition[K string | []byte](key K, n int32) int32 {
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
