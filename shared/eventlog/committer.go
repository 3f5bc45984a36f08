package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// commitAll is the committer: one transaction after the other, each for all who came while the last was under way.
func (l *Log) commitAll(ctx context.Context) {
	defer close(l.notices)
	defer l.session.close(ctx)
	defer l.queue.close()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-l.queue.filled:
		}
		together, alone := l.queue.take()
		if len(together) > 0 {
			l.commit(ctx, together)
		}
		if alone != nil {
			l.commit(ctx, []*member{alone})
		}
	}
}

// commit answers all members. Where their data makes the transaction fail, or it takes too long, it is halved, until the
// one to blame stands alone.
func (l *Log) commit(ctx context.Context, members []*member) {
	(&parts{log: l}).commit(ctx, members)
}

// parts are the transactions that one became.
type parts struct {
	log  *Log
	slow int // members that took too long by themselves
}

func (p *parts) commit(ctx context.Context, members []*member) {
	l, err := p.log, errSlow
	if p.slow < 2 {
		err = l.transact(ctx, members)
	}
	switch {
	case err == nil:
	case len(members) > 1 && (ofData(err) || tooSlow(err)):
		half := len(members) / 2
		p.commit(ctx, members[:half])
		p.commit(ctx, members[half:])
	case ofData(err):
		m := members[0]
		l.suspect(m)
		l.o.Log.WarnContext(m.ctx, "a write fails by itself", "error", err)
		m.answer(Committed{}, &MemberError{err})
	default:
		if len(members) == 1 && tooSlow(err) {
			p.slow++
			l.suspect(members[0])
		}
		for _, m := range members {
			m.answer(Committed{}, bus.Away("postgres", fmt.Errorf("append to the log of %s: %w", l.o.Owner, err)))
		}
	}
}

// errSlow: where a second one takes too long by itself it is the database that is slow, and it is asked for no more of
// them.
var errSlow = errors.New("the database is too slow")

// suspect has a member go alone when it is tried again.
func (l *Log) suspect(m *member) {
	if m.prepared != nil {
		l.queue.suspect(m.prepared)
	}
}

// transaction is one group commit under way.
type transaction struct {
	log     *Log
	conn    *pgx.Conn
	members []*member // still in it
	later   []*member // to go alone, as it turned out
	loaded  []loading
	at      time.Time // the log's clock when it was loaded
	ledger  ledger
	span    trace.Span
	known   known // the log's head before the transaction began
}

// errLost means that the log ends below what this instance has seen of it.
var errLost = errors.New("the database has lost commits")

// transact answers all members when it returns nil, and none otherwise.
func (l *Log) transact(ctx context.Context, members []*member) (err error) {
	// A commit that is under way is finished also when ctx ends; the bounds are the server's.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.times.lock+2*l.times.hold+time.Second)
	defer cancel()
	t := &transaction{log: l, members: members}
	ctx = t.begin(ctx)
	defer func() {
		if err != nil {
			t.span.RecordError(err)
			t.span.SetStatus(codes.Error, "rolled back")
		}
		t.span.End()
	}()
	if t.conn, err = l.session.get(ctx); err != nil {
		return err
	}
	defer func() { l.session.used = time.Now() }()
	t.known = l.history.now()
	answers, err := t.run(ctx)
	for end := time.Now().Add(l.times.lock); lockTaken(err) && time.Now().Before(end); {
		t.rollback(ctx)
		t.anew()
		answers, err = t.run(ctx)
	}
	if errors.Is(err, errLost) {
		t.rollback(ctx)
		_, err = l.reincarnate(ctx, t.conn, t.ledger.incarnation.number, t.known.position,
			fmt.Sprintf("the log ends at %d, and this instance has seen it at %d", t.ledger.position, t.known.position))
		if err != nil {
			return err
		}
		t.members = members
		t.anew()
		answers, err = t.run(ctx)
	}
	if err != nil {
		t.rollback(ctx)
		return err
	}
	l.history.note(t.ledger.incarnation, t.ledger.position)
	if len(t.ledger.rows.positions) > 0 {
		l.head.reach(t.ledger.position)
		l.notices.add()
	}
	for m, a := range answers {
		m.answer(a.committed, a.err)
	}
	for _, m := range t.later {
		m.alone = true
		if err := l.queue.put(m); err != nil {
			m.answer(Committed{}, err)
		}
	}
	return nil
}

// anew forgets what the transaction has read, after it was rolled back.
func (t *transaction) anew() {
	*t = transaction{log: t.log, conn: t.conn, members: t.members, span: t.span, known: t.log.history.now()}
}

// begin starts the transaction's span. It belongs to no member's trace; both sides are linked.
func (t *transaction) begin(ctx context.Context) context.Context {
	var links []trace.Link
	for _, m := range t.members {
		if m.prepared != nil {
			links = append(links, m.prepared.links()...)
		}
	}
	ctx, t.span = t.log.o.Tracer.Start(ctx, "commit "+t.log.o.Owner,
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(links...), trace.WithAttributes(
			attribute.String("db.system.name", "postgresql"), attribute.String("db.namespace", t.log.o.Owner),
			attribute.String("db.operation.name", "COMMIT"), attribute.Int("db.operation.batch.size", len(t.members))))
	return ctx
}

func (p *prepared) links() (links []trace.Link) {
	for _, e := range p.entries {
		if c := e.span.SpanContext(); c.IsValid() {
			links = append(links, trace.Link{SpanContext: c})
		}
	}
	return links
}

func (t *transaction) run(ctx context.Context) (map[*member]answer, error) {
	answers := map[*member]answer{}
	b := t.guard()
	deciding := t.queueLoads(b)
	if !deciding {
		t.queueCheck(b)
	}
	if err := t.send(ctx, b); err != nil {
		return nil, err
	}
	if deciding {
		t.decide(answers)
		b = &pgx.Batch{}
		t.queueCheck(b)
		if err := t.send(ctx, b); err != nil {
			return nil, err
		}
	}
	if t.known.lost(t.ledger.incarnation, t.ledger.position) {
		return nil, errLost
	}
	t.ledger.owner = t.log.o.Owner
	if t.log.checked != nil {
		t.log.checked()
	}
	for _, m := range t.members {
		c, err := t.ledger.admit(m.prepared)
		answers[m] = answer{c, err}
		for _, e := range m.prepared.entries {
			e.span.AddLink(trace.Link{SpanContext: t.span.SpanContext()})
		}
	}
	if err := t.log.effects.insert(ctx, t.conn, t.ledger.rows.caused); err != nil {
		return nil, err
	}
	b = &pgx.Batch{}
	if err := t.ledger.consumed.queue(b, t.log); err != nil {
		return nil, err
	}
	if !t.ledger.rows.empty() {
		t.ledger.rows.queue(b, &t.log.sql, t.ledger.at)
	}
	b.Queue("COMMIT")
	if err := t.send(ctx, b); err != nil {
		return nil, err
	}
	if s := t.conn.PgConn().TxStatus(); s != 'I' {
		return nil, fmt.Errorf("the transaction did not end: status %c", s)
	}
	return answers, nil
}

// guard opens the transaction and gets the lock.
func (t *transaction) guard() *pgx.Batch {
	b := &pgx.Batch{}
	hold := milliseconds(t.log.times.hold)
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
	b.Queue(sqlLock, lockKey(t.log.o.Owner, "append"), hold)
	return b
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// send does one round trip.
func (t *transaction) send(ctx context.Context, b *pgx.Batch) error {
	return t.conn.SendBatch(ctx, b).Close()
}

func (t *transaction) rollback(ctx context.Context) {
	c := t.conn.PgConn()
	if c.IsClosed() || c.TxStatus() == 'I' {
		return
	}
	if _, err := c.Exec(ctx, "ROLLBACK").ReadAll(); err != nil || c.TxStatus() != 'I' {
		t.log.session.close(ctx) // the server rolls back
	}
}

// queueCheck reads what the members are held against.
func (t *transaction) queueCheck(b *pgx.Batch) {
	var actors, ids, streams, members, rooms, timerStreams, timerKeys []string
	seen := map[string]bool{}
	for _, m := range t.members {
		p := m.prepared
		for _, stream := range p.streams() {
			if !seen[stream] {
				seen[stream] = true
				streams = append(streams, stream)
			}
		}
		for _, e := range p.entries {
			if e.command && e.cause != "" {
				actors, ids = append(actors, e.actor), append(ids, e.cause)
			}
			if e.memberOf != "" {
				members, rooms = append(members, e.actor), append(rooms, e.memberOf)
			}
			if e.fired != nil {
				timerStreams, timerKeys = append(timerStreams, e.fired.Stream), append(timerKeys, e.fired.Key)
			}
		}
	}
	g := &t.ledger
	g.versions, g.outcomes = make(map[string]int64, len(streams)), map[commandKey]outcome{}
	g.members, g.timers = map[membershipKey]bool{}, map[timerKey]*timerRow{}
	g.maxRooms, g.rooms = t.log.maxRooms, map[roomsKey]int{}
	entering, kinds := t.counted()
	t.queueConsumed(b)
	b.Queue(t.log.sql.check, actors, ids, streams, members, rooms, timerStreams,
		timerKeys, entering, kinds).Query(func(found pgx.Rows) error {
		var what int
		var digest string
		r := envelope.Result{Source: t.log.o.Owner}
		_, err := pgx.ForEachRow(found, []any{&what, &r.Actor, &r.CommandID, &r.Type, &r.Stream, &r.Kind, &r.Version,
			&r.Position, &r.Code, &r.Text, &digest}, func() error {
			switch what {
			case 1:
				g.outcomes[commandKey{r.Actor, r.CommandID}] = outcome{r, digest}
			case 2:
				g.versions[r.Stream] = r.Version
			case 5:
				g.members[membershipKey{r.Stream, r.Actor}] = true
			case 6:
				g.timers[timerKey{r.Stream, r.CommandID}] = &timerRow{generation: r.Version, due: micros(r.Position)}
			case 8:
				g.rooms[roomsKey{r.Actor, r.Stream}] = int(r.Version)
			case 7:
				g.at = micros(r.Position)
				t.log.clock.set(g.at)
			case 4:
				g.position = r.Position
				floor, err := strconv.ParseInt(r.Text, 10, 64)
				if err != nil {
					return err
				}
				g.incarnation = incarnation{int32(r.Version), r.Code, floor}
			}
			return nil
		})
		return err
	})
}

func (p *prepared) streams() []string {
	var all []string
	if p.stream != "" {
		all = append(all, p.stream)
	}
	for _, e := range p.entries {
		all = append(all, e.stream)
	}
	return all
}

// loading is what was loaded for one member that decides under the lock.
type loading struct {
	member *member
	loaded []Loaded
}

func (t *transaction) queueLoads(b *pgx.Batch) bool {
	for _, m := range t.members {
		if m.decide == nil {
			continue
		}
		t.loaded = append(t.loaded, loading{m, make([]Loaded, len(m.selections))})
	}
	for _, o := range t.loaded {
		for i, s := range o.member.selections {
			t.log.queueLoad(b, s, &o.loaded[i])
		}
	}
	if len(t.loaded) > 0 {
		t.log.queueClock(b, &t.at)
	}
	return len(t.loaded) > 0
}

// decide lets members decide, and puts them before the others: they cannot lose.
func (t *transaction) decide(answers map[*member]answer) {
	var first, others []*member
	for _, o := range t.loaded {
		m := o.member
		if m.prepared != nil {
			m.prepared.end(errors.New("decided again"))
			m.prepared = nil
		}
		for i := range o.loaded {
			o.loaded[i].At = t.at
		}
		w, err := decideSafely(m, o.loaded)
		if err == nil {
			m.prepared, err = t.log.prepare(m.ctx, w)
		}
		switch {
		case err != nil:
			answers[m] = answer{err: err}
		case len(t.members) > 1 && t.log.queue.suspected(m.prepared):
			t.later = append(t.later, m)
		default:
			first = append(first, m)
		}
	}
	for _, m := range t.members {
		if m.decide == nil {
			others = append(others, m)
		}
	}
	t.members = append(first, others...)
}

// decideSafely turns a panic into the error of this member, which is not the others'.
func decideSafely(m *member, loaded []Loaded) (w Write, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &MemberError{fmt.Errorf("deciding panicked: %v", p)}
		}
	}()
	return m.decide(m.ctx, loaded)
}
