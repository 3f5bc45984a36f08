//go:build integration

package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/auth"
)

// population consists of all clients of a run. Most users have one device, some have two. Each device connects to the
// two gateways in turn.
type population struct {
	h        *History
	seed     uint64
	sockets  []string
	tokens   map[string]string
	users    []string
	devices  []*device
	talk     directory
	rate     float64 // commands per second, over all devices
	stopping atomic.Bool
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	sending  sync.WaitGroup // the goroutines that send commands
}

type size struct {
	clients  int
	commands int // the minimum number of commands
	faults   int
	rate     float64
}

func newPopulation(t testing.TB, m *mesh, seed uint64, s size) *population {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &population{h: NewHistory(), seed: seed, rate: s.rate, ctx: ctx, cancel: cancel, tokens: map[string]string{}}
	t.Cleanup(p.end)
	for _, gateway := range []string{"gateway-1", "gateway-2"} {
		p.sockets = append(p.sockets, "ws://"+m.links[gateway].Addr()+"/ws")
	}
	for n := range s.clients {
		// One device in five is a second device of an existing user.
		user := fmt.Sprintf("user-%d", n)
		if n%5 == 4 {
			user = p.users[len(p.users)-1]
		} else {
			p.users = append(p.users, user)
		}
		if p.tokens[user] == "" {
			token, err := auth.Mint(secret, auth.User{ID: user, Name: user}, 2*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			p.tokens[user] = token
		}
		d := &device{p: p, user: user, name: fmt.Sprintf("device-%d of %s", n, user), gateway: n % len(p.sockets),
			waiting: map[string][]chan Answer{}, random: p.random(1000 + n)}
		p.devices = append(p.devices, d)
	}
	subscriptions := p.random(3)
	for n, d := range p.devices { // start the devices after the loop above, because they read p.devices
		if n%devicesPerSubscriber == 0 {
			d.subscriptions = p.some(subscriptions, 5)
		}
		p.running.Go(d.stay)
	}
	return p
}

// random returns a new source of random numbers, which follow from the seed and from the parameter who. Each
// caller passes its own number, so the random numbers do not depend on the order in which goroutines run.
func (p *population) random(who int) *rand.Rand { return rand.New(rand.NewPCG(p.seed, uint64(who))) }

// begin starts conversations: groups of several users, and pairs.
func (p *population) begin(t testing.TB) {
	r := p.random(0)
	var starting sync.WaitGroup
	groups := max(3, len(p.devices)/3)
	for n := range groups + groups/2 {
		d := p.devices[n%len(p.devices)]
		members := p.some(r, 4+r.IntN(5))
		w := &worker{device: d, random: p.random(2000 + n)}
		starting.Go(func() {
			if n < groups {
				w.startGroup(members)
			} else {
				w.startDirect(members[0])
			}
		})
	}
	starting.Wait()
	if p.talk.count() < groups {
		t.Fatalf("%d of %d conversations were started", p.talk.count(), groups)
	}
}

func (p *population) some(r *rand.Rand, n int) (users []string) {
	for _, i := range r.Perm(len(p.users))[:min(n, len(p.users))] {
		users = append(users, p.users[i])
	}
	return users
}

// One of every devicesPerSubscriber devices subscribes to the posts of five users.
const devicesPerSubscriber = 4

// workersEach is the number of workers of a device. Each worker sends one command after the other.
const workersEach = 5

// send makes all devices send commands until the population stops sending.
func (p *population) send() {
	for n := range len(p.devices) * workersEach {
		w := &worker{device: p.devices[n/workersEach], random: p.random(10_000 + n)}
		pause := time.Duration(float64(time.Second) * float64(len(p.devices)*workersEach) / p.rate)
		p.sending.Go(func() {
			for !p.stopping.Load() && p.ctx.Err() == nil {
				if sleep(p.ctx, time.Duration(w.random.Float64()*2*float64(pause))); !p.stopping.Load() {
					w.something()
				}
			}
		})
	}
}

// settle stops sending, and waits until every worker has ended its last command, or until the given time has passed.
func (p *population) settle(within time.Duration) {
	p.stopping.Store(true)
	done := make(chan struct{})
	p.running.Go(func() {
		p.sending.Wait()
		close(done)
	})
	select {
	case <-done:
	case <-time.After(within):
	}
}

// end closes all connections and waits for all goroutines.
func (p *population) end() {
	p.cancel()
	p.running.Wait()
}

// connected waits until every device is connected. It returns false if this takes longer than the given time.
func (p *population) connected(within time.Duration) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		all := true
		for _, d := range p.devices {
			all = all && d.session() != nil
		}
		if all {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// directory contains the conversations that the clients have started, and their members according to the outcomes of
// commands. The members may be out of date.
type directory struct {
	mu    sync.Mutex
	all   []*talk
	known map[string]*talk
}

type talk struct {
	id      string
	owner   string
	direct  bool
	members []string
}

func (d *directory) add(t *talk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = map[string]*talk{}
	}
	if d.known[t.id] == nil {
		d.known[t.id] = t
		d.all = append(d.all, t)
	}
}

func (d *directory) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.all)
}

// pick returns a random conversation. In most cases the user is a member of it according to the directory. pick returns
// false if it finds none.
func (d *directory) pick(r *rand.Rand, user string) (t talk, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var mine []*talk
	anything := r.IntN(20) == 0
	for _, t := range d.all {
		if anything || contains(t.members, user) {
			mine = append(mine, t)
		}
	}
	if len(mine) == 0 {
		return talk{}, false
	}
	t = *mine[r.IntN(len(mine))]
	t.members = append([]string(nil), t.members...)
	return t, true
}

func (d *directory) joined(id, user string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.known[id]; t != nil && !contains(t.members, user) {
		t.members = append(t.members, user)
	}
}

func (d *directory) left(id, user string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.known[id]; t != nil {
		for i, m := range t.members {
			if m == user {
				t.members = append(t.members[:i], t.members[i+1:]...)
				return
			}
		}
	}
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}
