package bus

import (
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/retry"
)

// outages tracks the dependencies for which messages of a router wait. Each outage is reported twice: when the first
// message waits, and when the outage ends. An outage ends when the next attempt for one of the messages succeeds, or
// fails with an error that does not wrap retry.ErrUnavailable. Then the other messages are tried again at once. An
// outage also ends when no message waits any more, for example because the subscriber has stopped.
type outages struct {
	waiting func(dependency string, err error)
	log     *slog.Logger

	mu     sync.Mutex
	byName map[string]*outage
}

type outage struct {
	name    string
	waiters int
	over    chan struct{}
}

func (o *outages) join(dependency string, err error) *outage {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := o.byName[dependency]
	if at == nil {
		at = &outage{name: dependency, over: make(chan struct{})}
		o.byName[dependency] = at
		o.log.Warn("messages wait for a dependency", "dependency", dependency, "error", err)
		o.waiting(dependency, err)
	}
	at.waiters++
	return at
}

func (o *outages) leave(at *outage) {
	if at == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if at.waiters--; at.waiters == 0 {
		o.end(at)
	}
}

// end ends an outage and wakes the messages that wait. It is called when the dependency works again for one message, or
// when the last waiting message has left. The caller holds o.mu.
func (o *outages) end(at *outage) {
	if o.byName[at.name] != at {
		return // another message has ended the outage
	}
	delete(o.byName, at.name)
	close(at.over)
	o.log.Info("no messages wait for the dependency any more", "dependency", at.name)
	o.waiting(at.name, nil)
}

// dependencyWait waits for dependencies on behalf of one message.
type dependencyWait struct {
	outages *outages
	backoff retry.Backoff
	over    <-chan struct{} // see delivery.over
	ended   <-chan struct{} // closed when the message's context ends
	at      *outage
}

func (o *RouterOptions) patience(m *message.Message) *dependencyWait {
	return &dependencyWait{outages: o.outages, backoff: retry.Backoff{First: o.Backoff, Max: pauseGrowth * o.Backoff}, over: overOf(m.Context()),
		ended: m.Context().Done()}
}

// wait waits before the next attempt after an error of an unavailable dependency. It returns false if there must be no
// next attempt, because the subscriber stops or loses the message's partition, or because the message's context ends.
func (p *dependencyWait) wait(err error) bool {
	if p.stopped() {
		return false
	}
	pause := p.backoff.Next()
	before := p.at
	p.at = p.outages.join(retry.Dependency(err), err)
	p.outages.leave(before)
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.at.over:
	case <-p.over:
		return false
	case <-p.ended:
		return false
	}
	return true
}

// recovered ends the outage for which the message waited, if any, because the dependency works again.
func (p *dependencyWait) recovered() {
	if p.at == nil {
		return
	}
	p.outages.mu.Lock()
	defer p.outages.mu.Unlock()
	p.outages.end(p.at)
	p.at = nil
	p.backoff.Reset()
}

// leave ends the message's wait, whether or not the dependency works again.
func (p *dependencyWait) leave() {
	p.outages.leave(p.at)
	p.at = nil
}

func (p *dependencyWait) stopped() bool {
	select {
	case <-p.over:
		return true
	case <-p.ended:
		return true
	default:
		return false
	}
}
