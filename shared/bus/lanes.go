package bus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lanes hand out the records of one claim: those of a key one after another, those of different keys at the same time.
// Records without a key share one lane, which keeps the order that they have in the partition; with InOrder all do.
//
// A record that was read and is not acknowledged is open. All open records are at or above the watermark, which alone
// is committed; there are never more of them than the window, and records that were read beyond it wait in the backlog.
type lanes struct {
	claim    *Claim
	group    string
	out      chan<- *message.Message
	base     context.Context // of the messages; ends when what is in flight is given up
	giveUp   context.CancelFunc
	window   int
	inOrder  bool
	pause    time.Duration  // before a message that was not acknowledged comes again
	mark     func(int64)    // the watermark: the offset to begin with after a restart
	drained  func()         // the backlog has room again
	stopping chan struct{}  // closed: nothing is handed out any more; the claim's Done
	serving  sync.WaitGroup // goroutines that hand out and wait

	mu      sync.Mutex
	waiting bool    // nothing is handed out yet
	open    []*held // by offset; the first one is not acknowledged
	backlog []*kgo.Record
	full    bool // the backlog was reported full
	byKey   map[string]*lane
	stopped bool
}

// lane is the records of one key.
type lane struct {
	key     string
	waiting []*held // to be handed out, by offset
	busy    bool    // one was handed out that is neither acknowledged nor released
	open    int     // records that are not acknowledged
}

// held is an open record.
type held struct {
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

// backlogWindows is how many windows the backlog may hold before it is full. With half of that it has room again, so
// that there is work for as long as the next fetch takes.
const backlogWindows = 4

// take takes the partition's next records, and reports whether the backlog is full.
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

// begin lets lanes hand out that were made waiting.
func (l *lanes) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
	l.admit()
}

// admit opens records while the window has room.
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
		h := &held{record: r, lane: to}
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

// start has a lane's next record handed out where that may be.
func (l *lanes) start(to *lane) {
	if h := l.next(to); h != nil {
		l.serving.Add(1)
		go l.serve(h)
	}
}

// next takes the record that a lane may hand out now; nil if there is none.
func (l *lanes) next(to *lane) *held {
	if l.stopped || to.busy || len(to.waiting) == 0 {
		return nil
	}
	h := to.waiting[0]
	to.waiting[0] = nil
	to.waiting = to.waiting[1:]
	to.busy = true
	return h
}

// serve hands out a record, and those after it in its lane.
func (l *lanes) serve(h *held) {
	defer l.serving.Done()
	for h != nil {
		h = l.handOut(h)
	}
}

// handOut hands out a record, waits until it is settled and gives the lane's next one.
func (l *lanes) handOut(h *held) *held {
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

func (l *lanes) acked(d *delivery) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.held.acked = true
	to := d.held.lane
	if to.open--; to.open == 0 {
		delete(l.byKey, to.key)
	}
	l.freed(d)
	l.advance()
	return l.next(to)
}

// nacked puts a record back to its place in its lane. Released ones that were handed out after it stay out; nothing
// further is until it was settled.
func (l *lanes) nacked(d *delivery) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, to := d.held, d.held.lane
	h.tries++
	at := 0
	for at < len(to.waiting) && to.waiting[at].record.Offset < h.record.Offset {
		at++
	}
	to.waiting = slices.Insert(to.waiting, at, h)
	l.freed(d)
	return l.next(to)
}

func (l *lanes) release(d *delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !d.free {
		l.freed(d)
		l.start(d.held.lane)
	}
}

// freed notes that a delivery does not hold up its lane any more.
func (l *lanes) freed(d *delivery) {
	if !d.free {
		d.free = true
		d.held.lane.busy = false
	}
}

// advance moves the watermark over what is acknowledged without a gap.
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

// disown keeps the watermark where it is from now on.
func (l *lanes) disown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark = func(int64) {}
}

// stop hands out nothing more, waits so long for what is in flight, and gives up the rest. After it no offset is
// marked.
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
