package eventlog

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// rows holds the rows that one commit writes. Each column is a slice, as the statements require.
type rows struct {
	positions, versions                     []int64
	ids                                     []uuid.UUID
	streams, types, topics, actors, causes  []string
	commandTypes, correlations              []string
	times                                   []time.Time
	classes                                 []int16
	rooms, opens, closes, subjects, parents []string
	answers                                 []bool
	bodies, personals                       [][]byte
	expires                                 []*time.Time
	timers                                  map[timerKey]*timerRow // nil: the timer is gone

	inRooms     []string // one entry for each room of each event
	inPositions []int64
	superseded  superseded

	memberships membershipChanges
	outcomes    []outcome
	redacted    redactions
	caused      []caused
}

type redactions struct {
	streams, subjects []string
	versions          []int64
}

// superseded are the versions of streams of counters that newer events have replaced. The events of streams with
// subjects are not among them, because a later event about another subject does not replace them. The versions are
// removed from the index of rooms, because a user who resumes gets only the newest value. Otherwise, the many events of
// markers in a room would displace the missed messages (see membership.Bounds).
type superseded struct {
	streams       []string
	first, newest []int64 // the versions from first to below newest are superseded
	index         map[string]int
}

// add records that an event with a version is now the newest of its stream.
func (s *superseded) add(stream string, version catalog.Version) {
	i, ok := s.index[stream]
	if !ok {
		if s.index == nil {
			s.index = map[string]int{}
		}
		i = len(s.streams)
		s.index[stream] = i
		s.streams, s.first = append(s.streams, stream), append(s.first, int64(version)-1)
		s.newest = append(s.newest, 0)
	}
	s.newest[i] = int64(version)
}

func (r *rows) event(a *admission, e *entry, d draft, answers bool) {
	version := a.versions[e.stream]
	id := eventID(a.owner, a.incarnation, e.stream, version)
	r.positions = append(r.positions, int64(a.position))
	r.versions = append(r.versions, int64(version))
	r.ids = append(r.ids, id)
	r.streams = append(r.streams, e.stream)
	r.types = append(r.types, d.declared.Name)
	r.topics = append(r.topics, d.declared.Topic)
	r.actors = append(r.actors, e.actor)
	r.causes = append(r.causes, e.cause)
	r.commandTypes = append(r.commandTypes, e.commandType)
	r.correlations = append(r.correlations, e.correlation)
	r.times = append(r.times, a.at)
	r.classes = append(r.classes, int16(d.declared.Class))
	r.rooms = append(r.rooms, strings.Join(d.place.Rooms, ","))
	r.opens = append(r.opens, encodeMemberships(d.place.Opens))
	r.closes = append(r.closes, encodeMemberships(d.place.Closes))
	r.subjects = append(r.subjects, d.place.Subject)
	r.parents = append(r.parents, e.traceParent)
	r.answers = append(r.answers, answers)
	r.bodies = append(r.bodies, d.body)
	r.personals = append(r.personals, d.personal)
	r.expires = append(r.expires, expiresOf(d.place))
	for i, room := range d.place.Rooms {
		if !slices.Contains(d.place.Rooms[:i], room) {
			r.inRooms = append(r.inRooms, room)
			r.inPositions = append(r.inPositions, int64(a.position))
		}
	}
	if d.declared.Class == routingv1.Class_CLASS_COUNTER && d.place.Subject == "" {
		r.superseded.add(e.stream, version)
	}
	r.memberships.add(d.place, version, a.position)
	if d.effect != nil {
		r.caused = append(r.caused, caused{envelope.Event{ID: id.String(), Type: d.declared.Name, Source: a.owner,
			Stream: e.stream, Version: version, Position: a.position, Actor: e.actor, Cause: e.cause,
			Correlation: e.correlation, Time: a.at, Class: d.declared.Class, Subject: d.place.Subject,
			TraceParent: e.traceParent}, d.message, d.effect})
	}
	if d.declared.Redacts {
		r.redacted.streams = append(r.redacted.streams, e.stream)
		r.redacted.subjects = append(r.redacted.subjects, d.place.Subject)
		r.redacted.versions = append(r.redacted.versions, int64(version))
	}
}

func (r *rows) empty() bool { return len(r.positions)+len(r.outcomes)+len(r.timers) == 0 }

// queue adds to a batch the statements that write all rows. Each statement comes after the statements that write the
// rows on which it depends.
func (r *rows) queue(b *pgx.Batch, sql *statements, at time.Time) {
	if len(r.positions) > 0 {
		b.Queue(sql.insertEvents, r.positions, r.streams, r.versions, r.ids, r.types, r.topics, r.actors, r.causes,
			r.commandTypes, r.correlations, r.times, r.classes, r.rooms, r.opens, r.closes, r.subjects, r.answers, r.parents,
			r.bodies, r.personals, r.expires)
	}
	if len(r.inRooms) > 0 {
		b.Queue(sql.insertRooms, r.inRooms, r.inPositions)
	}
	if len(r.superseded.streams) > 0 {
		b.Queue(sql.forgetRooms, r.superseded.streams, r.superseded.first, r.superseded.newest)
	}
	r.memberships.queue(b, sql)
	if len(r.redacted.streams) > 0 {
		b.Queue(sql.redact, r.redacted.streams, r.redacted.subjects, r.redacted.versions)
	}
	if len(r.timers) > 0 {
		var changes TimerChanges
		for k, row := range r.timers {
			changes.add(k, row)
		}
		changes.queue(b, sql.in)
	}
	if len(r.outcomes) > 0 {
		r.queueOutcomes(b, sql, at)
	}
}

func (r *rows) queueOutcomes(b *pgx.Batch, sql *statements, at time.Time) {
	n := len(r.outcomes)
	actors, ids, types, streams := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	kinds, codes, texts := make([]string, n), make([]string, n), make([]string, n)
	fields, digests := make([]string, n), make([]string, n)
	versions, positions := make([]int64, n), make([]int64, n)
	for i, o := range r.outcomes {
		fields[i], digests[i] = o.Field, o.digest
		actors[i], ids[i], types[i], streams[i] = o.Actor, o.CommandID, o.Type, o.Stream
		kinds[i], codes[i], texts[i] = string(o.Kind), o.Code, o.Text
		versions[i], positions[i] = int64(o.Version), int64(o.Position)
	}
	b.Queue(sql.insertOutcomes, actors, ids, types, streams, kinds, versions, positions, codes, texts, fields,
		digests, at)
}

func encodeMemberships(all []catalog.Membership) string {
	if len(all) == 0 {
		return ""
	}
	encoded, _ := json.Marshal(all) // encoding a struct of strings cannot fail
	return string(encoded)
}

// membershipChanges holds the changes of memberships in rounds. A round contains at most one change of each membership,
// so writing the rounds in order keeps the order of the changes of each membership.
type membershipChanges struct {
	rounds []round
	count  map[membershipKey]int
}

type round struct{ opens, closes memberships }

type memberships struct {
	rooms, members      []string
	versions, positions []int64
}

func (c *membershipChanges) add(p catalog.Place, version catalog.Version, position catalog.Position) {
	for _, m := range p.Opens {
		for _, user := range m.Users {
			c.round(m.Room, user).opens.add(m.Room, user, version, position)
		}
	}
	for _, m := range p.Closes {
		for _, user := range m.Users {
			c.round(m.Room, user).closes.add(m.Room, user, version, position)
		}
	}
}

func (c *membershipChanges) round(room, member string) *round {
	if c.count == nil {
		c.count = map[membershipKey]int{}
	}
	n := c.count[membershipKey{room, member}]
	c.count[membershipKey{room, member}]++
	if n == len(c.rounds) {
		c.rounds = append(c.rounds, round{})
	}
	return &c.rounds[n]
}

func (m *memberships) add(room, member string, version catalog.Version, position catalog.Position) {
	m.rooms, m.members = append(m.rooms, room), append(m.members, member)
	m.versions, m.positions = append(m.versions, int64(version)), append(m.positions, int64(position))
}

func (c *membershipChanges) queue(b *pgx.Batch, sql *statements) {
	for _, r := range c.rounds {
		if len(r.opens.rooms) > 0 {
			b.Queue(sql.openRooms, r.opens.rooms, r.opens.members, r.opens.versions, r.opens.positions)
		}
		if len(r.closes.rooms) > 0 {
			b.Queue(sql.closeRooms, r.closes.rooms, r.closes.members, r.closes.versions, r.closes.positions)
		}
	}
}
