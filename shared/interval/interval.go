// Package interval defines membership intervals and determines which events of a room a user may see because of these
// intervals. Owners use the package to read missed events. Gateways use it to divide these events among connections.
package interval

import "github.com/edumatrix/interlinked/proto/catalog"

// Interval is a membership interval: from the event that added a user to a room to the event that removed the user,
// both included.
type Interval struct {
	Room string
	// From and Until are the positions of these events in the owner's log. Until is 0 while the user is in the room.
	From, Until catalog.Position
	// FromVersion and UntilVersion are the versions of these events in the stream of the room; 0 where they are not
	// needed.
	FromVersion, UntilVersion catalog.Version
}

// Gap is the part of a room's events above the position After and up to the position Until.
type Gap struct {
	Room         string
	After, Until catalog.Position
}

// Missed returns the gaps of a user who resumes. The parameter after is the position up to which the user has all
// events, and the parameter head is the position of the log's head. There is one gap for the user's own room, one for
// each room that the user is subscribed to, and one for each interval. Empty gaps are left out.
func Missed(user string, subscribed []string, intervals []Interval, after, head catalog.Position) []Gap {
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

// Boundaries returns the positions above the parameter after at which the user was added or removed. The user gets the
// events at these positions even if they are not events of the room.
func (i Interval) Boundaries(after catalog.Position) (positions []catalog.Position) {
	for _, position := range [...]catalog.Position{i.From, i.Until} {
		if position > after {
			positions = append(positions, position)
		}
	}
	return positions
}
