package owner

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	maxStates     = 200_000  // maximum number of streams whose state is cached
	maxStateBytes = 64 << 20 // maximum bytes of the events in the cached states, an estimate of the states' memory
	stateBytes    = 256      // bytes that count for a state without events
)

// loadedState is a state as of a version of its stream.
type loadedState struct {
	state   State
	version catalog.Version
	at      time.Time // the time of the newest event, or later
	bytes   int64
	// timeRead reports whether the state has read the time of an event that is decided and not recorded yet.
	timeRead bool
	// incarnation is the incarnation of the log when the state was created, before its first event was read.
	incarnation string
}

// states caches the states of the streams that most recently had a command. The number of states and the bytes of their
// events are bounded.
type states struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[string, *loadedState]
	bytes int64
	max   int64
}

func newStates(number int, bytes int64) (*states, error) {
	s := &states{max: bytes}
	var err error
	s.lru, err = simplelru.NewLRU(number, func(_ string, h *loadedState) { s.bytes -= h.bytes })
	return s, err
}

// take removes and returns the state of a stream; nil if it is not cached. The caller is then the only user of the
// state.
func (s *states) take(stream string) *loadedState {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, _ := s.lru.Peek(stream)
	s.lru.Remove(stream)
	return h
}

func (s *states) put(stream string, h *loadedState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(stream)
	s.bytes += h.bytes
	s.lru.Add(stream, h)
	for s.bytes > s.max && s.lru.Len() > 0 {
		s.lru.RemoveOldest()
	}
}

// keep puts a state back into the cache after a batch, unless the state may contain a time that is not in the log. The
// parameter decided is the time at which the state's newest events were decided. The parameter recorded is the time
// that the log gave these events.
func (d *decider) keep(stream string, h *loadedState, decided, recorded time.Time) {
	if h.timeRead && !recorded.Equal(decided) {
		return // the state may contain the time of the decision, which the log has replaced with a later time
	}
	h.timeRead = false
	if recorded.After(h.at) {
		h.at = recorded
	}
	h.state.Forget()
	d.states.put(stream, h)
}

// load returns the state of a stream, including the events about the subjects of the commands. If a state of the log's
// current incarnation is cached and no command names a subject, load does not read the log.
func (d *decider) load(stream string, batch []*pendingCommand) (*loadedState, error) {
	h, selection, complete, err := d.known(stream, batch)
	if err != nil || complete {
		return h, err
	}
	loaded, err := d.log.Load(d.ctx, selection)
	if err != nil {
		return nil, err
	}
	return h, d.fold(h, loaded)
}

// known returns the cached state of a stream, or a state without events if no state of the current incarnation is
// cached. The result complete reports whether the state can be used at once. If not, the result missing is the
// selection that has to be loaded.
func (d *decider) known(stream string, batch []*pendingCommand) (h *loadedState, missing eventlog.Selection, complete bool, err error) {
	missing = d.selection(stream, batch)
	h = d.states.take(stream) // put back once the decision is committed
	incarnation := d.log.Incarnation()
	if h != nil && h.incarnation != incarnation {
		h = nil // the log may have lost some of the state's events
	}
	if h != nil && len(missing.Subjects) == 0 {
		return h, missing, true, nil
	}
	if h == nil {
		state, err := d.fresh(stream)
		if err != nil {
			return nil, missing, false, err
		}
		h = &loadedState{state: state, bytes: stateBytes + int64(len(stream)), incarnation: incarnation}
	}
	missing.After = h.version
	return h, missing, false, nil
}

// selection selects the events of a stream that are needed to decide the commands, from the first version on.
func (d *decider) selection(stream string, batch []*pendingCommand) eventlog.Selection {
	s := eventlog.Selection{Stream: stream,
		Newest: d.catalog.ClassOf(catalog.KindOf(stream)) == routingv1.Class_CLASS_COUNTER}
	for _, pc := range batch {
		if subject := pc.declared.Subject(pc.message, pc.origin()); subject != "" {
			s.Subjects = append(s.Subjects, subject)
		}
	}
	return s
}

func (d *decider) fresh(stream string) (State, error) {
	newState, ok := d.aggregates[catalog.KindOf(stream)]
	if !ok {
		return nil, retry.Permanent(fmt.Errorf("there is no aggregate for %s", stream))
	}
	return newState(stream), nil
}

func (d *decider) fold(h *loadedState, loaded eventlog.Loaded) error {
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

// grow adds the size of an event; the parameter body is the size of the event's body. Events about a subject do not
// count, because the state forgets subjects after each batch.
func (h *loadedState) grow(subject string, body int) {
	if subject == "" {
		h.bytes += int64(body) + envelopeBytes
	}
}

// envelopeBytes is an estimate of the memory that a state needs for an event beyond the event's body, such as a map
// entry.
const envelopeBytes = 64
