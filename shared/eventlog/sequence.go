package eventlog

import (
	"maps"
	"time"
)

// sequence is how far the topics are. Everything up to Position was handed to them; Last is the position of the newest
// record in each partition, and Topics are the partition counts.
type sequence struct {
	Position int64
	Last     map[string]map[int32]int64
	Topics   map[string]epoch

	recorded  map[place]time.Time // when the newest record of a partition was written
	announced map[place]time.Time // when its newest position record was
}

// epoch is a partition count of a topic, by which the streams of its events are hashed.
type epoch struct {
	Epoch  int32 // from 1
	Count  int32
	From   int64 // position of the fence; events above it are hashed by Count
	Fenced bool  // the fence is in all partitions, or there is none because the epoch is the first
}

type place struct {
	topic     string
	partition int32
}

// append puts the next record into a partition, and returns the position before it there.
func (s *sequence) append(p place, position int64, now time.Time) (before int64) {
	if s.Last == nil {
		s.Last = map[string]map[int32]int64{}
	}
	if s.recorded == nil {
		s.recorded, s.announced = map[place]time.Time{}, map[place]time.Time{}
	}
	if s.Last[p.topic] == nil {
		s.Last[p.topic] = map[int32]int64{}
	}
	before = s.Last[p.topic][p.partition]
	s.Last[p.topic][p.partition] = position
	s.recorded[p] = now
	return before
}

// due is when the log's position has to be written into a partition: once it lags, but not more often than every
// interval, and as a sign of life. In a partition that this relay has written nothing into it is due at once.
func (s *sequence) due(p place, interval, life time.Duration) time.Time {
	recorded, ever := s.recorded[p]
	if !ever {
		return time.Time{}
	}
	if s.Last[p.topic][p.partition] < s.Position {
		return s.announced[p].Add(interval)
	}
	return recorded.Add(life)
}

// announce writes the log's position into a partition.
func (s *sequence) announce(p place, now time.Time) (position, before int64) {
	before = s.append(p, s.Position, now)
	s.announced[p] = now
	return s.Position, before
}

// saved is what of a sequence is stored, as it is now.
func (s *sequence) saved() sequence {
	c := sequence{Position: s.Position, Last: make(map[string]map[int32]int64, len(s.Last)), Topics: maps.Clone(s.Topics)}
	for topic, last := range s.Last {
		c.Last[topic] = maps.Clone(last)
	}
	return c
}
