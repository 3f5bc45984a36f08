// Package health reports whether a process is alive, whether it accepts work, and which of its stores are available.
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
	checkInterval        = time.Second
	startupCheckInterval = 50 * time.Millisecond // until the process has been healthy once
	checkTimeout         = 1500 * time.Millisecond
	// logAfter is how long a dependency fails before the failure is logged. It is not 0, because not all dependencies
	// are available at the start of a process.
	logAfter = time.Second
	// maxResultAge is the age above which a result counts as a failure. So the reported health is at most this old,
	// even while a check hangs.
	maxResultAge = 2 * time.Second
)

// keys are the keys of "services" in /health, in the order that existing installations expect.
var keys = []string{"redis", "kafka", "postgres", "socketio"}

// Check is the check of a dependency. The field Name is one of the keys of /health: redis, kafka, postgres or socketio.
// The function in the field Check returns an error if the dependency does not work.
type Check struct {
	Name  string
	Check func(context.Context) error
}

// Health holds the results of the checks. It is safe for concurrent use.
type Health struct {
	checks   []Check
	log      *slog.Logger
	registry *prometheus.Registry
	up       *prometheus.GaugeVec

	mu      sync.Mutex
	results []checkResult // newest result of each check, in the order of the field checks
	waiting map[string]error
	ready   bool
	began   chan struct{} // see Began
}

type checkResult struct {
	err    error
	at     time.Time
	failed time.Time // when the check began to fail
	logged bool      // the failure was logged
}

// New returns the health of a process. /health reports a dependency as false while its check fails or has no recent
// result (see maxResultAge), and while work waits for the dependency (see Waiting). At all other times, /health reports
// the dependency as true. A dependency that the process does not use has no check.
func New(checks []Check, log *slog.Logger) *Health {
	h := &Health{checks: checks, log: log, registry: prometheus.NewRegistry(), results: make([]checkResult, len(checks)),
		waiting: map[string]error{}, began: make(chan struct{}), up: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "edumatrix_up",
			Help: "Whether a dependency works, as seen by this process."}, []string{"dependency"})}
	h.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), h.up)
	if len(checks) == 0 {
		close(h.began)
	}
	return h
}

// Began returns a channel that is closed when all checks have succeeded at the same time for the first time. Until then
// /readyz reports that the process accepts no work.
func (h *Health) Began() <-chan struct{} { return h.began }

// Registry returns the registry of the process's metrics.
func (h *Health) Registry() *prometheus.Registry { return h.registry }

// SetReady sets whether the process accepts work.
func (h *Health) SetReady(ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = ready
}

// Waiting records that work waits for an unavailable dependency. A nil error records that the work continues.
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
		h.log.Info("work continues", "dependency", dependency)
	}
}

// Run runs every check once a second until ctx ends. Until all checks have succeeded at the same time for the first
// time, Run runs them every 50 ms.
func (h *Health) Run(ctx context.Context) error {
	var checking sync.WaitGroup
	for i := range h.checks {
		checking.Go(func() {
			ticker := time.NewTicker(startupCheckInterval)
			defer ticker.Stop()
			began := h.began
			for {
				h.runCheck(ctx, i)
				select {
				case <-ctx.Done():
					return
				case <-began:
					began = nil
					ticker.Reset(checkInterval)
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
	checking.Wait()
	return nil
}

func (h *Health) runCheck(ctx context.Context, i int) {
	c := h.checks[i]
	bounded, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := c.Check(bounded)
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	before := h.results[i]
	now := checkResult{err: err, at: time.Now()}
	if err != nil {
		if now.failed = before.failed; before.err == nil {
			now.failed = now.at
		}
		now.logged = before.logged || now.at.Sub(now.failed) >= logAfter
	}
	h.results[i] = now
	h.begin()
	h.mu.Unlock()
	if err == nil {
		h.up.WithLabelValues(c.Name).Set(1)
	} else {
		h.up.WithLabelValues(c.Name).Set(0)
	}
	switch {
	case now.logged && !before.logged:
		h.log.Warn("dependency unavailable", "dependency", c.Name, "error", err)
	case before.logged && err == nil:
		h.log.Info("dependency available again", "dependency", c.Name)
	}
}

// begin closes the channel began if all checks succeed. The caller holds h.mu.
func (h *Health) begin() {
	select {
	case <-h.began:
		return
	default:
	}
	for _, a := range h.results {
		if a.err != nil || a.at.IsZero() {
			return
		}
	}
	close(h.began)
}

// services returns the state of each key, and reports whether all states are true.
func (h *Health) services() (all map[string]bool, healthy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, healthy = map[string]bool{}, true
	for _, key := range keys {
		all[key] = h.waiting[key] == nil
	}
	for i, a := range h.results {
		if a.err != nil || time.Since(a.at) > maxResultAge {
			all[h.checks[i].Name] = false
		}
	}
	// The key socketio stands for the delivery of events to clients. While a consumer waits for another service,
	// clients get events late, so the key is false.
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

// Handler returns the handler of /health, /livez, /readyz and /metrics.
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
	// The JSON is written by hand because scripts of existing installations compare the text.
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
