package faults

import (
	"slices"
	"strings"
)

// counters are the kinds of streams of which a client gets at least the newest event. Older ones may be left out.
var counters = []string{"marker", "seen", "reactions"}

func isCounter(stream string) bool {
	kind, _, _ := strings.Cut(stream, ":")
	return slices.Contains(counters, kind)
}

// roomOf returns the room in which the events of a counter are delivered: that of the user for "marker:7:ann", and that
// of the conversation for "seen:7:ann" and "reactions:7:8".
func roomOf(stream string) string {
	kind, id, _ := strings.Cut(stream, ":")
	conversation, rest, _ := strings.Cut(id, ":")
	if kind == "marker" {
		return "user:" + rest
	}
	return "conversation:" + conversation
}

// seesRoom reports whether a user gets the events of a room that have the given position.
func (l *seenLog) seesRoom(room, user string, position int64) bool {
	if own, is := strings.CutPrefix(room, "user:"); is {
		return own == user
	}
	events := l.versions[room]
	at := func(version int64) int64 { return events[version-1].Position }
	return slices.ContainsFunc(l.members[room][user], func(i interval) bool {
		return at(i.from) <= position && (i.to == stillOpen || position <= at(i.to))
	})
}

// seeCounter checks an event of a counter: the user must be a member of its room, and versions must ascend.
func (v *viewer) seeCounter(l *seenLog, e Seen) {
	written := l.versions[e.Stream]
	if e.Version < 1 || e.Version > int64(len(written)) {
		v.broken(clientsSee, "saw %s at version %d, which is not in the log", e.Stream, e.Version)
		return
	}
	v.same(written[e.Version-1], e)
	if !l.seesRoom(roomOf(e.Stream), v.session.User, written[e.Version-1].Position) {
		v.broken(access, "saw %s at version %d, but was not a member of %s", e.Stream, e.Version, roomOf(e.Stream))
	}
	if last := v.last[e.Stream]; e.Version <= last {
		v.broken(clientsSee, "saw %s at version %d after %d", e.Stream, e.Version, last)
	}
	v.last[e.Stream] = e.Version
}

// missedCounters checks that a session that lasted to the end of the run has received the newest event of each counter
// that was written after it was ready, except in rooms that were not recovered.
func (v *viewer) missedCounters(l *seenLog) {
	if !v.session.Ended.IsZero() {
		return
	}
	for stream, all := range l.versions {
		newest, room := all[len(all)-1], roomOf(stream)
		if !isCounter(stream) || v.notRecovered[room] || !newest.Time.After(v.session.Ready.Add(v.judge.s.Skew)) {
			continue
		}
		if l.seesRoom(room, v.session.User, newest.Position) && v.last[stream] < newest.Version {
			v.broken(clientsSee, "saw %s up to version %d, but should have seen version %d", stream, v.last[stream], newest.Version)
		}
	}
}
