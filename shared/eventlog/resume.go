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

// mostMissed is about what one answer holds: whoever gives it and whoever takes it have all of it in memory.
var mostMissed = size{events: 10_000, bytes: 16 << 20}

// Resume reads what many have missed: which rooms they were in when, and what was logged there. It takes three
// statements, however many they are.
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
	// What is committed up to the head stays as it is, so other statements may read it.
	g := newGaps(resumers, stays, head)
	if err := l.count(ctx, g, b.Events); err != nil {
		return Missed{}, err
	}
	missed := Missed{Resumed: g.choose(b), Page: Page{Head: head, Complete: head,
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
	return all, head, err
}

// count finds how many events each gap has, and how large they are, as far as that matters.
func (l *Log) count(ctx context.Context, g *gaps, limit int) error {
	if len(g.all) == 0 {
		return nil
	}
	rooms, after, until := columnsOf(g.all)
	found, err := l.o.Pool.Query(ctx, l.sql.countGaps, planned, rooms, after, until, limit+1)
	if err != nil {
		return err
	}
	var index int64
	var of size
	_, err = pgx.ForEachRow(found, []any{&index, &of.events, &of.bytes}, func() error {
		g.sizes[g.all[index-1]] = of
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

// gaps are those of all resumers. Who came from the same place shares them.
type gaps struct {
	resumers []Resumer
	stays    [][]Stay
	head     int64
	of       [][]gap // by resumer
	all      []gap   // each once
	sizes    map[gap]size

	chosen []gap   // to be read
	turns  []int64 // positions of what opened and closed rooms
}

func newGaps(resumers []Resumer, stays [][]Stay, head int64) *gaps {
	g := &gaps{resumers: resumers, stays: stays, head: head, of: make([][]gap, len(resumers)), sizes: map[gap]size{}}
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
	if _, again := g.sizes[n]; !again {
		g.sizes[n] = size{}
		g.all = append(g.all, n)
	}
	g.of[resumer] = append(g.of[resumer], n)
}

// choose answers resumers, in order, for as long as it is not too much for one answer.
func (g *gaps) choose(b Bounds) []Resumed {
	var answers []Resumed
	most := map[string]size{} // of a room that is read anyway, about
	var total size
	for i := range g.resumers {
		rooms := map[string]size{}
		for _, n := range g.of[i] {
			rooms[n.room] = rooms[n.room].plus(g.sizes[n])
		}
		r := Resumed{Stays: g.stays[i]}
		near := map[string]bool{}
		var own, more size
		for _, room := range smallestFirst(rooms) {
			with := more.plus(rooms[room].beyond(most[room]))
			if rooms[room].events > b.Events || own.bytes+rooms[room].bytes > b.Bytes || i == 0 && with.over(mostMissed) {
				r.TooFar = append(r.TooFar, room)
				continue
			}
			near[room] = true
			own, more = own.plus(rooms[room]), with
		}
		if i > 0 && total.plus(more).over(mostMissed) {
			break
		}
		total = total.plus(more)
		for room := range near {
			most[room] = size{max(most[room].events, rooms[room].events), max(most[room].bytes, rooms[room].bytes)}
		}
		g.read(i, near)
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
