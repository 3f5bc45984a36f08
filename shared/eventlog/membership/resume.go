package membership

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/interval"
)

// Resumer is a user whose connection resumes.
type Resumer struct {
	User string
	// After is the position up to which the user has all events.
	After catalog.Position
	// EventsAfter is the position above which events are read. It is greater than After if the gateway has the events
	// between After and EventsAfter in its event buffer. If not, it is equal to After.
	EventsAfter catalog.Position
	// Subscribed are the rooms that the user is subscribed to without being a member; their events are read as well.
	Subscribed []string
}

// Resumed is the result for one Resumer.
type Resumed struct {
	Intervals []interval.Interval // memberships that reach above After; the user's own room is not among them
	// NotRecovered are the rooms whose missed events exceed the Bounds, or do not fit into one result. Missed.Events
	// may lack events of these rooms.
	NotRecovered []string
}

// Missed contains the events that Resumers have missed.
type Missed struct {
	// Resumed contains the results, in the order of the Resumers. The results of the last Resumers are missing if the
	// events of all Resumers would exceed maxMissed.
	Resumed []Resumed
	// Events are the missed events of the Resumers in Resumed, each once, ascending by position.
	Events []eventlog.Logged
	// Head is the position of the log as of which everything was read.
	Head eventlog.Point
}

// Bounds limit the events that one Resumer gets. If there are more events, the largest rooms are not recovered.
type Bounds struct {
	Events int // maximum number of events of one room; 0: 1,000
	Bytes  int // maximum size of the events of all rooms, in bytes; 0: 4 MiB
}

// maxMissed bounds the events of one result, because the owner and the gateway both hold a whole result in memory. The
// number of events that Resume counts is also bounded by a few times maxMissed (see reader.count).
var maxMissed = size{events: 10_000, bytes: 16 << 20}

const (
	// sqlIntervalsSince is a single statement, so it sees a single state of the log. It reads open and closed
	// memberships separately, because each of the two reads uses an index of its own.
	sqlIntervalsSince = `SELECT u.index, m.room, m.opened_position, coalesce(m.closed_position, 0), 0 AS head, '' AS incarnation
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS u (member, after, index), LATERAL (
  SELECT o.room, o.opened_position, o.closed_position FROM owner.memberships o
  WHERE o.member = u.member AND o.closed_position IS NULL
  UNION ALL SELECT c.room, c.opened_position, c.closed_position FROM owner.memberships c
  WHERE c.member = u.member AND c.closed_position > u.after) m
UNION ALL (SELECT 0, '', 0, 0, greatest(i.floor, (SELECT max(position) FROM owner.events)), i.id
  FROM owner.incarnations i ORDER BY i.number DESC LIMIT 1)`
	// sqlCountGaps counts at most $4 events of each gap (see interval.Gap) and at most $5 events of all gaps, in the
	// order of the gaps and from an index alone. The nested loops of LATERAL process the gaps in order, and stop at the
	// outer LIMIT.
	sqlCountGaps = `SELECT few.index, count(*) FROM (
  SELECT g.index FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS g (room, after, until, index),
  LATERAL (SELECT FROM owner.event_rooms r
    WHERE r.room = g.room AND r.position > g.after AND r.position <= g.until LIMIT $4) r
  LIMIT $5) few
GROUP BY few.index ORDER BY few.index`
	// sqlMeasureGaps sums the sizes of the events of gaps. The function octet_length does not read a value that is
	// stored outside its row.
	sqlMeasureGaps = `SELECT g.index, sum(e.bytes)::bigint
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS g (room, after, until, index),
LATERAL (SELECT r.position FROM owner.event_rooms r
  WHERE r.room = g.room AND r.position > g.after AND r.position <= g.until LIMIT $4) r,
LATERAL (SELECT octet_length(body) + coalesce(octet_length(personal), 0) AS bytes FROM owner.events e
  WHERE e.position = r.position LIMIT 1) e
GROUP BY g.index`
	// sqlGapPositions selects the positions of the events of gaps, and the positions in $4.
	sqlGapPositions = `SELECT r.position FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS g (room, after, until), LATERAL (
  SELECT position FROM owner.event_rooms r
  WHERE r.room = g.room AND r.position > g.after AND r.position <= g.until) r
UNION SELECT * FROM unnest($4::bigint[])`
)

// Resume reads the membership intervals of users who resume, and the events that they have missed. It takes at most six
// statements for any number of users. It reads one row for each membership, and a few times maxMissed events.
func Resume(ctx context.Context, l *eventlog.Log, resumers []Resumer, b Bounds) (Missed, error) {
	if b.Events <= 0 {
		b.Events = 1000
	}
	if b.Bytes <= 0 {
		b.Bytes = 4 << 20
	}
	m, err := reader{l}.resume(ctx, resumers, b)
	if err != nil {
		return Missed{}, fmt.Errorf("read what %d users missed of the log of %s: %w", len(resumers), l.Options().Owner,
			eventlog.Unavailable(err))
	}
	return m, nil
}

// reader reads missed events from a log.
type reader struct{ log *eventlog.Log }

func (x reader) resume(ctx context.Context, resumers []Resumer, b Bounds) (Missed, error) {
	intervals, asOf, err := x.intervalsSince(ctx, resumers)
	if err != nil {
		return Missed{}, err
	}
	head := asOf.Position
	// Events up to the head do not change, except that they may be redacted, so statements that see a later state of
	// the log may read them.
	g := newGaps(resumers, intervals, head)
	if err := x.count(ctx, g, b.Events); err != nil {
		return Missed{}, err
	}
	near := g.choose(b, nil)
	if err := x.measure(ctx, g, near); err != nil {
		return Missed{}, err
	}
	missed := Missed{Resumed: g.resumed(g.choose(b, near)), Head: asOf}
	if len(g.chosen) == 0 && len(g.boundaries) == 0 {
		return missed, nil
	}
	rooms, after, until := columnsOf(g.chosen)
	if missed.Events, err = x.log.ReadSelected(ctx, sqlGapPositions, rooms, after, until, g.boundaries); err != nil {
		return Missed{}, err
	}
	for i := range missed.Events {
		missed.Events[i].Incarnation = asOf.Incarnation
	}
	return missed, nil
}

// intervalsSince returns the intervals of each resumer, and the log's head, as of one state of the log.
func (x reader) intervalsSince(ctx context.Context, resumers []Resumer) ([][]interval.Interval, eventlog.Point, error) {
	users, after := make([]string, len(resumers)), make([]int64, len(resumers))
	for i, r := range resumers {
		users[i], after[i] = r.User, int64(r.After)
	}
	found, err := x.log.Options().Pool.Query(ctx, x.log.SQL(sqlIntervalsSince), planned, users, after)
	if err != nil {
		return nil, eventlog.Point{}, err
	}
	all := make([][]interval.Interval, len(resumers))
	var index int64
	var s interval.Interval
	var head, at eventlog.Point
	_, err = pgx.ForEachRow(found, []any{&index, &s.Room, &s.From, &s.Until, &at.Position, &at.Incarnation}, func() error {
		if index > 0 {
			all[index-1] = append(all[index-1], s)
		} else {
			head = at
		}
		return nil
	})
	for _, s := range all {
		slices.SortFunc(s, func(a, b interval.Interval) int {
			return cmp.Or(cmp.Compare(a.Room, b.Room), cmp.Compare(a.From, b.From))
		})
	}
	return all, head, err
}

// count counts the events of the gaps, as far as the numbers matter: a gap with more than limit events counts as
// limit+1, and once the sum exceeds what a result can contain, the remaining gaps stay uncounted.
//
// Small gaps are counted before large ones, because more of them fit into a result. The first pass counts each gap up
// to maxMissed.events divided by the number of gaps. The second pass counts the gaps with more events up to four times
// maxMissed.events divided by their number. The third pass counts the remaining gaps up to the limit.
func (x reader) count(ctx context.Context, g *gaps, limit int) error {
	open := g.all
	for _, answers := range []int{1, 4} {
		share := min(limit, answers*maxMissed.events/max(1, len(open)))
		counted, err := x.countUpTo(ctx, open, share+1, (share+1)*len(open))
		if err != nil {
			return err
		}
		var larger []interval.Gap
		for i, n := range open {
			if counted[i] > share && share < limit {
				larger = append(larger, n)
			} else {
				g.counts(n, counted[i])
			}
		}
		open = larger
	}
	counted, err := x.countUpTo(ctx, open, limit+1, maxMissed.events+limit)
	for i := range counted {
		g.counts(open[i], counted[i])
	}
	return err
}

// countUpTo counts at most perGap events of each gap and at most total events of all gaps. It returns the numbers in
// the order of the gaps. If the total is reached, the result ends before the first gap whose number is not known.
func (x reader) countUpTo(ctx context.Context, all []interval.Gap, perGap, total int) ([]int, error) {
	if len(all) == 0 {
		return nil, nil
	}
	rooms, after, until := columnsOf(all)
	found, err := x.log.Options().Pool.Query(ctx, x.log.SQL(sqlCountGaps), planned, rooms, after, until, perGap, total)
	if err != nil {
		return nil, err
	}
	numbers := make([]int, len(all))
	var index, last, number, sum int
	_, err = pgx.ForEachRow(found, []any{&index, &number}, func() error {
		numbers[index-1], last, sum = number, index, sum+number
		return nil
	})
	if sum == total {
		if numbers[last-1] < perGap {
			last-- // this gap may have more events
		}
		numbers = numbers[:last]
	}
	return numbers, err
}

// measure reads the sizes of the gaps in the rooms that were chosen for each resumer.
func (x reader) measure(ctx context.Context, g *gaps, near []map[string]bool) error {
	var few []interval.Gap
	seen := map[interval.Gap]bool{}
	for i, rooms := range near {
		for _, n := range g.of[i] {
			if rooms[n.Room] && !seen[n] && g.sizes[n].events > 0 {
				seen[n] = true
				few = append(few, n)
			}
		}
	}
	if len(few) == 0 {
		return nil
	}
	rooms, after, until := columnsOf(few)
	found, err := x.log.Options().Pool.Query(ctx, x.log.SQL(sqlMeasureGaps), planned, rooms, after, until, maxMissed.events)
	if err != nil {
		return err
	}
	var index int64
	var bytes int
	_, err = pgx.ForEachRow(found, []any{&index, &bytes}, func() error {
		n := few[index-1]
		g.sizes[n] = size{g.sizes[n].events, bytes}
		return nil
	})
	return err
}

func columnsOf(all []interval.Gap) (rooms []string, after, until []int64) {
	for _, g := range all {
		rooms, after, until = append(rooms, g.Room), append(after, int64(g.After)), append(until, int64(g.Until))
	}
	return rooms, after, until
}

// size is the size of a gap, a room or a result.
type size struct{ events, bytes int }

func (s size) plus(o size) size { return size{s.events + o.events, s.bytes + o.bytes} }

// beyond returns by how much s exceeds o: the size that has to be read in addition to o.
func (s size) beyond(o size) size { return size{max(0, s.events-o.events), max(0, s.bytes-o.bytes)} }

func (s size) over(bound size) bool { return s.events > bound.events || s.bytes > bound.bytes }

// gaps holds the gaps (see interval.Gap) of all resumers. Resumers who have missed the same positions of a room share a
// gap.
type gaps struct {
	resumers  []Resumer
	intervals [][]interval.Interval
	head      catalog.Position
	of        [][]interval.Gap // gaps of each resumer
	all       []interval.Gap   // all gaps, each once
	seen      map[interval.Gap]bool
	sizes     map[interval.Gap]size // of counted gaps; the field bytes is 0 until a gap is measured

	chosen     []interval.Gap     // gaps to be read
	boundaries []catalog.Position // positions of the events at which the memberships begin and end
}

func newGaps(resumers []Resumer, intervals [][]interval.Interval, head catalog.Position) *gaps {
	g := &gaps{resumers: resumers, intervals: intervals, head: head, of: make([][]interval.Gap, len(resumers)),
		seen: map[interval.Gap]bool{}, sizes: map[interval.Gap]size{}}
	for i, r := range resumers {
		for _, n := range interval.Missed(r.User, r.Subscribed, intervals[i], r.EventsAfter, head) {
			g.add(i, n)
		}
	}
	return g
}

func (g *gaps) add(resumer int, n interval.Gap) {
	if !g.seen[n] {
		g.seen[n] = true
		g.all = append(g.all, n)
	}
	g.of[resumer] = append(g.of[resumer], n)
}

func (g *gaps) counts(n interval.Gap, events int) { g.sizes[n] = size{events: events} }

// choose returns the rooms to read for each resumer, as many as the bounds allow. It chooses among the rooms in the
// parameter candidates; nil: among all rooms of the resumer. The result leaves out the last resumers if the events of
// all resumers would exceed maxMissed.
func (g *gaps) choose(b Bounds, candidates []map[string]bool) (near []map[string]bool) {
	read := map[string]size{} // by room: the approximate size of the events that are chosen for earlier resumers
	var total size
	for i := range g.resumers {
		if candidates != nil && i == len(candidates) {
			break
		}
		rooms, counted := g.roomsOf(i)
		if !counted && i > 0 {
			break // the counted gaps alone have more events than one result can contain
		}
		chosen := map[string]bool{}
		var own, more size
		for _, room := range smallestFirst(rooms) {
			with := more.plus(rooms[room].beyond(read[room]))
			if candidates != nil && !candidates[i][room] || rooms[room].events > b.Events ||
				own.bytes+rooms[room].bytes > b.Bytes || i == 0 && with.over(maxMissed) {
				continue
			}
			chosen[room] = true
			own, more = own.plus(rooms[room]), with
		}
		if i > 0 && total.plus(more).over(maxMissed) {
			break
		}
		total = total.plus(more)
		for room := range chosen {
			read[room] = size{max(read[room].events, rooms[room].events), max(read[room].bytes, rooms[room].bytes)}
		}
		near = append(near, chosen)
	}
	return near
}

// roomsOf returns the sizes of those rooms of a resumer in which every gap was counted, and whether these are all rooms
// of the resumer.
func (g *gaps) roomsOf(resumer int) (rooms map[string]size, all bool) {
	rooms, all = map[string]size{}, true
	for _, n := range g.of[resumer] {
		rooms[n.Room] = rooms[n.Room].plus(g.sizes[n])
	}
	for _, n := range g.of[resumer] {
		if _, counted := g.sizes[n]; !counted {
			delete(rooms, n.Room)
			all = false
		}
	}
	return rooms, all
}

// resumed returns the results of the resumers whose rooms were chosen, and collects the gaps and boundaries to read.
func (g *gaps) resumed(near []map[string]bool) []Resumed {
	var resumed []Resumed
	for i, rooms := range near {
		r := Resumed{Intervals: g.intervals[i]}
		for _, n := range g.of[i] {
			if !rooms[n.Room] {
				r.NotRecovered = append(r.NotRecovered, n.Room)
			}
		}
		slices.Sort(r.NotRecovered)
		r.NotRecovered = slices.Compact(r.NotRecovered)
		g.read(i, rooms)
		resumed = append(resumed, r)
	}
	g.chosen = compact(g.chosen)
	return resumed
}

func smallestFirst(rooms map[string]size) []string {
	return slices.SortedFunc(maps.Keys(rooms), func(a, b string) int {
		return cmp.Or(cmp.Compare(rooms[a].bytes, rooms[b].bytes), cmp.Compare(rooms[a].events, rooms[b].events),
			cmp.Compare(a, b))
	})
}

// read adds the gaps of one resumer in some rooms to g.chosen. It also adds the positions at which the resumer's
// memberships in these rooms begin and end to g.boundaries: the resumer gets the events at these positions even if they
// are not events of the room.
func (g *gaps) read(resumer int, rooms map[string]bool) {
	for _, n := range g.of[resumer] {
		if rooms[n.Room] {
			g.chosen = append(g.chosen, n)
		}
	}
	for _, s := range g.intervals[resumer] {
		if rooms[s.Room] {
			g.boundaries = append(g.boundaries, s.Boundaries(g.resumers[resumer].EventsAfter)...)
		}
	}
}

// compact joins gaps of a room that overlap or adjoin each other.
func compact(all []interval.Gap) []interval.Gap {
	slices.SortFunc(all, func(a, b interval.Gap) int {
		return cmp.Or(cmp.Compare(a.Room, b.Room), cmp.Compare(a.After, b.After))
	})
	var joined []interval.Gap
	for _, n := range all {
		if last := len(joined) - 1; last >= 0 && joined[last].Room == n.Room && n.After <= joined[last].Until {
			joined[last].Until = max(joined[last].Until, n.Until)
			continue
		}
		joined = append(joined, n)
	}
	return joined
}

// Message returns the result as a response to a gateway.
func (m Missed) Message() *meshv1.ResumeResponse {
	response := &meshv1.ResumeResponse{Records: make([]*meshv1.Record, len(m.Events)), Position: int64(m.Head.Position),
		Incarnation: m.Head.Incarnation}
	for i, e := range m.Events {
		response.Records[i] = e.Record(e.Topic)
	}
	for _, r := range m.Resumed {
		resumed := &meshv1.Resumed{NotRecovered: r.NotRecovered}
		for _, s := range r.Intervals {
			resumed.Intervals = append(resumed.Intervals, &meshv1.MembershipInterval{Room: s.Room, Opened: int64(s.From), Closed: int64(s.Until)})
		}
		response.Resumed = append(response.Resumed, resumed)
	}
	return response
}
