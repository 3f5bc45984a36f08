package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Fault is a disturbance of the mesh for a limited time.
type Fault struct {
	// Kind is the kind of disturbance. On is its target: a process, a store, a link or the owner of a log; empty if the
	// kind has no targets.
	Kind, On string
	// After is the number of commands that must have been sent before the fault may begin. For is the fault's duration.
	After int
	For   time.Duration
	// Times is how often the target is killed or cut (0: once). The duration For is split into equal parts, one for
	// each time, with pauses between the parts. A service that is killed starts again after half of a part.
	Times int
}

func (f Fault) String() string {
	s := f.Kind
	if f.On != "" {
		s += " " + f.On
	}
	if f.Times > 1 {
		s += fmt.Sprintf(" ×%d", f.Times)
	}
	return s
}

// The targets of faults. A link is the network path from one or more processes to a store or a service. The links of
// gateways are the paths from clients.
var (
	services = []string{"chat-1", "chat-2", "gateway-1", "gateway-2", "notification", "feed", "presence"}
	stores   = []string{"kafka", "redis", "postgres"}
	links    = []string{"kafka", "redis", "postgres of chat-1", "postgres of chat-2", "postgres of notification",
		"postgres of feed", "chat-1", "chat-2", "presence", "gateway-1", "gateway-2"}
)

// kind is a kind of fault with its targets and durations.
type kind struct {
	name              string
	on                []string
	shortest, longest time.Duration
	times             int // the maximum of Fault.Times
	weight            int
}

var kinds = []kind{
	{"kill", services, 0, 3 * time.Second, 4, 8},
	{"kill", stores, time.Second, 4 * time.Second, 1, 6},
	{"kill all services", nil, 0, 2 * time.Second, 1, 2},
	{"freeze", services, time.Second, 4 * time.Second, 1, 4},
	{"freeze", stores, time.Second, 4 * time.Second, 1, 4},
	{"freeze, then kill", []string{"kafka", "postgres"}, time.Second, 2 * time.Second, 1, 2},
	// The next two faults last longer than the session timeout of consumer groups, which is 6 s. So another instance of
	// the service, if there is one, takes over while the target is frozen or stopped.
	{"freeze long", []string{"chat-1", "chat-2", "notification"}, 8 * time.Second, 10 * time.Second, 1, 2},
	{"stop long", []string{"chat-1", "notification", "gateway-1", "feed"}, 8 * time.Second, 10 * time.Second, 1, 2},
	{"stop until forgotten", []string{"notification", "gateway-1"}, 2 * time.Second, 5 * time.Second, 1, 3},
	{"forget", []string{"kafka"}, 0, 0, 1, 1},
	{"lose the tail", []string{"kafka"}, time.Second, 2 * time.Second, 1, 2},
	{"empty", []string{"redis"}, 0, 0, 1, 1},
	{"rewind", []string{"redis"}, time.Second, 4 * time.Second, 1, 2},
	{"cut", links, 300 * time.Millisecond, 3 * time.Second, 3, 6},
	{"reset", links, 300 * time.Millisecond, 2 * time.Second, 1, 2},
	{"silence", links, time.Second, 5 * time.Second, 1, 4},
	{"delay", links, 2 * time.Second, 6 * time.Second, 1, 3},
	{"throttle", links, 2 * time.Second, 6 * time.Second, 1, 3},
	{"hold a transaction open", nil, 3 * time.Second, 8 * time.Second, 1, 2},
	{"hold the append lock", []string{"chat", "notification", "feed"}, time.Second, 6 * time.Second, 1, 3},
	{"poison", nil, 0, 0, 1, 2},
	{"slow client", nil, 3 * time.Second, 8 * time.Second, 1, 2},
}

// Plan is a sequence of faults. NewPlan derives the faults from the seed.
type Plan struct {
	Seed   uint64
	Faults []Fault
	// Skew is the maximum offset of the services' clocks, in either direction.
	Skew time.Duration
}

func (p Plan) String() string {
	var all []string
	for _, f := range p.Faults {
		all = append(all, f.String())
	}
	if p.Skew > 0 {
		all = append(all, fmt.Sprintf("clocks off by %v", p.Skew))
	}
	return strings.Join(all, ", ")
}

// NewPlan returns a plan with the given number of faults, which are derived from a seed. The faults begin while the
// given number of commands is sent.
func NewPlan(seed uint64, faults, commands int) Plan {
	p := Plan{Seed: seed}
	r := rand.New(rand.NewPCG(seed, 1))
	weights := 0
	for _, k := range kinds {
		weights += k.weight
	}
	for range faults {
		n := r.IntN(weights)
		i := slices.IndexFunc(kinds, func(k kind) bool { n -= k.weight; return n < 0 })
		p.Faults = append(p.Faults, kinds[i].draw(r, commands))
	}
	slices.SortStableFunc(p.Faults, func(a, b Fault) int { return a.After - b.After })
	if r.IntN(4) == 0 {
		p.Skew = time.Duration(1+r.IntN(600)) * time.Second
	}
	return p
}

// draw draws the target, the time, the duration and the repetitions of a fault. The fault may begin after a random
// part of the commands, from 10 % to 70 %, has been sent.
func (k kind) draw(r *rand.Rand, commands int) Fault {
	f := Fault{Kind: k.name, After: commands/10 + r.IntN(max(1, commands*6/10)), Times: 1, For: k.shortest}
	if len(k.on) > 0 {
		f.On = k.on[r.IntN(len(k.on))]
	}
	if k.longest > k.shortest {
		f.For += time.Duration(r.Int64N(int64(k.longest - k.shortest))).Round(10 * time.Millisecond)
	}
	if k.times > 1 {
		f.Times += r.IntN(k.times)
	}
	return f
}

// Each returns a plan with a single fault for each kind of fault and each of its targets.
func Each(commands int) (all []Plan) {
	for _, k := range kinds {
		on := k.on
		if len(on) == 0 {
			on = []string{""}
		}
		for _, target := range on {
			single := k
			if target != "" {
				single.on = []string{target}
			}
			seed := uint64(len(all) + 1)
			f := single.draw(rand.New(rand.NewPCG(seed, 2)), commands/2)
			all = append(all, Plan{Seed: seed, Faults: []Fault{f}})
		}
	}
	return all
}
