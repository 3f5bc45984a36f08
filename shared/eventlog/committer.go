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

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/retry"
)

// commitAll runs one transaction after another until ctx ends. A transaction usually commits all writes that arrived
// during the previous one (see queue.take for the limits).
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
			l.commit(ctx, []*pendingWrite{alone})
		}
	}
}

// commit commits writes in one transaction. It finishes each write, except those that turn out to be in quarantine (see
// the type quarantine): these are queued for transactions of their own. If the transaction fails because of the data of
// a write, or because it holds the log's lock for longer than MaxHold, commit halves the transaction until the write at
// fault is alone. It stops halving when the database itself is slow (see errSlow).
func (l *Log) commit(ctx context.Context, writes []*pendingWrite) {
	(&bisection{log: l}).commit(ctx, writes)
}

// bisection divides a failed transaction into smaller ones and runs them.
type bisection struct {
	log  *Log
	slow int // number of writes that exceeded MaxHold in transactions of their own
}

func (p *bisection) commit(ctx context.Context, writes []*pendingWrite) {
	l, err := p.log, errSlow
	if p.slow < 2 {
		err = l.transact(ctx, writes)
	}
	switch {
	case err == nil:
	case len(writes) > 1 && (pgerror.IsData(err) || tooSlow(err)):
		half := len(writes) / 2
		p.commit(ctx, writes[:half])
		p.commit(ctx, writes[half:])
	case pgerror.IsData(err):
		pw := writes[0]
		l.quarantine(pw)
		l.o.Log.WarnContext(pw.ctx, "write rejected", "error", err)
		pw.finish(Committed{}, &WriteError{err})
	default:
		if len(writes) == 1 && tooSlow(err) {
			p.slow++
			l.quarantine(writes[0])
		}
		for _, pw := range writes {
			pw.finish(Committed{}, retry.Unavailable("postgres", fmt.Errorf("append to the log of %s: %w", l.o.Owner, err)))
		}
	}
}

// errSlow is the error of the writes that a bisection gives up without an attempt. After two writes have timed out in
// transactions of their own, the database itself counts as slow.
var errSlow = errors.New("the database is too slow")

// quarantine records the ids of a write, so that the write gets a transaction of its own when it is tried again.
func (l *Log) quarantine(pw *pendingWrite) {
	if pw.prepared != nil {
		l.queue.quarantine(pw.prepared)
	}
}

// transaction is one group commit under way.
type transaction struct {
	log       *Log
	conn      *pgx.Conn
	writes    []*pendingWrite
	later     []*pendingWrite // writes found to be in quarantine after they were decided; each is committed alone later
	loaded    []loading
	at        time.Time // the log's clock when the streams were loaded
	admission admission
	span      trace.Span
	known     knownHead // newest head of the log that was known before the transaction began
}

// errLost means that the database has lost commits that this instance has seen (see knownHead.lost).
var errLost = errors.New("the database has lost commits")

// transact commits writes in one transaction. If transact returns nil, each write is finished, or is queued for a
// transaction of its own. If transact returns an error, no write is finished.
func (l *Log) transact(ctx context.Context, writes []*pendingWrite) (err error) {
	// Complete a commit that has begun even if ctx ends. The server bounds its duration.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.times.lock+2*l.times.hold+time.Second)
	defer cancel()
	t := &transaction{log: l, writes: writes}
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
	outcomes, err := t.run(ctx)
	for end := time.Now().Add(l.times.lock); isLockTimeout(err) && time.Now().Before(end); {
		t.rollback(ctx)
		t.reset(writes)
		outcomes, err = t.run(ctx)
	}
	if errors.Is(err, errLost) {
		t.rollback(ctx)
		_, err = l.reincarnate(ctx, t.conn, t.admission.incarnation.number, t.known.position,
			fmt.Sprintf("the log ends at %d, and this instance has seen it at %d", t.admission.position, t.known.position))
		if err != nil {
			return err
		}
		t.reset(writes)
		outcomes, err = t.run(ctx)
	}
	if err != nil {
		t.rollback(ctx)
		return err
	}
	l.history.note(t.admission.incarnation, t.admission.position)
	if len(t.admission.rows.positions) > 0 {
		l.head.Reach(t.admission.position)
		l.notices.add()
	}
	for pw, a := range outcomes {
		pw.finish(a.committed, a.err)
	}
	for _, pw := range t.later {
		pw.alone = true
		if err := l.queue.put(pw); err != nil {
			pw.finish(Committed{}, err)
		}
	}
	return nil
}

// reset discards what the transaction has read and decided, after a rollback.
func (t *transaction) reset(writes []*pendingWrite) {
	*t = transaction{log: t.log, conn: t.conn, writes: writes, span: t.span, known: t.log.history.now()}
}

// begin starts the trace span of the transaction. This span belongs to all writes of the transaction, so it begins a
// trace of its own and is linked with the trace spans of the writes that are already prepared.
func (t *transaction) begin(ctx context.Context) context.Context {
	var links []trace.Link
	for _, pw := range t.writes {
		if pw.prepared != nil {
			links = append(links, pw.prepared.links()...)
		}
	}
	ctx, t.span = t.log.o.Tracer.Start(ctx, "commit "+t.log.o.Owner,
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(links...), trace.WithAttributes(
			attribute.String("db.system.name", "postgresql"), attribute.String("db.namespace", t.log.o.Owner),
			attribute.String("db.operation.name", "COMMIT"), attribute.Int("db.operation.batch.size", len(t.writes))))
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

func (t *transaction) run(ctx context.Context) (map[*pendingWrite]writeOutcome, error) {
	outcomes := map[*pendingWrite]writeOutcome{}
	b := t.guard()
	deciding := t.queueLoads(b)
	if !deciding {
		t.queueCheck(b)
	}
	if err := t.send(ctx, b); err != nil {
		return nil, err
	}
	if deciding {
		t.decide(outcomes)
		b = &pgx.Batch{}
		t.queueCheck(b)
		if err := t.send(ctx, b); err != nil {
			return nil, err
		}
	}
	if t.known.lost(t.admission.incarnation, t.admission.position) {
		return nil, errLost
	}
	t.admission.owner = t.log.o.Owner
	if t.log.checked != nil {
		t.log.checked()
	}
	for _, pw := range t.writes {
		c, err := t.admission.admit(pw.prepared)
		outcomes[pw] = writeOutcome{c, err}
		for _, e := range pw.prepared.entries {
			e.span.AddLink(trace.Link{SpanContext: t.span.SpanContext()})
		}
	}
	if err := t.log.effects.insert(ctx, t.conn, t.admission.rows.caused); err != nil {
		return nil, err
	}
	b = &pgx.Batch{}
	if err := t.admission.inbox.QueueWrites(b, t.log.inbox); err != nil {
		return nil, err
	}
	if !t.admission.rows.empty() {
		t.admission.rows.queue(b, &t.log.sql, t.admission.at)
	}
	b.Queue("COMMIT")
	if err := t.send(ctx, b); err != nil {
		return nil, err
	}
	if s := t.conn.PgConn().TxStatus(); s != 'I' {
		return nil, fmt.Errorf("the transaction did not end: status %c", s)
	}
	return outcomes, nil
}

// guard returns the statements that begin the transaction and take the log's lock.
func (t *transaction) guard() *pgx.Batch {
	b := &pgx.Batch{}
	hold := milliseconds(t.log.times.hold)
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
	b.Queue(sqlLock, lockKey(t.log.o.Owner, "append"), hold)
	return b
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// send sends a batch and reads the results, in one round trip if the statements were prepared on the connection before.
func (t *transaction) send(ctx context.Context, b *pgx.Batch) error {
	return t.conn.SendBatch(ctx, b).Close()
}

func (t *transaction) rollback(ctx context.Context) {
	c := t.conn.PgConn()
	if c.IsClosed() || c.TxStatus() == 'I' {
		return
	}
	if _, err := c.Exec(ctx, "ROLLBACK").ReadAll(); err != nil || c.TxStatus() != 'I' {
		t.log.session.close(ctx) // the server rolls back when the connection closes
	}
}

// queueCheck queues the statements that read everything that the writes are checked against.
func (t *transaction) queueCheck(b *pgx.Batch) {
	var actors, ids, streams, members, rooms, timerStreams, timerKeys []string
	var consumed []inbox.Change
	seen := map[string]bool{}
	required := map[partKey]bool{}
	for _, pw := range t.writes {
		p := pw.prepared
		consumed = append(consumed, p.inbox)
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
			if e.requires.Stream != "" {
				required[partKey{e.requires.Stream, e.requires.Subject}] = true
			}
			if e.fired != nil {
				timerStreams, timerKeys = append(timerStreams, e.fired.Stream), append(timerKeys, e.fired.Key)
			}
		}
	}
	a := &t.admission
	a.versions, a.outcomes = make(map[string]catalog.Version, len(streams)), map[commandKey]outcome{}
	a.members, a.timers = map[membershipKey]bool{}, map[timerKey]*timerRow{}
	a.parts = map[partKey]partState{}
	partStreams, parts := partColumns(required)
	a.maxRooms, a.rooms = t.log.maxRooms, map[roomsKey]int{}
	entering, kinds := t.counted()
	a.inbox = inbox.NewAdmission()
	a.inbox.QueueReads(b, t.log.inbox, consumed)
	b.Queue(t.log.sql.check, actors, ids, streams, members, rooms, timerStreams,
		timerKeys, entering, kinds, partStreams, parts).Query(func(found pgx.Rows) error {
		var what int
		var digest string
		r := envelope.Outcome{Source: t.log.o.Owner}
		_, err := pgx.ForEachRow(found, []any{&what, &r.Actor, &r.CommandID, &r.Type, &r.Stream, &r.Kind, &r.Version,
			&r.Position, &r.Code, &r.Text, &r.Field, &digest}, func() error {
			switch what {
			case 1:
				a.outcomes[commandKey{r.Actor, r.CommandID}] = outcome{r, digest}
			case 2:
				a.versions[r.Stream] = r.Version
			case 3:
				a.parts[partKey{r.Stream, r.CommandID}] = t.log.partState(r.Type)
			case 5:
				a.members[membershipKey{r.Stream, r.Actor}] = true
			case 6:
				a.timers[timerKey{r.Stream, r.CommandID}] = &timerRow{generation: r.Version, due: micros(int64(r.Position))}
			case 8:
				a.rooms[roomsKey{r.Actor, r.Stream}] = int(r.Version)
			case 7:
				a.at = micros(int64(r.Position))
				t.log.clock.set(a.at)
			case 4:
				a.position = r.Position
				floor, err := strconv.ParseInt(r.Text, 10, 64)
				if err != nil {
					return err
				}
				a.incarnation = incarnation{int32(r.Version), r.Code, catalog.Position(floor)}
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

// loading holds the streams that were loaded for a write that decides under the lock.
type loading struct {
	write  *pendingWrite
	loaded []Loaded
}

func (t *transaction) queueLoads(b *pgx.Batch) bool {
	for _, pw := range t.writes {
		if pw.decide == nil {
			continue
		}
		t.loaded = append(t.loaded, loading{pw, make([]Loaded, len(pw.selections))})
	}
	for _, o := range t.loaded {
		for i, s := range o.write.selections {
			t.log.queueLoad(b, s, &o.loaded[i])
		}
	}
	if len(t.loaded) > 0 {
		t.log.queueClock(b, &t.at)
	}
	return len(t.loaded) > 0
}

// decide calls the decide functions of the writes that have one. It moves these writes to the front, so that no other
// write of the transaction changes their streams first. It removes the writes whose function fails, and stores their
// errors in the parameter outcomes. If the transaction has several writes and a decision contains an id in quarantine,
// decide moves that write to t.later.
func (t *transaction) decide(outcomes map[*pendingWrite]writeOutcome) {
	var first, others []*pendingWrite
	for _, o := range t.loaded {
		pw := o.write
		if pw.prepared != nil {
			pw.prepared.end(errors.New("decided again"))
			pw.prepared = nil
		}
		for i := range o.loaded {
			o.loaded[i].At = t.at
		}
		w, err := decideSafely(pw, o.loaded)
		if err == nil {
			pw.prepared, err = t.log.prepare(pw.ctx, w)
		}
		switch {
		case err != nil:
			outcomes[pw] = writeOutcome{err: err}
		case len(t.writes) > 1 && t.log.queue.isQuarantined(pw.prepared):
			t.later = append(t.later, pw)
		default:
			first = append(first, pw)
		}
	}
	for _, pw := range t.writes {
		if pw.decide == nil {
			others = append(others, pw)
		}
	}
	t.writes = append(first, others...)
}

// decideSafely calls the decide function of a write. It turns a panic into an error of this write, so that the other
// writes of the transaction are still committed.
func decideSafely(pw *pendingWrite, loaded []Loaded) (w Write, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &WriteError{fmt.Errorf("deciding panicked: %v", p)}
		}
	}()
	return pw.decide(pw.ctx, loaded)
}
