package relay

import (
	"maps"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// sequence is the progress of a relay. All events up to Position are in a shipment, except those of paused topics and
// of topics that the catalog does not have. The field Last contains, by topic and partition, the position of the newest
// record; for a paused topic, it is the position of the newest event that was left out. The field Topics contains the
// current epoch of each topic.
type sequence struct {
	Position catalog.Position
	Last     map[string]map[int32]catalog.Position
	Topics   map[string]epoch

	recorded  map[topicPartition]time.Time // when the newest record of a partition was written
	announced map[topicPartition]time.Time // when the newest position record of a partition was written
}

// epoch is a period in which a topic has one partition count. The count determines the partition of each stream.
type epoch struct {
	Epoch  int32 // number of the epoch, counted from 1
	Count  int32
	From   catalog.Position // position of the fence; Count determines the partitions of events above it
	Fenced bool             // the fence is in all partitions, or not needed because the epoch is the first
}

type topicPartition struct {
	topic     string
	partition int32
}

// append records that the next record of a partition has the given position. It returns the position of the previous
// record.
func (s *sequence) append(p topicPartition, position catalog.Position, now time.Time) (before catalog.Position) {
	if s.Last == nil {
		s.Last = map[string]map[int32]catalog.Position{}
	}
	if s.recorded == nil {
		s.recorded, s.announced = map[topicPartition]time.Time{}, map[topicPartition]time.Time{}
	}
	if s.Last[p.topic] == nil {
		s.Last[p.topic] = map[int32]catalog.Position{}
	}
	before = s.Last[p.topic][p.partition]
	s.Last[p.topic][p.partition] = position
	s.recorded[p] = now
	return before
}

// due returns when a position record must be written into a partition. For a partition that lags, this is the time of
// its last position record plus the parameter interval. For any other partition, this is the time of its last record
// plus the parameter life. A partition into which this relay has written nothing is due at once.
func (s *sequence) due(p topicPartition, interval, life time.Duration) time.Time {
	recorded, ever := s.recorded[p]
	if !ever {
		return time.Time{}
	}
	if s.Last[p.topic][p.partition] < s.Position {
		return s.announced[p].Add(interval)
	}
	return recorded.Add(life)
}

// announce records that a position record is written into a partition. It returns the position in this record, and the
// position of the previous record.
func (s *sequence) announce(p topicPartition, now time.Time) (position, before catalog.Position) {
	before = s.append(p, s.Position, now)
	s.announced[p] = now
	return s.Position, before
}

// saved returns a copy of the part of a sequence that is stored.
func (s *sequence) saved() sequence {
	c := sequence{Position: s.Position, Last: make(map[string]map[int32]catalog.Position, len(s.Last)), Topics: maps.Clone(s.Topics)}
	for topic, last := range s.Last {
		c.Last[topic] = maps.Clone(last)
	}
	return c
}
