package faults

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sessions compares the events that each session received, over all its connections, with the logs. A session must have
// received every event that was written to its rooms after the session began, once and in order (posts in any order).
// Only two kinds of events may be lacking: missed events of rooms that were not recovered, and the last events of a
// session that ended before the end of the run. A session must not have received events of other rooms.
func (j *judge) sessions() {
	logs := map[string]*seenLog{}
	for i := range j.s.Logs {
		l := &j.s.Logs[i]
		logs[l.Owner] = newSeenLog(l)
	}
	acked := map[string]map[int64]time.Time{} // stream → version → when a client first got the outcome
	for _, c := range j.h.commands {
		if a, ok := c.Outcome(); ok && a.Kind == Committed {
			if acked[a.Stream] == nil {
				acked[a.Stream] = map[int64]time.Time{}
			}
			if t, ok := acked[a.Stream][a.Version]; !ok || a.At.Before(t) {
				acked[a.Stream][a.Version] = a.At
			}
		}
	}
	for _, s := range j.h.sessions {
		v := &viewer{judge: j, session: s, acked: acked, last: map[string]int64{}, jumps: map[string]bool{},
			notRecovered: map[string]bool{}}
		for _, e := range s.Events {
			if e.Type == NotRecovered {
				v.jumps[streamIn(e.Stream)], v.notRecovered[e.Stream] = true, true
				continue
			}
			owner, _, _ := strings.Cut(e.Type, ".")
			switch l := logs[owner]; {
			case l == nil:
			case strings.HasPrefix(e.Stream, "post:"):
				v.seePost(l, e)
			case isCounter(e.Stream):
				v.seeCounter(l, e)
			default:
				v.see(l, e)
			}
		}
		for _, l := range logs {
			v.missed(l)
			v.missedCounters(l)
		}
		if feed := logs["feed"]; feed != nil {
			v.missedPosts(feed)
		}
	}
}

// streamIn returns the stream whose events are delivered in a room. The room of a user has the stream of the user's
// notifications. Any other room has the stream of the same name.
func streamIn(room string) string {
	if user, ok := strings.CutPrefix(room, "user:"); ok {
		return "notifications:" + user
	}
	return room
}

// seenLog is a log, indexed for the comparison with the events that clients saw.
type seenLog struct {
	*Log
	members  map[string]map[string][]interval // room → user → membership intervals
	versions map[string][]Event               // stream → events by version, from 1
}

func newSeenLog(l *Log) *seenLog {
	s := &seenLog{Log: l, members: l.intervals(), versions: map[string][]Event{}}
	for _, e := range l.Events {
		s.versions[e.Stream] = append(s.versions[e.Stream], e)
	}
	return s
}

// open returns the membership intervals of a user in the room of a stream. The user's own streams, such as
// notifications:ann for ann, have one interval that contains all versions. open returns false for counters, and
// for streams whose rooms have no members because users subscribe to them.
func (l *seenLog) open(stream, user string) ([]interval, bool) {
	if isCounter(stream) {
		return nil, false
	}
	if room := l.members[stream]; room != nil {
		return room[user], true
	}
	if strings.HasSuffix(stream, ":"+user) {
		return []interval{{1, stillOpen}}, true
	}
	return nil, strings.HasPrefix(stream, "conversation:") || strings.HasPrefix(stream, "notifications:")
}

// viewer checks the events that one session received.
type viewer struct {
	judge   *judge
	session *Session
	acked   map[string]map[int64]time.Time
	last    map[string]int64 // the last version that the session received, by stream
	jumps   map[string]bool  // streams whose rooms were not recovered, until the next event of the stream

	notRecovered map[string]bool // rooms that were not recovered at least once
}

func (v *viewer) broken(promise, format string, args ...any) {
	s := v.session
	who := fmt.Sprintf("%s (ready %s, resumed %d times)", s.Device, s.Ready.Format(clock), s.Resumed)
	v.judge.broken(promise, "%s "+format, append([]any{who}, args...)...)
}

func (v *viewer) see(l *seenLog, e Seen) {
	user := v.session.User
	open, judged := l.open(e.Stream, user)
	if !judged {
		return
	}
	if e.Version < 1 || e.Version > int64(len(l.versions[e.Stream])) {
		v.broken(clientsSee, "saw %s at version %d, which is not in the log", e.Stream, e.Version)
		return
	}
	v.same(l.versions[e.Stream][e.Version-1], e)
	if !within(open, e.Version) {
		v.broken(access, "saw %s at version %d, but was a member in %v", e.Stream, e.Version, open)
		return
	}
	last, ever := v.last[e.Stream]
	jumps := v.jumps[e.Stream]
	delete(v.jumps, e.Stream)
	switch {
	case !ever && jumps:
	case !ever:
		// An event that was acknowledged before the session began must not be delivered to it.
		if t, ok := v.acked[e.Stream][e.Version]; ok && t.Before(v.session.Dialed) {
			v.broken(clientsSee, "saw %s at version %d, acknowledged before it connected", e.Stream, e.Version)
		}
		if missed := v.due(l, e.Stream, open, e.Version); missed > 0 {
			v.broken(clientsSee, "saw %s from version %d on, but version %d was written after it was ready", e.Stream, e.Version,
				missed)
		}
	case e.Version <= last:
		v.broken(clientsSee, "saw %s at version %d after %d", e.Stream, e.Version, last)
		return
	case e.Version != after(open, last) && !jumps:
		v.broken(clientsSee, "saw %s at version %d after %d: a gap", e.Stream, e.Version, last)
	}
	v.last[e.Stream] = e.Version
}

// due returns the lowest version of a stream that the session must have received, or 0 if there is none. It considers
// only versions that are lower than the one in the last parameter. When a session is ready, the gateway has read the
// rooms of the session's user. Therefore the session must receive every event that is written to these rooms from then
// on.
func (v *viewer) due(l *seenLog, stream string, open []interval, before int64) int64 {
	for _, e := range l.versions[stream] {
		if e.Version >= before {
			break
		}
		if e.Time.After(v.session.Ready.Add(v.judge.s.Skew)) && within(open, e.Version) {
			return e.Version
		}
	}
	return 0
}

// same compares an event that the session received with the event in the log.
func (v *viewer) same(written Event, e Seen) {
	switch {
	case written.ID != e.ID || written.Type != e.Type || written.Actor != e.Actor:
		v.broken(clientsSee, "saw %s at version %d as %s %s by %s, but the log has %s %s by %s", e.Stream, e.Version, e.Type, e.ID,
			e.Actor, written.Type, written.ID, written.Actor)
	case e.Redacted && !written.Redacted:
		v.broken(clientsSee, "saw %s at version %d redacted, but it is not redacted in the log", e.Stream, e.Version)
	case !e.Redacted && !written.Redacted && e.Text != written.Text:
		v.broken(clientsSee, "saw %s at version %d as %q, but the log has %q", e.Stream, e.Version, e.Text, written.Text)
	}
}

// missed checks that a session that lasted to the end of the run has received, from each of its rooms, the newest event
// within the membership intervals of its user, except for rooms that were not recovered.
func (v *viewer) missed(l *seenLog) {
	if !v.session.Ended.IsZero() {
		return
	}
	for stream, all := range l.versions {
		open, judged := l.open(stream, v.session.User)
		if !judged || v.jumps[stream] {
			continue
		}
		last, ever := v.last[stream]
		if !ever {
			if missed := v.due(l, stream, open, stillOpen); missed > 0 {
				v.broken(clientsSee, "saw nothing of %s, but version %d was written after it was ready", stream, missed)
			}
			continue
		}
		if next := after(open, last); next > 0 && next <= int64(len(all)) {
			v.broken(clientsSee, "saw %s up to version %d of %d, but should have seen version %d", stream, last, len(all), next)
		}
	}
}

// seePost checks that a post is the one in the log, that the session subscribes to its author, and that the session
// receives the post only once. Posts may arrive in any order.
func (v *viewer) seePost(l *seenLog, e Seen) {
	written := l.versions[e.Stream]
	if e.Version < 1 || e.Version > int64(len(written)) {
		v.broken(clientsSee, "saw %s at version %d, which is not in the log", e.Stream, e.Version)
		return
	}
	v.same(written[e.Version-1], e)
	if !slices.Contains(v.session.Subscriptions, e.Actor) {
		v.broken(access, "saw %s of %s, but subscribes to %v", e.Stream, e.Actor, v.session.Subscriptions)
	}
	if last := v.last[e.Stream]; e.Version <= last {
		v.broken(clientsSee, "saw %s at version %d after %d", e.Stream, e.Version, last)
	}
	v.last[e.Stream] = e.Version
}

// missedPosts checks that a session that lasted to the end of the run has received every post that an author wrote
// after the session subscribed to the author, except for rooms that were not recovered.
func (v *viewer) missedPosts(feed *seenLog) {
	if !v.session.Ended.IsZero() {
		return
	}
	for _, e := range feed.Events {
		if v.judge.due(v.session, e) && !v.jumps["author:"+e.Actor] && v.last[e.Stream] < e.Version {
			v.broken(clientsSee, "did not see %s at version %d of %s, to whom it subscribes", e.Stream, e.Version, e.Actor)
		}
	}
}

// due reports whether a post was written after a session subscribed to its author.
func (j *judge) due(s *Session, e Event) bool {
	return strings.HasPrefix(e.Stream, "post:") && slices.Contains(s.Subscriptions, e.Actor) && e.Time.After(s.Subscribed.Add(j.s.Skew))
}
