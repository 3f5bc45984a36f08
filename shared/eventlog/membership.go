package eventlog

import "context"

// Stretch is a time during which somebody was in a room: from the event that opened it to the one that closed it, both
// included. Closed fields are 0 while it is open.
type Stretch struct {
	Room           string
	Member         string
	OpenedVersion  int64
	OpenedPosition int64
	ClosedVersion  int64
	ClosedPosition int64
}

// Rooms lists the rooms that users are in, and the position of the log as of which that was read.
func (l *Log) Rooms(ctx context.Context, users []string) (rooms map[string][]string, position int64, err error) {
	panic("being written")
}

// Stretches lists when a user was in a room, ascending.
func (l *Log) Stretches(ctx context.Context, room, user string) ([]Stretch, error) { panic("being written") }
