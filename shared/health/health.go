// Package health says how a process is: whether it lives, whether it takes work, and which of the stores it reaches.
package health

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	askEvery = time.Second
	askFirst = 50 * time.Millisecond // until the process has been healthy once
	askFor   = 1500 * time.Millisecond
	// The log tells of a dependency that has failed for so long: at the start of a process not all are there at once.
	tellAfter = time.Second
	// An answer older than this does not count, so that the reported health is at most so old, also while a check
	// hangs.
	oldest = 2 * time.Second
)

// keys of /health, in the order in which existing installations have them.
var keys = []string{"redis", "kafka", "postgres", "socketio"}

// Check asks one of redis, kafka, postgres and socketio whether it does its work.
type Check struct {
	Name  string
	Check func(context.Context) error
}

// Health keeps the answers. It is safe for concurrent use.
type Health struct {
	checks   []Check
	log      *slog.Logger
	registry *prometheus.Registry
	up       *prometheus.GaugeVec

	mu      sync.Mutex
	answers []answer // by check
	waiting map[string]error
	ready   bool
	began   chan struct{} // closed when all checks held for the first time
}

type answer struct {
	err    error
	at     time.Time
	failed time.Time // since when they are errors
	told   bool      // the log tells of it
}

// New makes the health of a process. A dependency without a check is one that the process does not need: it is true.
func New(checks []Check, log *slog.Logger) *Health {
	h := &Health{checks: checks, log: log, registry: prometheus.NewRegistry(), answers: make([]answer, len(checks)),
		waiting: map[string]error{}, began: make(chan struct{}), up: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "edumatrix_up",
			Help: "Whether a dependency does its work, as this process sees it."}, []string{"dependency"})}
	h.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), h.up)
	if len(checks) == 0 {
		close(h.began)
	}
	return h
}

// Began is closed when the process has been healthy once. Until then /readyz says that it takes no work.
func (h *Health) Began() <-chan struct{} { return h.began }

// Registry takes the process's own metrics.
func (h *Health) Registry() *prometheus.Registry { return h.registry }

// SetReady sets whether the process accepts work.
func (h *Health) SetReady(ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = ready
}

// Waiting says that work waits for a dependency which is away, and with nil that it goes on.
func (h *Health) Waiting(dependency string, err error) {
	h.mu.Lock()
	before := h.waiting[dependency]
	if err == nil {
		delete(h.waiting, dependency)
	} else {
		h.waiting[dependency] = err
	}
	h.mu.Unlock()
	switch {
	case before == nil && err != nil:
		h.log.Warn("work waits for a dependency", "dependency", dependency, "error", err)
	case before != nil && err == nil:
		h.log.Info("work goes on", "dependency", dependency)
	}
}

// Run asks every check each second, until ctx ends; more often until all held once.
func (h *Health) Run(ctx context.Context) error {
	var asking sync.WaitGroup
	for i := range h.checks {
		asking.Go(func() {
			ticker := time.NewTicker(askFirst)
			defer ticker.Stop()
			began := h.began
			for {
				h.ask(ctx, i)
				select {
				case <-ctx.Done():
					return
				case <-began:
					began = nil
					ticker.Reset(askEvery)
					select {
					case <-ctx.Done():
						return
					case <-ticker.C:
					}
				case <-ticker.C:
				}
			}
		})
	}
	asking.Wait()
	return nil
}

func (h *Health) ask(ctx context.Context, i int) {
	c := h.checks[i]
	asked, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	err := c.Check(asked)
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	before := h.answers[i]
	now := answer{err: err, at: time.Now()}
	if err != nil {
		if now.failed = before.failed; before.err == nil {
			now.failed = now.at
		}
		now.told = before.told || now.at.Sub(now.failed) >= tellAfter
	}
	h.answers[i] = now
	h.begin()
	h.mu.Unlock()
	if err == nil {
		h.up.WithLabelValues(c.Name).Set(1)
	} else {
		h.up.WithLabelValues(c.Name).Set(0)
	}
	switch {
	case now.told && !before.told:
		h.log.Warn("a dependency is away", "dependency", c.Name, "error", err)
	case before.told && err == nil:
		h.log.Info("a dependency is back", "dependency", c.Name)
	}
}

// begin notes that all checks hold. It is called with the lock held.
func (h *Health) begin() {
	select {
	case <-h.began:
		return
	default:
	}
	for _, a := range h.answers {
		if a.err != nil || a.at.IsZero() {
			return
		}
	}
	close(h.began)
}

// services says what is true now, by key.
func (h *Health) services() (all map[string]bool, healthy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, healthy = map[string]bool{}, true
	for _, key := range keys {
		all[key] = h.waiting[key] == nil
	}
	for i, a := range h.answers {
		if a.err != nil || time.Since(a.at) > oldest {
			all[h.checks[i].Name] = false
		}
	}
	// A consumer that waits for another service holds up what clients see.
	for dependency := range h.waiting {
		if !slices.Contains(keys, dependency) {
			all["socketio"] = false
		}
	}
	for _, ok := range all {
		healthy = healthy && ok
	}
	return all, healthy
}

// Handler answers /health, /livez, /readyz and /metrics.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", h.serveHealth)
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("alive\n")) })
	mux.HandleFunc("/readyz", h.serveReady)
	mux.Handle("/metrics", promhttp.HandlerFor(h.registry, promhttp.HandlerOpts{}))
	return mux
}

func (h *Health) serveHealth(w http.ResponseWriter, _ *http.Request) {
	all, healthy := h.services()
	status, word := http.StatusOK, "healthy"
	if !healthy {
		status, word = http.StatusServiceUnavailable, "unhealthy"
	}
	// Written by hand: scripts of existing installations compare the text.
	body := `{"status":"` + word + `","services":{`
	for i, key := range keys {
		if i > 0 {
			body += ","
		}
		body += `"` + key + `":`
		if all[key] {
			body += "true"
		} else {
			body += "false"
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body + "}}"))
}

func (h *Health) serveReady(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	ready := h.ready
	select {
	case <-h.began:
	default:
		ready = false
	}
	h.mu.Unlock()
	if !ready {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n"))
}
