package bus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/IBM/sarama"
)

// source is a Reader's connections, for as long as it has subscriptions. One client fetches for all topics at once; the
// other one asks for offsets, which would have to wait behind the fetches. Both find their way back to brokers that
// were away.
type source struct {
	brokers []string
	config  *sarama.Config

	mu      sync.Mutex
	users   int
	asking  sarama.Client
	fetches sarama.Consumer
}

func (s *source) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
}

// leave closes the connections after the last subscription.
func (s *source) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 || s.asking == nil {
		return
	}
	// What it could say is that a broker was gone already.
	_ = errors.Join(s.fetches.Close(), s.asking.Close())
	s.asking, s.fetches = nil, nil
}

func (s *source) connected() (sarama.Client, sarama.Consumer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking != nil {
		return s.asking, s.fetches, nil
	}
	asking, err := sarama.NewClient(s.brokers, s.config)
	if err != nil {
		return nil, nil, err
	}
	fetches, err := sarama.NewConsumer(s.brokers, s.config)
	if err != nil {
		return nil, nil, errors.Join(err, asking.Close())
	}
	s.asking, s.fetches = asking, fetches
	return asking, fetches, nil
}

// partitions lists those that a topic has now.
func (s *source) partitions(topic string) ([]int32, error) {
	client, _, err := s.connected()
	if err != nil {
		return nil, err
	}
	if err := client.RefreshMetadata(topic); err != nil {
		return nil, fmt.Errorf("look at the partitions of %s: %w", topic, err)
	}
	return client.Partitions(topic)
}

// reach is the offset of a partition's oldest record and the one that its next record will get.
func (s *source) reach(topic string, partition int32) (oldest, end int64, err error) {
	client, _, err := s.connected()
	if err != nil {
		return 0, 0, err
	}
	if end, err = client.GetOffset(topic, partition, sarama.OffsetNewest); err != nil {
		return 0, 0, fmt.Errorf("look for the end of %s/%d: %w", topic, partition, err)
	}
	if oldest, err = client.GetOffset(topic, partition, sarama.OffsetOldest); err != nil {
		return 0, 0, fmt.Errorf("look for the oldest record of %s/%d: %w", topic, partition, err)
	}
	return oldest, end, nil
}

func (s *source) consume(topic string, partition int32, offset int64) (sarama.PartitionConsumer, error) {
	_, fetches, err := s.connected()
	if err != nil {
		return nil, err
	}
	return fetches.ConsumePartition(topic, partition, offset)
}
