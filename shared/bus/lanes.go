package bus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lanes delivers the records of one claim. Records of different keys are delivered concurrently. A record waits for the
// earlier records of its key, except those that are released (see Release). Records without a key share one lane, which
// keeps their order in the partition. With SubscriberOptions.InOrder, all records share one lane.
//
// The watermark is the offset below which all records are acknowledged; only the watermark is committed. A record is
// open from its admission for delivery until the watermark has passed it. The window is the maximum number of
// open records. Further records that were fetched wait in the backlog.
type lanes struct {
	claim    *Claim
	group    string
	out      chan<- *message.Message
	base     context.Context // of the messages; ends when the lanes give up messages in flight
	giveUp   context.CancelFunc
	window   int
	inOrder  bool
	pause    time.Duration  // first delay before a message that was not acknowledged is delivered again
	mark     func(int64)    // records the watermark: the offset from which to read after a restart
	drained  func()         // called when the backlog has room again
	stopping chan struct{}  // the claim's Done; closed by stop, after which no lane begins another record
	serving  sync.WaitGroup // goroutines that run serve

	mu      sync.Mutex
	waiting bool          // delivery has not begun; begin sets the field to false
	open    []*openRecord // by offset; the first one is not acknowledged
	backlog []*kgo.Record
	full    bool // the backlog was reported full
	byKey   map[string]*lane
	stopped bool
}

// lane holds the records of one key.
type lane struct {
	key     string
	waiting []*openRecord // to be delivered, by offset
	busy    bool          // a record is being delivered, and is neither settled (see deliver) nor released
	open    int           // number of open records that are not acknowledged
}

// openRecord is a record that was admitted for delivery and is not below the watermark.
type openRecord struct {
	record *kgo.Record
	lane   *lane
	tries  int
	acked  bool
}

func newLanes(ctx context.Context, claim *Claim, group string, o SubscriberOptions, out chan<- *message.Message,
	mark func(int64), drained func()) *lanes {
	l := &lanes{claim: claim, group: group, out: out, window: o.Window, inOrder: o.InOrder, pause: o.Backoff, mark: mark,
		drained: drained, stopping: claim.done, byKey: map[string]*lane{}}
	l.base, l.giveUp = context.WithCancel(ctx)
	return l
}

// backlogWindows is the size of the backlog, in windows, above which the backlog is full. A full backlog has room again
// at half of that size, so that enough records remain to be delivered during the next fetch.
const backlogWindows = 4

// take accepts the partition's next records, and reports whether the backlog is full. After stop, it drops the records.
func (l *lanes) take(records []*kgo.Record) (full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.backlog = append(l.backlog, records...)
	l.admit()
	l.full = len(l.backlog) > backlogWindows*l.window
	return l.full
}

// begin ends the wait (see the field waiting) and starts the delivery.
func (l *lanes) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
	l.admit()
}

// admit moves records from the backlog to the open records while the window has room.
func (l *lanes) admit() {
	if l.stopped || l.waiting {
		return
	}
	for len(l.backlog) > 0 && len(l.open) < l.window {
		r := l.backlog[0]
		l.backlog[0] = nil
		if l.backlog = l.backlog[1:]; len(l.backlog) == 0 {
			l.backlog = nil
		}
		key := ""
		if !l.inOrder {
			key = string(r.Key)
		}
		to := l.byKey[key]
		if to == nil {
			to = &lane{key: key}
			l.byKey[key] = to
		}
		h := &openRecord{record: r, lane: to}
		l.open = append(l.open, h)
		to.open++
		to.waiting = append(to.waiting, h)
		l.start(to)
	}
	if l.full && len(l.backlog) <= backlogWindows*l.window/2 {
		l.full = false
		go l.drained()
	}
}

// start delivers a lane's next record if it may be delivered now.
func (l *lanes) start(to *lane) {
	if h := l.next(to); h != nil {
		l.serving.Add(1)
		go l.serve(h)
	}
}

// next removes and returns the record that a lane may deliver now; nil if there is none.
func (l *lanes) next(to *lane) *openRecord {
	if l.stopped || to.busy || len(to.waiting) == 0 {
		return nil
	}
	h := to.waiting[0]
	to.waiting[0] = nil
	to.waiting = to.waiting[1:]
	to.busy = true
	return h
}

// serve delivers a record, and then the next records of its lane while deliver returns one.
func (l *lanes) serve(h *openRecord) {
	defer l.serving.Done()
	for h != nil {
		h = l.deliver(h)
	}
}

// deliver delivers a record and waits until the record is settled: the handler has acknowledged or rejected it, or the
// lanes have given it up. It returns the lane's next record; nil if none may be delivered now.
func (l *lanes) deliver(h *openRecord) *openRecord {
	if h.tries > 0 && !sleep(pause(l.pause, h.tries), l.stopping, nil) {
		return nil
	}
	ctx, cancel := context.WithCancel(l.base)
	defer cancel()
	d := &delivery{Context: ctx, group: l.group, record: recordOf(l.claim.Topic, h.record), over: l.stopping, lanes: l,
		held: h}
	m := d.record.Message(d)
	select {
	case l.out <- m:
	case <-l.stopping:
		return nil
	}
	select {
	case <-m.Acked():
		return l.acked(d)
	case <-m.Nacked():
		return l.nacked(d)
	case <-l.base.Done():
		return nil
	}
}

func (l *lanes) acked(d *delivery) *openRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.held.acked = true
	to := d.held.lane
	if to.open--; to.open == 0 {
		delete(l.byKey, to.key)
	}
	l.unblockLane(d)
	l.advance()
	return l.next(to)
}

// nacked puts a rejected record back in its place in its lane. If the record was released, later records that were
// delivered meanwhile remain in flight. The lane's other records wait until the record is acknowledged or released.
func (l *lanes) nacked(d *delivery) *openRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, to := d.held, d.held.lane
	h.tries++
	at := 0
	for at < len(to.waiting) && to.waiting[at].record.Offset < h.record.Offset {
		at++
	}
	to.waiting = slices.Insert(to.waiting, at, h)
	l.unblockLane(d)
	return l.next(to)
}

func (l *lanes) release(d *delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !d.free {
		l.unblockLane(d)
		l.start(d.held.lane)
	}
}

// unblockLane records that a delivery does not block its lane any more.
func (l *lanes) unblockLane(d *delivery) {
	if !d.free {
		d.free = true
		d.held.lane.busy = false
	}
}

// advance moves the watermark over the acknowledged records at the front.
func (l *lanes) advance() {
	n := 0
	for n < len(l.open) && l.open[n].acked {
		n++
	}
	if n == 0 {
		return
	}
	l.mark(l.open[n-1].record.Offset + 1)
	clear(l.open[:n])
	if l.open = l.open[n:]; len(l.open) == 0 {
		l.open = nil
	}
	l.admit()
}

// detach stops the recording of the watermark: later acknowledgments do not change the offset to commit.
func (l *lanes) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark = func(int64) {}
}

// stop ends delivery, waits for messages in flight for at most the duration patience, and gives up the messages that
// are left. No watermark is recorded after stop has returned.
func (l *lanes) stop(patience time.Duration) {
	l.mu.Lock()
	l.stopped = true
	l.backlog = nil
	l.mu.Unlock()
	close(l.stopping)

	timeout := time.AfterFunc(patience, l.giveUp)
	l.serving.Wait()
	timeout.Stop()
	l.giveUp()
}
