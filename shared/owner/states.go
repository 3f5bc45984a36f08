package owner

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

const (
	maxStates     = 200_000  // streams whose state is kept between runs
	maxStateBytes = 64 << 20 // of the events that those were folded from, about what they take
	stateBytes    = 256      // of a state without events
)

// held is a state as of a version of its stream.
type held struct {
	state   State
	version int64
	at      time.Time // not before any event that it was made of
	bytes   int64
	// timeRead reports whether the state has read the time of an event that was only just decided.
	timeRead bool
	// incarnation is that of the log when the first of its events was read.
	incarnation string
}

// states keeps the states of the streams that were decided about last, by their number and by their weight.
type states struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[string, *held]
	bytes int64
	max   int64
}

func newStates(number int, bytes int64) (*states, error) {
	s := &states{max: bytes}
	var err error
	s.lru, err = simplelru.NewLRU(number, func(_ string, h *held) { s.bytes -= h.bytes })
	return s, err
}

// take removes the state of a stream; nil: it is not kept. Nobody else has it then.
func (s *states) take(stream string) *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, _ := s.lru.Peek(stream)
	s.lru.Remove(stream)
	return h
}

func (s *states) put(stream string, h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(stream)
	s.bytes += h.bytes
	s.lru.Add(stream, h)
	for s.bytes > s.max && s.lru.Len() > 0 {
		s.lru.RemoveOldest()
	}
}

// keep puts a state back after what was decided on it, at one time, has been recorded with another.
func (d *decider) keep(stream string, h *held, decided, recorded time.Time) {
	if h.timeRead && !recorded.Equal(decided) {
		return // it has seen a time that the log has corrected since
	}
	h.timeRead = false
	if recorded.After(h.at) {
		h.at = recorded
	}
	h.state.Forget()
	d.states.put(stream, h)
}

// load returns the state of a stream with what the commands are about. A stream that was decided about lately costs no
// read, unless a command names a subject.
func (d *decider) load(stream string, run []*asked) (*held, error) {
	h, selection, complete, err := d.known(stream, run)
	if err != nil || complete {
		return h, err
	}
	loaded, err := d.log.Load(d.ctx, selection)
	if err != nil {
		return nil, err
	}
	return h, d.fold(h, loaded)
}

// known returns the state of a stream as far as it is kept, and what has to be loaded besides, unless it is complete.
func (d *decider) known(stream string, run []*asked) (h *held, missing eventlog.Selection, complete bool, err error) {
	missing = d.selection(stream, run)
	h = d.states.take(stream) // it is put back when what is decided now is committed
	incarnation := d.log.Incarnation()
	if h != nil && h.incarnation != incarnation {
		h = nil // the log may have lost events that it was made of
	}
	if h != nil && len(missing.Subjects) == 0 {
		return h, missing, true, nil
	}
	if h == nil {
		state, err := d.fresh(stream)
		if err != nil {
			return nil, missing, false, err
		}
		h = &held{state: state, bytes: stateBytes + int64(len(stream)), incarnation: incarnation}
	}
	missing.After = h.version
	return h, missing, false, nil
}

// selection is what deciding commands about a stream needs of it.
func (d *decider) selection(stream string, run []*asked) eventlog.Selection {
	s := eventlog.Selection{Stream: stream,
		Newest: d.catalog.ClassOf(catalog.KindOf(stream)) == routingv1.Class_CLASS_COUNTER}
	for _, a := range run {
		if subject := a.declared.Subject(a.message, a.origin()); subject != "" {
			s.Subjects = append(s.Subjects, subject)
		}
	}
	return s
}

func (d *decider) fresh(stream string) (State, error) {
	newState, ok := d.aggregates[catalog.KindOf(stream)]
	if !ok {
		return nil, bus.Permanent(fmt.Errorf("no aggregate decides about %s", stream))
	}
	return newState(stream), nil
}

func (d *decider) fold(h *held, loaded eventlog.Loaded) error {
	for _, e := range loaded.Events {
		m, err := d.catalog.Decode(e.Type, e.Body)
		if err != nil {
			return fmt.Errorf("fold %s at version %d: %w", e.Stream, e.Version, err)
		}
		h.state.Evolve(catalog.NewFact(e.Actor, e.Version, e.Time, nil), m)
		h.grow(e.Subject, len(e.Body))
		if e.Time.After(h.at) {
			h.at = e.Time
		}
	}
	h.version = loaded.Version
	if loaded.At.After(h.at) {
		h.at = loaded.At
	}
	return nil
}

// grow counts an event of the stream itself; what is about its subjects is forgotten after each run.
func (h *held) grow(subject string, body int) {
	if subject == "" {
		h.bytes += int64(body) + envelopeBytes
	}
}

// envelopeBytes is about what an entry of a map takes beside the body that it was made of.
const envelopeBytes = 64
