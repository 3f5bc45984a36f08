// Package intake publishes commands. It checks them against their declarations, and publishes them to their owner's
// command topic in the order in which a connection sent them. It passes each outcome to the connections and HTTP
// requests that wait for it.
package intake

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// MaxWaiting is the default maximum number of commands of one sender that have no outcome yet.
const MaxWaiting = 512

// Options of an Intake.
type Options struct {
	Catalog   *catalog.Catalog
	Publisher message.Publisher
	// Ready reports whether the outcomes of an owner's commands are received. Until it returns true, commands for that
	// owner are refused. By default it returns true once SetReady was called for the owner.
	Ready func(owner string) bool
	// Patience is how long a client waits for an outcome before it gets "queued" or "unavailable" (0: 5 s).
	Patience time.Duration
	// MaxWaiting and MaxBytes limit the number and the bytes of all commands without an outcome in this gateway. The
	// defaults are 20,000 and 64 MiB. Beyond the limits, a user who has less than an equal share of them may still
	// send.
	MaxWaiting, MaxBytes int
	// UserWaiting and UserBytes limit the number and the bytes of one user's commands without an outcome, over all
	// connections and requests (0: 1,024 and 8 MiB, or the limits of one sender if those are higher).
	UserWaiting, UserBytes int
	// SenderWaiting and SenderBytes limit the number and the bytes of one sender's commands without an outcome (0: the
	// constant MaxWaiting, and 4 MiB).
	SenderWaiting, SenderBytes int
	Metrics                    *Metrics
	Guard                      *guard.Guard
	Log                        *slog.Logger
}

// Intake publishes the commands of all connections and HTTP requests.
type Intake struct {
	options Options
	lines   map[string]*line

	mu      sync.Mutex
	ready   map[string]bool // by owner
	closed  bool
	waiting map[key]*entry
	users   map[string]*account
	total   account
	idle    chan struct{} // closed once Close was called and the field asking is 0
	asking  int           // number of waiters without a first answer
}

// account counts the waiting commands of a user or of the gateway.
type account struct {
	count  int // commands without an outcome
	bytes  int // the bytes of these commands
	unsent int // the bytes of commands that Kafka does not have yet, even if their senders are closed
}

// size returns the bytes that count against the limits: the larger one of the fields bytes and unsent. Their sum would
// count a command twice while Kafka does not have it yet.
func (a *account) size() int { return max(a.bytes, a.unsent) }

// key identifies a command. The command's owner stores one outcome for each key.
type key struct{ owner, actor, id string }

// entry is a command without an outcome, and its waiters.
type entry struct {
	stream  string
	name    string
	body    []byte
	waiters []*waiter
}

// New returns an Intake with a line to each owner's command topic.
func New(o Options) *Intake {
	if o.Patience == 0 {
		o.Patience = 5 * time.Second
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 20_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	if o.SenderWaiting == 0 {
		o.SenderWaiting = MaxWaiting
	}
	if o.SenderBytes == 0 {
		o.SenderBytes = 4 << 20
	}
	if o.UserWaiting == 0 {
		o.UserWaiting = max(1024, o.SenderWaiting)
	}
	if o.UserBytes == 0 {
		o.UserBytes = max(8<<20, o.SenderBytes)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	i := &Intake{options: o, lines: map[string]*line{}, waiting: map[key]*entry{}, users: map[string]*account{},
		idle: make(chan struct{}), ready: map[string]bool{}}
	if o.Ready == nil {
		i.options.Ready = func(owner string) bool { return i.ready[owner] }
	}
	for _, owner := range o.Catalog.Owners() {
		topic := catalog.CommandTopic(owner)
		i.lines[topic] = newLine(topic, o.Publisher, o.Log, i.fresh, i.sent)
	}
	return i
}

// SetReady records that the outcomes of an owner's commands are received from now on.
func (i *Intake) SetReady(owner string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ready[owner] = true
}

// Run publishes until the context ends.
func (i *Intake) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range i.lines {
		g.Go(func() error { return l.run(ctx) })
	}
	return g.Wait()
}

// Close refuses further commands. It waits until the commands in flight have their first answer, or until the context
// ends.
func (i *Intake) Close(ctx context.Context) {
	i.mu.Lock()
	i.closed = true
	i.endIfIdle()
	i.mu.Unlock()
	select {
	case <-i.idle:
	case <-ctx.Done():
	}
}

func (i *Intake) endIfIdle() {
	if i.closed && i.asking == 0 {
		select {
		case <-i.idle:
		default:
			close(i.idle)
		}
	}
}

// Resolve passes an outcome to the waiters of the command, if any wait in this gateway. If the waiting command with the
// id in the outcome has another type or stream than the outcome, the outcome is ignored.
func (i *Intake) Resolve(r envelope.Outcome) {
	k := key{r.Source, r.Actor, r.CommandID}
	i.mu.Lock()
	e := i.waiting[k]
	if e == nil || e.stream != r.Stream || e.name != r.Type {
		i.mu.Unlock()
		return
	}
	delete(i.waiting, k)
	waiters := e.waiters
	for _, w := range waiters {
		i.forget(w)
	}
	i.mu.Unlock()

	i.options.Metrics.outcome(r)
	for _, w := range waiters {
		w.sender.committed(r)
		a := answerOf(r)
		w.finish(a)
	}
}

// add puts a waiter into Intake.waiting, or returns a refusal.
func (i *Intake) add(w *waiter) *refusal.Error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return refusal.New(refusal.Unavailable,
			"this gateway is stopping; send the command again, with the same id, to another one")
	case !i.options.Ready(w.key.owner):
		return refusal.New(refusal.Unavailable,
			"the gateway does not receive outcomes yet; send the command again with the same id")
	}
	if refused := i.room(w); refused != nil {
		return refused
	}
	e := i.waiting[w.key]
	if e == nil {
		e = &entry{stream: w.command.Stream, name: w.command.Declared.Name, body: w.command.Body}
		i.waiting[w.key] = e
	} else if e.stream != w.command.Stream || e.name != w.command.Declared.Name {
		return refusal.New(refusal.IDReused, "the command id is already used for %s on %s", e.name, e.stream)
	} else if !bytes.Equal(e.body, w.command.Body) {
		// If this command were accepted, its sender would get the outcome of the first command.
		return refusal.New(refusal.IDReused, "the command id is already used for another %s on %s", e.name, e.stream)
	}
	if refused := w.sender.reserve(w); refused != nil {
		if len(e.waiters) == 0 {
			delete(i.waiting, w.key)
		}
		return refused
	}
	e.waiters = append(e.waiters, w)
	w.waits, w.asks = true, true
	user := i.users[w.key.actor]
	if user == nil {
		user = &account{}
		i.users[w.key.actor] = user
	}
	for _, a := range []*account{user, &i.total} {
		a.count++
		a.bytes += w.size
		a.unsent += w.size
	}
	i.asking++
	i.options.Metrics.Waiting.Set(float64(i.total.count))
	return nil
}

// room returns a refusal if a command exceeds the limits of its user or of the gateway. When the gateway has reached
// its limits, each user may still have an equal share of them, and at least one command.
func (i *Intake) room(w *waiter) *refusal.Error {
	user := i.users[w.key.actor]
	if user == nil {
		return nil
	}
	o := i.options
	switch {
	case user.count >= o.UserWaiting || user.size()+w.size > o.UserBytes:
		return refusal.New(refusal.TooManyWaiting, "%d of your commands have no outcome yet; wait for some of them",
			user.count)
	case i.total.count >= o.MaxWaiting && user.count >= o.MaxWaiting/len(i.users),
		i.total.size()+w.size > o.MaxBytes && user.size()+w.size > o.MaxBytes/len(i.users):
		return refusal.New(refusal.TooManyWaiting, "too many commands at this gateway have no outcome yet")
	}
	return nil
}

// fresh returns the waiters whose commands still have to be published. The other commands are older than
// Options.Patience, and no client waits for them: they have their outcome, were answered with "unavailable", or come
// from a closed sender. fresh takes the lock once for all waiters: taking it a thousand times in competition with
// senders would take seconds.
func (i *Intake) fresh(waiters []*waiter) []*waiter {
	fresh := make([]*waiter, 0, len(waiters))
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, w := range waiters {
		if w.waits || time.Since(w.born) < i.options.Patience {
			fresh = append(fresh, w)
		}
	}
	return fresh
}

// sent records that the commands of the given waiters need not be published any more.
func (i *Intake) sent(waiters []*waiter) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, w := range waiters {
		i.total.unsent -= w.size
		if user := i.users[w.key.actor]; user != nil {
			user.unsent -= w.size
			i.settle(w.key.actor, user)
		}
	}
}

// settle removes the account of a user if all its counts are 0.
func (i *Intake) settle(id string, user *account) {
	if *user == (account{}) {
		delete(i.users, id)
	}
}

// remove removes a waiter from Intake.waiting. It returns false if the waiter has its outcome, or was removed before.
func (i *Intake) remove(w *waiter) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !w.waits {
		return false
	}
	i.forget(w)
	if e := i.waiting[w.key]; e != nil {
		for n, other := range e.waiters {
			if other == w {
				e.waiters = append(e.waiters[:n], e.waiters[n+1:]...)
				break
			}
		}
		if len(e.waiters) == 0 {
			delete(i.waiting, w.key)
		}
	}
	return true
}

// answered records that a waiter gets its first answer. It returns false if the waiter had an answer before, or was
// removed.
func (i *Intake) answered(w *waiter) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !w.waits || !w.asks {
		return false
	}
	w.asks = false
	i.asking--
	i.endIfIdle()
	return true
}

func (i *Intake) forget(w *waiter) {
	w.waits = false
	i.total.count--
	i.total.bytes -= w.size
	if user := i.users[w.key.actor]; user != nil {
		user.count--
		user.bytes -= w.size
		i.settle(w.key.actor, user)
	}
	if w.asks {
		w.asks = false
		i.asking--
		w.first = true
	}
	i.options.Metrics.Waiting.Set(float64(i.total.count))
	i.endIfIdle()
}
