package faults

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
)

// Stored contains the data in the stores at the end of a run, when nothing is in flight.
type Stored struct {
	Logs    []Log
	Records []Record        // the records on the topics of all logs, also deleted ones, in the order of each partition
	Torn    map[string]bool // topics that lost confirmed records
	Dead    []Dead
	// Skew is the maximum difference between the clocks of the services, which set the times of events, and the clock
	// of the clients.
	Skew time.Duration
	// Differences are the rows that a rebuild of the projections changed.
	Differences []string
}

// Log is the log of one owner.
type Log struct {
	Owner       string
	Events      []Event // by position
	Outcomes    []Outcome
	Memberships []Membership
	Consumed    map[int32]int64 // partition of chat-events → position of its checkpoint
	Relayed     int64           // the position up to which Kafka has confirmed the events
	Parked      int             // the number of parked streams of other owners
}

// Event is a row of a log.
type Event struct {
	Position int64
	Stream   string
	Version  int64
	ID       string
	Type     string
	Topic    string
	Actor    string
	Cause    string
	Time     time.Time
	Redacted bool
	Text     string
	Opens    []Change
	Closes   []Change
	About    string // the stream of the event that raised a notification; AboutAt is its version
	AboutAt  int64
	Message  proto.Message // the event itself
}

// Change is a room that an event opens or closes, with the users for whom the event does so.
type Change struct {
	Room  string
	Users []string
}

// Outcome is a row of a log's outcomes.
type Outcome struct {
	Actor, CommandID, Type, Stream, Kind, Code string
	Version, Position                          int64
}

// Membership is a row of a log's memberships. Opened and Closed are versions of the room's stream. Closed is 0 while
// the user is a member.
type Membership struct {
	Room, Member   string
	Opened, Closed int64
}

// Record is a record on the topic of a log: an event, or a position record (see envelope.Event.IsPosition).
type Record struct {
	Owner     string
	Topic     string
	Partition int32
	Offset    int64
	Position  int64
	Before    int64
	Stream    string // empty in a position record
	Version   int64
	Type      string
}

// Dead is a dead letter.
type Dead struct {
	Topic    string // the topic of dead letters
	Original string // the topic from which the message came
	Error    string
	Payload  string
}

// unburied returns the messages that must be dead letters but are not.
func (s *Stored) unburied(poisoned []Poison) (left []Poison) {
	for _, p := range poisoned {
		if p.Dead && !slices.ContainsFunc(s.Dead, func(d Dead) bool { return d.Payload == p.Payload }) {
			left = append(left, p)
		}
	}
	return left
}

func (s *Stored) log(owner string) *Log {
	for i := range s.Logs {
		if s.Logs[i].Owner == owner {
			return &s.Logs[i]
		}
	}
	return &Log{Owner: owner}
}

// interval is a membership interval. Its ends are versions of the room's stream, and both are included.
type interval struct{ from, to int64 }

// stillOpen is the end of a membership interval that has not been closed.
const stillOpen = int64(1) << 62

// intervals computes the membership intervals of all rooms from the events.
func (l *Log) intervals() map[string]map[string][]interval {
	rooms := map[string]map[string][]interval{}
	for _, e := range l.Events {
		for _, o := range e.Opens {
			if rooms[o.Room] == nil {
				rooms[o.Room] = map[string][]interval{}
			}
			for _, user := range o.Users {
				all := rooms[o.Room][user]
				if n := len(all); n == 0 || all[n-1].to != stillOpen {
					rooms[o.Room][user] = append(all, interval{e.Version, stillOpen})
				}
			}
		}
		for _, c := range e.Closes {
			for _, user := range c.Users {
				if all := rooms[c.Room][user]; len(all) > 0 && all[len(all)-1].to == stillOpen {
					all[len(all)-1].to = e.Version
				}
			}
		}
	}
	return rooms
}

// within reports whether a version lies in one of the intervals.
func within(all []interval, version int64) bool {
	return slices.ContainsFunc(all, func(s interval) bool { return s.from <= version && version <= s.to })
}

// after returns the lowest version that is above the given version and lies in one of the intervals, or 0 if there is
// none.
func after(all []interval, version int64) int64 {
	for _, s := range all {
		if version < s.from {
			return s.from
		}
		if version < s.to {
			return version + 1
		}
	}
	return 0
}
