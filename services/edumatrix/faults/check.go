package faults

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Violation is a violation of a guarantee.
type Violation struct {
	Promise string // the guarantee, one of the constants below
	What    string
}

func (v Violation) String() string { return v.Promise + ": " + v.What }

// The guarantees that Check checks. The numbers are those in docs/guarantees.md.
const (
	kept       = "1 acknowledged is kept"
	oneOutcome = "2 one effect, one outcome"
	dense      = "3 streams are dense and in order"
	topicsHave = "3 topics carry every event"
	clientsSee = "4 clients see each event once, in order"
	rebuild    = "5 projections equal a rebuild"
	access     = "6 users see only the rooms that they are members of"
	rules      = "6 users change only what their roles allow"
	deadAlone  = "8 only messages that always fail are dead letters"
	survives   = "9 the mesh survives outages"
)

// maxListed is the maximum number of violations of one guarantee that are listed.
const maxListed = 12

// judge collects violations.
type judge struct {
	h     *History
	s     *Stored
	found []Violation
	count map[string]int
}

// Poison is an unreadable payload that a fault has published, or has tried to publish.
type Poison struct {
	Topic   string
	Payload string
	Dead    bool // whether it must become a dead letter; if false, it may become one
}

// Check compares a history with the contents of the stores, and returns the violations of guarantees. No messages other
// than poisoned ones may be dead letters.
func Check(h *History, s *Stored, poisoned []Poison) []Violation {
	j := &judge{h: h, s: s, count: map[string]int{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range s.Logs {
		j.log(&s.Logs[i])
	}
	j.commands()
	j.order()
	j.topics()
	j.sessions()
	j.notifications()
	j.conversations()
	for _, d := range s.Differences {
		j.broken(rebuild, "%s", d)
	}
	j.dead(poisoned)
	for _, promise := range slices.Sorted(maps.Keys(j.count)) {
		if n := j.count[promise]; n > maxListed {
			j.found = append(j.found, Violation{promise, fmt.Sprintf("and %d more", n-maxListed)})
		}
	}
	return j.found
}

func (j *judge) broken(promise, format string, args ...any) {
	if j.count[promise]++; j.count[promise] <= maxListed {
		j.found = append(j.found, Violation{promise, fmt.Sprintf(format, args...)})
	}
}

// log checks the contents of one log: positions must ascend, versions must be dense, and ids must differ; the relay
// must have reached the end of the log, and no stream may be parked; and the stored memberships must follow from the
// events.
func (j *judge) log(l *Log) {
	versions, ids := map[string]int64{}, map[string]bool{}
	var position int64
	for _, e := range l.Events {
		if e.Position <= position {
			j.broken(dense, "%s: position %d comes after %d", l.Owner, e.Position, position)
		}
		position = e.Position
		if e.Version != versions[e.Stream]+1 {
			j.broken(dense, "%s: %s has version %d after %d", l.Owner, e.Stream, e.Version, versions[e.Stream])
		}
		versions[e.Stream] = e.Version
		if ids[e.ID] {
			j.broken(oneOutcome, "%s: two events have the id %s", l.Owner, e.ID)
		}
		ids[e.ID] = true
	}
	if l.Relayed < position {
		j.broken(survives, "%s: the relay is at %d, the log at %d", l.Owner, l.Relayed, position)
	}
	if l.Parked > 0 {
		j.broken(deadAlone, "%s has parked %d streams of other owners, none of which was poisoned", l.Owner, l.Parked)
	}
	folded := l.intervals()
	kept := map[string]map[string][]interval{}
	for _, m := range l.Memberships {
		if kept[m.Room] == nil {
			kept[m.Room] = map[string][]interval{}
		}
		to := m.Closed
		if to == 0 {
			to = stillOpen
		}
		kept[m.Room][m.Member] = append(kept[m.Room][m.Member], interval{m.Opened, to})
	}
	for room, members := range folded {
		for user, want := range members {
			if got := kept[room][user]; !slices.Equal(got, want) {
				j.broken(access, "%s: memberships of %s in %s are %v, but %v by its events", l.Owner, user, room, got, want)
			}
			delete(kept[room], user)
		}
	}
	for room, members := range kept {
		for user := range members {
			j.broken(access, "%s: no event put %s into %s", l.Owner, user, room)
		}
	}
}

type commandKey struct{ actor, id string }

// commands compares the answers that clients got with the stored outcomes and events.
func (j *judge) commands() {
	events, outcomes := map[string]map[commandKey][]Event{}, map[string]map[commandKey]Outcome{}
	for _, l := range j.s.Logs {
		events[l.Owner], outcomes[l.Owner] = map[commandKey][]Event{}, map[commandKey]Outcome{}
		for _, e := range l.Events {
			k := commandKey{e.Actor, e.Cause}
			events[l.Owner][k] = append(events[l.Owner][k], e)
		}
		for _, o := range l.Outcomes {
			outcomes[l.Owner][commandKey{o.Actor, o.CommandID}] = o
		}
	}
	sent := map[string]map[commandKey]bool{}
	for _, c := range j.h.commands {
		k := commandKey{c.Actor, c.ID}
		if sent[c.Owner] == nil {
			sent[c.Owner] = map[commandKey]bool{}
		}
		sent[c.Owner][k] = true
		if slices.ContainsFunc(c.Answers, func(a Answer) bool { return a.Kind == Nothing }) {
			j.broken(survives, "%s got no answer, not even \"queued\", on a connection that stayed open", c)
		}
		answered, known := c.Outcome()
		o, stored := outcomes[c.Owner][k]
		caused := events[c.Owner][k]
		switch {
		case !known && !stored:
			j.broken(kept, "%s has no outcome; it was sent %d times since %s and answered %v", c, c.Sends, c.Sent.Format(clock), c.kinds())
			continue
		case !known:
			j.broken(survives, "%s never got its outcome %s; it was sent %d times and answered %v", c, o.Kind, c.Sends, c.kinds())
		case !stored:
			j.broken(kept, "%s got the outcome %s, but no outcome is stored", c, answered.Kind)
			continue
		}
		for _, a := range c.Answers {
			if a.Final() && !a.same(answered) {
				j.broken(oneOutcome, "%s got the outcome %v, then %v", c, answered, a)
			}
		}
		stored1 := Answer{Kind: o.Kind, Code: o.Code, Stream: o.Stream, Version: o.Version}
		if known && !answered.same(stored1) {
			j.broken(oneOutcome, "%s got the outcome %v, but the stored outcome is %v", c, answered, stored1)
		}
		if o.Kind == Failed {
			j.broken(deadAlone, "%s failed (%s) although it was valid", c, o.Code)
		}
		j.effect(c, o, caused)
	}
	for owner, all := range events {
		for k, caused := range all {
			if owner != "notification" && !sent[owner][k] {
				j.broken(oneOutcome, "%s at version %d was caused by a command that no client sent (%s of %s)", caused[0].Stream,
					caused[0].Version, k.id, k.actor)
			}
		}
	}
}

// effect compares a command's events with its outcome. The outcome must contain the stream, version and position of the
// command's last event. A command that was decided twice would have two events of one type in a stream.
func (j *judge) effect(c *Command, o Outcome, caused []Event) {
	switch {
	case o.Kind != Committed && len(caused) > 0:
		j.broken(oneOutcome, "%s is %s but has %d events", c, o.Kind, len(caused))
	case o.Kind == Committed && len(caused) == 0:
		j.broken(kept, "%s is committed, but its event is not in the log", c)
	case o.Kind == Committed:
		types := map[[2]string]bool{}
		for _, e := range caused {
			if k := [2]string{e.Stream, e.Type}; types[k] {
				j.broken(oneOutcome, "%s has two events %s in %s", c, e.Type, e.Stream)
			} else {
				types[k] = true
			}
		}
		own := slices.DeleteFunc(slices.Clone(caused), func(e Event) bool { return e.Stream != o.Stream })
		if len(own) == 0 {
			j.broken(kept, "%s is committed, but has no event in %s", c, o.Stream)
			return
		}
		e := own[len(own)-1]
		if e.Stream != o.Stream || e.Version != o.Version || e.Position != o.Position {
			j.broken(oneOutcome, "%s: outcome at %s %d (%d), event at %s %d (%d)", c, o.Stream, o.Version, o.Position, e.Stream,
				e.Version, e.Position)
		}
		if c.Text != "" && !e.Redacted && e.Text != c.Text {
			j.broken(kept, "%s: the log contains %q, but %q was sent", c, e.Text, c.Text)
		}
	}
}

func (c *Command) String() string { return fmt.Sprintf("%s %s of %s", c.Type, c.ID, c.Actor) }

const clock = "15:04:05.000"

func (c *Command) kinds() (all []string) {
	for _, a := range c.Answers {
		all = append(all, a.Kind)
	}
	return all
}

// order compares versions with real time. If a command was sent after the outcome of another command of the same stream
// had arrived, its version must be the higher one.
func (j *judge) order() {
	type span struct {
		sent, answered time.Time
		version        int64
		command        *Command
	}
	streams := map[string][]span{}
	for _, c := range j.h.commands {
		if a, ok := c.Outcome(); ok && a.Kind == Committed {
			streams[a.Stream] = append(streams[a.Stream], span{c.Sent, a.At, a.Version, c})
		}
	}
	for stream, all := range streams {
		slices.SortFunc(all, func(a, b span) int { return int(a.version - b.version) })
		// In this loop, the variable latest is the command that was sent last among the commands with lower versions
		// than s.
		var latest span
		for _, s := range all {
			if s.answered.Before(latest.sent) {
				j.broken(dense, "%s: %s got version %d, and its outcome arrived before %s was sent, which got %d", stream, s.command,
					s.version, latest.command, latest.version)
			}
			if s.sent.After(latest.sent) {
				latest = s
			}
		}
	}
}

// topics checks that every event of the logs is on its topic, and that a reader of a partition can accept its records
// in order. The field Before of a record is the position of the previous event in the partition. A reader accepts a
// record if Before is at or below the highest position that the reader has accepted. If Before is higher, an event is
// missing. If a batch was interrupted, a later record may precede an earlier one, and the relay publishes both again.
// Therefore topics requires only that the reader finally accepts the highest position of the partition. It does not
// check topics that have lost confirmed records (Stored.Torn).
func (j *judge) topics() {
	type place struct {
		topic     string
		partition int32
	}
	taken, highest := map[place]int64{}, map[place]int64{}
	relayed := map[string]map[string]map[int64]bool{} // topic → stream → version
	for _, r := range j.s.Records {
		p := place{r.Topic, r.Partition}
		if r.Stream != "" {
			if relayed[r.Topic] == nil {
				relayed[r.Topic] = map[string]map[int64]bool{}
			}
			if relayed[r.Topic][r.Stream] == nil {
				relayed[r.Topic][r.Stream] = map[int64]bool{}
			}
			relayed[r.Topic][r.Stream][r.Version] = true
		}
		highest[p] = max(highest[p], r.Position)
		if r.Before <= taken[p] {
			taken[p] = max(taken[p], r.Position)
		}
	}
	for p, position := range highest {
		if taken[p] < position && !j.s.Torn[p.topic] {
			j.broken(topicsHave, "%s/%d ends at position %d and has a gap after %d", p.topic, p.partition, position, taken[p])
		}
	}
	for _, l := range j.s.Logs {
		for _, e := range l.Events {
			if !relayed[e.Topic][e.Stream][e.Version] && !j.s.Torn[e.Topic] {
				j.broken(topicsHave, "%s at version %d, position %d of %s, is not on %s", e.Stream, e.Version, e.Position, l.Owner,
					e.Topic)
			}
		}
	}
}

// notifications checks the notifications of the events that add users to conversations. Each added user, except the
// actor of the event, must have exactly one notification of the event. A user's notifications about one conversation
// must be in the order of its events, and there must be no other notifications. The function also checks that the
// service notification has consumed all events of chat.
func (j *judge) notifications() {
	chat, own := j.s.log("chat"), j.s.log("notification")
	type raised struct {
		user, stream string
		version      int64
	}
	got := map[raised]int{}
	last := map[string]map[string]int64{} // user → stream → version
	for _, e := range own.Events {
		user, ok := strings.CutPrefix(e.Stream, "notifications:")
		if !ok {
			continue
		}
		got[raised{user, e.About, e.AboutAt}]++
		if last[user] == nil {
			last[user] = map[string]int64{}
		}
		if e.AboutAt <= last[user][e.About] {
			j.broken(oneOutcome, "notification: %s was notified of %s version %d after %d", user, e.About, e.AboutAt,
				last[user][e.About])
		}
		last[user][e.About] = e.AboutAt
	}
	for _, e := range chat.Events {
		for _, o := range e.Opens {
			for _, user := range o.Users {
				if user == e.Actor {
					continue
				}
				k := raised{user, e.Stream, e.Version}
				if n := got[k]; n != 1 {
					j.broken(oneOutcome, "notification: for %s version %d, %s was notified %d times", e.Stream, e.Version, user, n)
				}
				delete(got, k)
			}
		}
	}
	for k := range got {
		j.broken(oneOutcome, "notification: for %s version %d, %s was notified without a reason", k.stream, k.version, k.user)
	}
	head := int64(0)
	for _, e := range chat.Events {
		head = max(head, e.Position)
	}
	for partition, position := range own.Consumed {
		if position < head {
			j.broken(survives, "notification consumed partition %d up to %d, but the log is at %d", partition, position, head)
		}
	}
}

// dead compares the dead letters with the poisoned messages. After a crash, a message may have two dead letters.
func (j *judge) dead(poisoned []Poison) {
	for _, d := range j.s.Dead {
		if !slices.ContainsFunc(poisoned, func(p Poison) bool { return p.Payload == d.Payload }) {
			j.broken(deadAlone, "a message of %s that was not poisoned is a dead letter on %s: %s", d.Original, d.Topic, d.Error)
		}
	}
	for _, p := range j.s.unburied(poisoned) {
		j.broken(deadAlone, "no dead letter contains %q", p.Payload)
	}
}
