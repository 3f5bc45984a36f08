// Package interval has the times during which users were in rooms, and which events of the rooms these times show them.
// Owners read missed events by it, and gateways divide them among connections.
package interval

import "github.com/edumatrix/interlinked/proto/catalog"

// Interval is a time during which a user was in a room, from the event that let the user in to the event that let the
// user out, both included.
type Interval struct {
	Room string
	// From and Until are the positions of these events in the owner's log. Until is 0 while the user is in the room.
	From, Until int64
	// FromVersion and UntilVersion are their versions in the stream of the room; 0 where they are not needed.
	FromVersion, UntilVersion int64
}

// Gap is the part of a room's events above one position, up to another.
type Gap struct {
	Room         string
	After, Until int64
}

// Missed returns the gaps of a user who has the log up to a position and resumes at its head: those of the user's own
// room, of other rooms that the user subscribes to, and of the intervals. Empty gaps are left out.
func Missed(user string, subscribed []string, intervals []Interval, after, head int64) []Gap {
	gaps := make([]Gap, 0, 1+len(subscribed)+len(intervals))
	add := func(g Gap) {
		if g.After < g.Until {
			gaps = append(gaps, g)
		}
	}
	add(Gap{catalog.UserRoom(user), after, head})
	for _, room := range subscribed {
		add(Gap{room, after, head})
	}
	for _, i := range intervals {
		until := head
		if i.Until > 0 {
			until = min(i.Until, head)
		}
		add(Gap{i.Room, max(after, i.From-1), until})
	}
	return gaps
}

// Boundaries returns the positions of the events that let the user in and out, as far as they are above a position. The
// user gets these events, which need not be in the room.
func (i Interval) Boundaries(after int64) (positions []int64) {
	for _, position := range [...]int64{i.From, i.Until} {
		if position > after {
			positions = append(positions, position)
		}
	}
	return positions
}
