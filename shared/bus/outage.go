package bus

import (
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// outages are the dependencies that messages of a router wait for. Each is reported once when the first one waits and
// once when the first one has come through, which wakes all others.
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

// end is called when a message has come through, or the last one that waited has gone.
func (o *outages) end(at *outage) {
	if o.byName[at.name] != at {
		return // another one ended it
	}
	delete(o.byName, at.name)
	close(at.over)
	o.log.Info("no message waits for the dependency any more", "dependency", at.name)
	o.waiting(at.name, nil)
}

// patience waits on behalf of one message.
type patience struct {
	outages *outages
	again   backoff
	over    <-chan struct{} // of the message's partition here
	ended   <-chan struct{} // of the message's context
	at      *outage
}

func (o *RouterOptions) patience(m *message.Message) *patience {
	return &patience{outages: o.outages, again: backoff{first: o.Backoff}, over: overOf(m.Context()),
		ended: m.Context().Done()}
}

// wait waits a while for what err says is away; false when there is no more time.
func (p *patience) wait(err error) bool {
	if p.stopped() {
		return false
	}
	pause := p.again.next()
	before := p.at
	p.at = p.outages.join(dependencyOf(err), err)
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

// back says that the message came through to what it waited for.
func (p *patience) back() {
	if p.at == nil {
		return
	}
	p.outages.mu.Lock()
	defer p.outages.mu.Unlock()
	p.outages.end(p.at)
	p.at = nil
	p.again.tries = 0
}

// leave ends waiting without knowing more.
func (p *patience) leave() {
	p.outages.leave(p.at)
	p.at = nil
}

func (p *patience) stopped() bool {
	select {
	case <-p.over:
		return true
	case <-p.ended:
		return true
	default:
		return false
	}
}
