package eventlog

import "time"

// sequence is how far the topics are. Everything up to Position is confirmed; Last is the position of the newest record
// in each partition.
type sequence struct {
	Position int64
	Last     map[string]map[int32]int64

	recorded map[place]time.Time // the newest record of a partition
	told     map[place]time.Time // its newest position record
}

type place struct {
	topic     string
	partition int32
}

// append puts the next record into a partition, and says which position is before it there.
func (s *sequence) append(p place, position int64, now time.Time) (before int64) {
	if s.Last == nil {
		s.Last = map[string]map[int32]int64{}
	}
	if s.recorded == nil {
		s.recorded, s.told = map[place]time.Time{}, map[place]time.Time{}
	}
	if s.Last[p.topic] == nil {
		s.Last[p.topic] = map[int32]int64{}
	}
	before = s.Last[p.topic][p.partition]
	s.Last[p.topic][p.partition] = position
	s.recorded[p] = now
	return before
}

// due is when the log's position has to be written into a partition: once it lags, but at most so often, and as a sign
// of life. A partition that nothing was written into by this relay has it due at once.
func (s *sequence) due(p place, often, life time.Duration) time.Time {
	recorded, ever := s.recorded[p]
	if !ever {
		return time.Time{}
	}
	if s.Last[p.topic][p.partition] < s.Position {
		return s.told[p].Add(often)
	}
	return recorded.Add(life)
}

// tell writes the log's position into a partition.
func (s *sequence) tell(p place, now time.Time) (position, before int64) {
	before = s.append(p, s.Position, now)
	s.told[p] = now
	return s.Position, before
}
