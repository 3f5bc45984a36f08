package eventlog

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// ClockSQL is an SQL expression for the log's clock, in microseconds since 1970. The log's clock is the clock of
// Postgres, but never before the time of the newest event, even after a failover to a server whose clock is behind.
const ClockSQL = `(extract(epoch FROM greatest(clock_timestamp(), (SELECT time FROM owner.events ORDER BY position DESC
  LIMIT 1))) * 1000000)::bigint`

const (
	sqlClock = `SELECT ` + ClockSQL

	// sqlLoadNewest reads the newest event of a stream if its version is above $2, the newest event about each of the
	// subjects in $3, and the stream's version. It is for streams in which each event contains the whole value.
	sqlLoadNewest = `(SELECT true AS wanted, ` + impersonal + ` FROM owner.events WHERE stream = $1 AND version > $2
  ORDER BY version DESC LIMIT 1)
UNION
(SELECT true, n.* FROM unnest($3::text[]) AS s (subject), LATERAL (
  SELECT ` + impersonal + ` FROM owner.events e WHERE e.stream = $1 AND e.subject = s.subject AND s.subject <> ''
  ORDER BY version DESC LIMIT 1) n)
UNION ALL
(SELECT false, ` + impersonal + ` FROM owner.events WHERE stream = $1 ORDER BY version DESC LIMIT 1)
ORDER BY version, wanted`
)

type membershipKey struct{ room, member string }

// try checks a Write against the rows that were read under the log's lock and against the writes that were admitted
// before it in the same transaction. It does not change the admission.
func (a *admission) try(p *prepared) error {
	t := trial{admission: a}
	for _, e := range p.entries {
		if err := t.check(e); err != nil {
			return err
		}
	}
	if t.refusals != nil {
		return &RefusedError{t.refusals}
	}
	if t.notDue != nil {
		return &TimerError{t.notDue}
	}
	return nil
}

// trial holds the changes that the entries of one Write would make to the admission, while the Write is checked. A
// value in a trial takes precedence over that of the admission, except that the field rooms contains differences.
type trial struct {
	admission *admission
	versions  map[string]catalog.Version
	members   map[membershipKey]bool
	timers    map[timerKey]*timerRow // nil: the timer is gone
	parts     map[partKey]partState
	rooms     map[roomsKey]int       // changes of the numbers of rooms that the admission contains
	refusals  map[int]*refusal.Error // by index of the command
	notDue    map[int]bool           // indexes of the commands whose timer is gone or not due
}

func (t *trial) check(e *entry) error {
	version, changed := t.versions[e.stream]
	if !changed {
		version = t.admission.versions[e.stream]
	}
	if e.memberOf != "" && !t.isMember(membershipKey{e.memberOf, e.actor}) {
		t.refuse(e.index, refusal.New(refusal.NotAMember, "you are not a member of this %s", catalog.KindOf(e.memberOf)))
	}
	t.checkPart(e)
	if e.expected != AnyVersion && e.expected != version {
		if e.otherwise == nil {
			return &ConflictError{Stream: e.stream, Expected: e.expected, Actual: version}
		}
		t.refuse(e.index, e.otherwise)
	}
	if e.fired != nil && !t.isDue(*e.fired) {
		if t.notDue == nil {
			t.notDue = map[int]bool{}
		}
		t.notDue[e.index] = true
	}
	for i, d := range e.drafts {
		t.countRooms(e, d)
		t.note(e.stream, version+catalog.Version(i)+1, d)
	}
	if t.versions == nil {
		t.versions = map[string]catalog.Version{}
	}
	t.versions[e.stream] = version + catalog.Version(len(e.drafts))
	return nil
}

func (t *trial) refuse(command int, r *refusal.Error) {
	if t.refusals == nil {
		t.refusals = map[int]*refusal.Error{}
	}
	if t.refusals[command] == nil {
		t.refusals[command] = r
	}
}

func (t *trial) isMember(k membershipKey) bool {
	if is, changed := t.members[k]; changed {
		return is
	}
	return t.admission.members[k]
}

func (t *trial) isDue(k TimerKey) bool {
	key := timerKey{k.Stream, k.Key}
	have, changed := t.timers[key]
	if !changed {
		have = t.admission.timers[key]
	}
	return have != nil && have.generation == k.Generation && !have.due.After(t.admission.at)
}

func (t *trial) note(stream string, version catalog.Version, d draft) {
	if len(d.place.Opens)+len(d.place.Closes) > 0 && t.members == nil {
		t.members = map[membershipKey]bool{}
	}
	eachMembership(d.place, func(k membershipKey, is bool) { t.members[k] = is })
	if len(d.set)+len(d.cancel) > 0 && t.timers == nil {
		t.timers = map[timerKey]*timerRow{}
	}
	eachTimer(stream, version, t.admission.at, d, func(k timerKey, row *timerRow) { t.timers[k] = row })
	if d.place.Subject != "" {
		if t.parts == nil {
			t.parts = map[partKey]partState{}
		}
		t.parts[partKey{stream, d.place.Subject}] = stateAfter(d.declared)
	}
}

// note records the changes of an event, so that later writes of the transaction are checked against them.
func (a *admission) note(stream string, d draft) {
	eachMembership(d.place, func(k membershipKey, is bool) { a.members[k] = is })
	eachBoundedRoom(a.maxRooms, d.place, func(k roomsKey, change int) { a.rooms[k] += change })
	eachTimer(stream, a.versions[stream], a.at, d, a.timer)
	if d.place.Subject != "" {
		a.parts[partKey{stream, d.place.Subject}] = stateAfter(d.declared)
	}
}

// eachMembership calls f for each user whom an event adds to a room (true) or removes from a room (false). It calls f
// for the additions first, as the log stores the additions of an event before its removals.
func eachMembership(p catalog.Place, f func(k membershipKey, is bool)) {
	for _, m := range p.Opens {
		for _, user := range m.Users {
			f(membershipKey{m.Room, user}, true)
		}
	}
	for _, m := range p.Closes {
		for _, user := range m.Users {
			f(membershipKey{m.Room, user}, false)
		}
	}
}

// draftAlso drafts the events that a command leads to in other streams. Each of them becomes an entry of its own before
// the command's entry. So the last event of the command itself has the highest position; that event contains the
// outcome, if the command is committed.
func (l *Log) draftAlso(p *prepared, index int, d Decided) error {
	for _, a := range d.Also {
		e := &entry{index: index, stream: a.Stream, expected: a.Expected, otherwise: a.Otherwise, actor: d.Actor,
			cause: d.CommandID, commandType: d.Type, correlation: d.Correlation, traceParent: d.TraceParent}
		if err := l.draft(p, e, []proto.Message{a.Event}); err != nil {
			return err
		}
	}
	return nil
}

// Clock estimates the log's clock without a query: it returns the time that was read last, plus the time that has
// passed since by the monotonic clock of this process. The estimate never goes back.
func (l *Log) Clock() time.Time { return l.clock.now() }

type estimate struct {
	mu   sync.Mutex
	at   time.Time // log's clock, as it was read last
	read time.Time // when the log's clock was read, by the monotonic clock of this process
	last time.Time // newest estimate that was returned
}

func (e *estimate) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := e.at.Add(time.Since(e.read)).Truncate(time.Microsecond); now.After(e.last) {
		e.last = now
	}
	return e.last
}

func (e *estimate) set(at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at, e.read = at, time.Now()
}

// readClock reads the log's clock and updates the estimate of Clock.
func (l *Log) readClock(ctx context.Context) (time.Time, error) {
	var at int64
	if err := l.o.Pool.QueryRow(ctx, l.SQL(sqlClock)).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("read the clock of the log of %s: %w", l.o.Owner, Unavailable(err))
	}
	l.clock.set(micros(at))
	return micros(at), nil
}

func micros(at int64) time.Time { return time.UnixMicro(at).UTC() }

func (l *Log) queueClock(b *pgx.Batch, into *time.Time) {
	b.Queue(l.SQL(sqlClock)).QueryRow(func(row pgx.Row) error {
		var at int64
		err := row.Scan(&at)
		*into = micros(at)
		return err
	})
}

func expiresOf(p catalog.Place) *time.Time {
	if p.Expires.IsZero() {
		return nil
	}
	return &p.Expires
}

// hideExpired removes the personal fields from expired events after a read, as if the events had been redacted. The
// events themselves stay, so that versions and positions have no gap.
func (l *Log) hideExpired(all []Logged) {
	now := l.Clock()
	for i, e := range all {
		if !e.Expires.IsZero() && !e.Expires.After(now) {
			all[i].Body, all[i].Redacted = e.plain, true
		}
	}
}
