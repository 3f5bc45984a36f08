package bus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
)

// lanes hand out the records of one claimed partition: those of a key one after another, those of different keys at the
// same time. Records without a key share one lane, which keeps the order that they have in the partition.
//
// What was read and is not acknowledged is open. All open records are at or above the watermark, which alone is
// committed; there are never more of them than the window, and what was read beyond waits in the backlog.
type lanes struct {
	topic, group string
	out          chan<- *message.Message
	base         context.Context // of the messages; ends when what is in flight is given up
	giveUp       context.CancelFunc
	window       int
	pause        time.Duration  // before a message that was not acknowledged comes again
	mark         func(int64)    // the watermark: the offset to begin with after a restart
	room         chan struct{}  // takes one: the backlog or the window has shrunk
	stopping     chan struct{}  // closed: nothing is handed out any more
	serving      sync.WaitGroup // goroutines that hand out and wait

	mu      sync.Mutex
	open    []*held // by offset; the first one is not acknowledged
	backlog []*sarama.ConsumerMessage
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
	record *sarama.ConsumerMessage
	lane   *lane
	tries  int
	acked  bool
}

func newLanes(ctx context.Context, topic, group string, o SubscriberOptions, out chan<- *message.Message,
	mark func(int64)) *lanes {
	l := &lanes{topic: topic, group: group, out: out, window: o.Window, pause: o.Backoff, mark: mark,
		room: make(chan struct{}, 1), stopping: make(chan struct{}), byKey: map[string]*lane{}}
	l.base, l.giveUp = context.WithCancel(ctx)
	return l
}

// add takes the partition's next record.
func (l *lanes) add(r *sarama.ConsumerMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.backlog = append(l.backlog, r)
	l.admit()
}

// full says that the next record would have to wait in the backlog.
func (l *lanes) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open) >= l.window
}

// idle says that nothing waits in the backlog.
func (l *lanes) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.backlog) == 0
}

// admit opens records while the window has room.
func (l *lanes) admit() {
	for len(l.backlog) > 0 && len(l.open) < l.window {
		r := l.backlog[0]
		l.backlog[0] = nil
		if l.backlog = l.backlog[1:]; len(l.backlog) == 0 {
			l.backlog = nil
		}
		key := string(r.Key)
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
	d := &delivery{topic: l.topic, group: l.group, record: h.record, over: l.stopping, lanes: l, held: h}
	ctx, cancel := context.WithCancel(l.base)
	defer cancel()
	m := d.message(ctx)
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
	if l.stopped {
		return
	}
	l.admit()
	select {
	case l.room <- struct{}{}:
	default:
	}
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
