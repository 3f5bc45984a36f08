package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

// droppedRetention is how long the record of a dropped dead letter is kept. It is longer than the retention of the
// topic of dead letters.
const droppedRetention = 60 * 24 * time.Hour

// DropDeadLetter records that a dead letter was dropped.
func (s *Store) DropDeadLetter(ctx context.Context, l *meshv1.DeadLetter) error {
	field := fmt.Sprintf("%d %d %s", l.GetPartition(), l.GetOffset(), l.GetId())
	if err := s.redis.HSet(ctx, s.prefix+"dropped", field, time.Now().Unix()).Err(); err != nil {
		return fmt.Errorf("drop a dead letter: %w", err)
	}
	return nil
}

// DroppedDeadLetters returns the dead letters that were dropped within droppedRetention, and deletes older records.
func (s *Store) DroppedDeadLetters(ctx context.Context) ([]*meshv1.DeadLetter, error) {
	kept, err := s.redis.HGetAll(ctx, s.prefix+"dropped").Result()
	if err != nil {
		return nil, fmt.Errorf("read the dropped dead letters: %w", err)
	}
	var all []*meshv1.DeadLetter
	var old []string
	for field, at := range kept {
		if dropped, err := strconv.ParseInt(at, 10, 64); err != nil || time.Since(time.Unix(dropped, 0)) > droppedRetention {
			old = append(old, field)
			continue
		}
		l := &meshv1.DeadLetter{}
		partition, rest, _ := strings.Cut(field, " ")
		offset, id, _ := strings.Cut(rest, " ")
		number, err := strconv.ParseInt(partition, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("dropped dead letter %q: %w", field, err)
		}
		if l.Offset, err = strconv.ParseInt(offset, 10, 64); err != nil {
			return nil, fmt.Errorf("dropped dead letter %q: %w", field, err)
		}
		l.Partition, l.Id = int32(number), id
		all = append(all, l)
	}
	if len(old) > 0 {
		if err := s.redis.HDel(ctx, s.prefix+"dropped", old...).Err(); err != nil {
			return nil, fmt.Errorf("remove old dropped dead letters: %w", err)
		}
	}
	return all, nil
}
