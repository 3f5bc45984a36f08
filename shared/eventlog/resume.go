package eventlog

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Resumer is somebody who comes back.
type Resumer struct {
	User string
	// After is the position up to which they have everything.
	After int64
	// EventsAfter, not below After, is the position above which events are wanted.
	EventsAfter int64
	// Looks are rooms that they were only looking at, and of which they are to have what happened too.
	Looks []string
}

// Stay is a time in a room, in positions, from the event that opened it to the one that closed it, both included.
// Closed is 0 while it is open.
type Stay struct {
	Room           string
	Opened, Closed int64
}

// Resumed is what one Resumer is told.
type Resumed struct {
	Stays []Stay // that reach above After; everybody is in their own user room besides
	// TooFar are rooms with more than the bounds allow; some of their events are left out.
	TooFar []string
}

// Missed is what Resumers have missed.
type Missed struct {
	// Resumed are in the order in which they were asked for. When the answer would get too large there are fewer.
	Resumed []Resumed
	// Page holds the events during the stays, each once; its Head is the position as of which all was read.
	Page
}

// Bounds of what one Resumer is given. The largest rooms are too far where it would be more.
type Bounds struct {
	Events int // of one room; 0: 1,000
	Bytes  int // of all rooms; 0: 4 MiB
}

// maxMissed bounds what one answer contains, and how many events are counted for it at a time: the log and the gateway
// have all of an answer in memory.
var maxMissed = size{events: 10_000, bytes: 16 << 20}

// Resume reads what users have missed: which rooms they were in when, and what was logged there. It takes four to six
// statements, however many users there are, and reads as many rows as there are stays, and a few times maxMissed.
func (l *Log) Resume(ctx context.Context, resumers []Resumer, b Bounds) (Missed, error) {
	if b.Events <= 0 {
		b.Events = 1000
	}
	if b.Bytes <= 0 {
		b.Bytes = 4 << 20
	}
	m, err := l.resume(ctx, resumers, b)
	if err != nil {
		return Missed{}, fmt.Errorf("read what %d users missed of the log of %s: %w", len(resumers), l.o.Owner,
			Away(err))
	}
	return m, nil
}

func (l *Log) resume(ctx context.Context, resumers []Resumer, b Bounds) (Missed, error) {
	stays, asOf, err := l.stays(ctx, resumers)
	if err != nil {
		return Missed{}, err
	}
	head := asOf.Position
	// Events up to the head do not change, so other statements may read them.
	g := newGaps(resumers, stays, head)
	if err := l.count(ctx, g, b.Events); err != nil {
		return Missed{}, err
	}
	near := g.choose(b, nil)
	if err := l.measure(ctx, g, near); err != nil {
		return Missed{}, err
	}
	missed := Missed{Resumed: g.answer(g.choose(b, near)), Page: Page{Head: head, Complete: head,
		Incarnation: asOf.Incarnation}}
	if len(g.chosen) == 0 && len(g.turns) == 0 {
		return missed, nil
	}
	rooms, after, until := columnsOf(g.chosen)
	found, err := l.o.Pool.Query(ctx, l.sql.readGaps, planned, rooms, after, until, g.turns)
	if err != nil {
		return Missed{}, err
	}
	all, err := l.scanAll(found)
	if err != nil {
		return Missed{}, err
	}
	l.hideExpired(all)
	missed.Events, missed.topics = make([]envelope.Event, 0, len(all)), make([]string, 0, len(all))
	for _, e := range all {
		e.Incarnation = asOf.Incarnation
		missed.Events = append(missed.Events, e.Event)
		missed.topics = append(missed.topics, e.topic)
	}
	return missed, nil
}

// stays are those of each resumer, and the log's head, as of one state of the log.
func (l *Log) stays(ctx context.Context, resumers []Resumer) ([][]Stay, Point, error) {
	users, after := make([]string, len(resumers)), make([]int64, len(resumers))
	for i, r := range resumers {
		users[i], after[i] = r.User, r.After
	}
	found, err := l.o.Pool.Query(ctx, l.sql.stays, planned, users, after)
	if err != nil {
		return nil, Point{}, err
	}
	all := make([][]Stay, len(resumers))
	var index int64
	var s Stay
	var head, at Point
	_, err = pgx.ForEachRow(found, []any{&index, &s.Room, &s.Opened, &s.Closed, &at.Position, &at.Incarnation}, func() error {
		if index > 0 {
			all[index-1] = append(all[index-1], s)
		} else {
			head = at
		}
		return nil
	})
	for _, s := range all {
		slices.SortFunc(s, func(a, b Stay) int { return cmp.Or(cmp.Compare(a.Room, b.Room), cmp.Compare(a.Opened, b.Opened)) })
	}
	return all, head, err
}

// count counts the events of the gaps, as far as that matters: a gap with more than limit events has one more than that,
// and where all of them would be more than an answer can contain, the last gaps stay uncounted.
//
// Gaps with few events are counted first, each up to its share of an answer, then of some answers: they fit in before
// large ones do.
func (l *Log) count(ctx context.Context, g *gaps, limit int) error {
	open := g.all
	for _, answers := range []int{1, 4} {
		share := min(limit, answers*maxMissed.events/max(1, len(open)))
		counted, err := l.countUpTo(ctx, open, share+1, (share+1)*len(open))
		if err != nil {
			return err
		}
		var larger []gap
		for i, n := range open {
			if counted[i] > share && share < limit {
				larger = append(larger, n)
			} else {
				g.counts(n, counted[i])
			}
		}
		open = larger
	}
	counted, err := l.countUpTo(ctx, open, limit+1, maxMissed.events+limit)
	for i := range counted {
		g.counts(open[i], counted[i])
	}
	return err
}

// countUpTo counts at most perGap events of each gap and at most total of all. It returns the numbers of those gaps, the
// first ones, that were counted before the total was reached.
func (l *Log) countUpTo(ctx context.Context, all []gap, perGap, total int) ([]int, error) {
	if len(all) == 0 {
		return nil, nil
	}
	rooms, after, until := columnsOf(all)
	found, err := l.o.Pool.Query(ctx, l.sql.countGaps, planned, rooms, after, until, perGap, total)
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
			last-- // this one may have more
		}
		numbers = numbers[:last]
	}
	return numbers, err
}

// measure finds out how large the events are that may be read.
func (l *Log) measure(ctx context.Context, g *gaps, near []map[string]bool) error {
	var few []gap
	seen := map[gap]bool{}
	for i, rooms := range near {
		for _, n := range g.of[i] {
			if rooms[n.room] && !seen[n] && g.sizes[n].events > 0 {
				seen[n] = true
				few = append(few, n)
			}
		}
	}
	if len(few) == 0 {
		return nil
	}
	rooms, after, until := columnsOf(few)
	found, err := l.o.Pool.Query(ctx, l.sql.measureGaps, planned, rooms, after, until, maxMissed.events)
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

// gap is a part of a room's events, above one position up to another.
type gap struct {
	room         string
	after, until int64
}

func columnsOf(all []gap) (rooms []string, after, until []int64) {
	for _, g := range all {
		rooms, after, until = append(rooms, g.room), append(after, g.after), append(until, g.until)
	}
	return rooms, after, until
}

// size is what there is in a gap, a room or an answer.
type size struct{ events, bytes int }

func (s size) plus(o size) size { return size{s.events + o.events, s.bytes + o.bytes} }

// beyond is what has to be read of a room of which something is read anyway.
func (s size) beyond(o size) size { return size{max(0, s.events-o.events), max(0, s.bytes-o.bytes)} }

func (s size) over(bound size) bool { return s.events > bound.events || s.bytes > bound.bytes }

// gaps are those of all resumers. Resumers that come from the same position share them.
type gaps struct {
	resumers []Resumer
	stays    [][]Stay
	head     int64
	of       [][]gap // by resumer
	all      []gap   // each once
	seen     map[gap]bool
	sizes    map[gap]size // of those that were counted; the bytes of those that were measured

	chosen []gap   // to be read
	turns  []int64 // positions of what opened and closed rooms
}

func newGaps(resumers []Resumer, stays [][]Stay, head int64) *gaps {
	g := &gaps{resumers: resumers, stays: stays, head: head, of: make([][]gap, len(resumers)),
		seen: map[gap]bool{}, sizes: map[gap]size{}}
	for i, r := range resumers {
		g.add(i, gap{catalog.UserRoom(r.User), r.EventsAfter, head})
		for _, room := range r.Looks {
			g.add(i, gap{room, r.EventsAfter, head})
		}
		for _, s := range stays[i] {
			until := s.Closed
			if until == 0 {
				until = head
			}
			g.add(i, gap{s.Room, max(r.EventsAfter, s.Opened-1), until})
		}
	}
	return g
}

func (g *gaps) add(resumer int, n gap) {
	if n.after >= n.until {
		return
	}
	if !g.seen[n] {
		g.seen[n] = true
		g.all = append(g.all, n)
	}
	g.of[resumer] = append(g.of[resumer], n)
}

func (g *gaps) counts(n gap, events int) { g.sizes[n] = size{events: events} }

// choose returns which rooms of each resumer are read, of those among the candidates; nil: of all. There are fewer
// resumers when it would be too much for one answer.
func (g *gaps) choose(b Bounds, candidates []map[string]bool) (near []map[string]bool) {
	read := map[string]size{} // of rooms that are read already, about
	var total size
	for i := range g.resumers {
		if candidates != nil && i == len(candidates) {
			break
		}
		rooms, counted := g.roomsOf(i)
		if !counted && i > 0 {
			break // what came before has used up the answer
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

// roomsOf returns how much there is in the rooms of a resumer of which all gaps were counted, and whether these are all.
func (g *gaps) roomsOf(resumer int) (rooms map[string]size, all bool) {
	rooms, all = map[string]size{}, true
	for _, n := range g.of[resumer] {
		rooms[n.room] = rooms[n.room].plus(g.sizes[n])
	}
	for _, n := range g.of[resumer] {
		if _, counted := g.sizes[n]; !counted {
			delete(rooms, n.room)
			all = false
		}
	}
	return rooms, all
}

// answer answers the resumers whose rooms were chosen, and notes what is to be read for them.
func (g *gaps) answer(near []map[string]bool) []Resumed {
	var answers []Resumed
	for i, rooms := range near {
		r := Resumed{Stays: g.stays[i]}
		for _, n := range g.of[i] {
			if !rooms[n.room] {
				r.TooFar = append(r.TooFar, n.room)
			}
		}
		slices.Sort(r.TooFar)
		r.TooFar = slices.Compact(r.TooFar)
		g.read(i, rooms)
		answers = append(answers, r)
	}
	g.chosen = compact(g.chosen)
	return answers
}

func smallestFirst(rooms map[string]size) []string {
	return slices.SortedFunc(maps.Keys(rooms), func(a, b string) int {
		return cmp.Or(cmp.Compare(rooms[a].bytes, rooms[b].bytes), cmp.Compare(rooms[a].events, rooms[b].events),
			cmp.Compare(a, b))
	})
}

// read chooses the gaps of one resumer in some rooms, with the turns there: those need not have gone to their room.
func (g *gaps) read(resumer int, rooms map[string]bool) {
	for _, n := range g.of[resumer] {
		if rooms[n.room] {
			g.chosen = append(g.chosen, n)
		}
	}
	for _, s := range g.stays[resumer] {
		for _, position := range []int64{s.Opened, s.Closed} {
			if rooms[s.Room] && position > g.resumers[resumer].EventsAfter {
				g.turns = append(g.turns, position)
			}
		}
	}
}

// compact joins gaps that overlap.
func compact(all []gap) []gap {
	slices.SortFunc(all, func(a, b gap) int {
		return cmp.Or(cmp.Compare(a.room, b.room), cmp.Compare(a.after, b.after))
	})
	var joined []gap
	for _, n := range all {
		if last := len(joined) - 1; last >= 0 && joined[last].room == n.room && n.after <= joined[last].until {
			joined[last].until = max(joined[last].until, n.until)
			continue
		}
		joined = append(joined, n)
	}
	return joined
}

// Message is the answer as owners give it.
func (m Missed) Message() *meshv1.ResumeResponse {
	answer := &meshv1.ResumeResponse{Records: m.Records(), Position: m.Head, Incarnation: m.Incarnation}
	for _, r := range m.Resumed {
		told := &meshv1.Resumed{TooFar: r.TooFar}
		for _, s := range r.Stays {
			told.Stays = append(told.Stays, &meshv1.Stay{Room: s.Room, Opened: s.Opened, Closed: s.Closed})
		}
		answer.Resumed = append(answer.Resumed, told)
	}
	return answer
}
