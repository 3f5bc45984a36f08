// Package guard limits the effect of a panic to the connection, the request or the round of work in which it happened.
package guard

import (
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Guard logs and counts panics. A nil Guard only recovers from them.
type Guard struct {
	log    *slog.Logger
	panics *prometheus.CounterVec
}

// New returns a Guard. If r is nil, the counter of panics is not registered.
func New(log *slog.Logger, r prometheus.Registerer) *Guard {
	g := &Guard{log: log, panics: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gateway_panics_total", Help: "Panics that were recovered from, by the place they happened in."},
		[]string{"place"})}
	if r != nil {
		r.MustRegister(g.panics)
	}
	return g
}

// Recover must be deferred at the top of a goroutine, a timer or a handler: defer g.Recover("reader", end). After a
// panic, Recover logs the stack and counts the panic under the given place. Finally, Recover calls the function in the
// second parameter, unless it is nil.
func (g *Guard) Recover(place string, then func()) {
	p := recover()
	if p == nil {
		return
	}
	if g != nil {
		g.panics.WithLabelValues(place).Inc()
		g.log.Error("gateway: recovered from a panic", "place", place, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
	if then != nil {
		then()
	}
}
