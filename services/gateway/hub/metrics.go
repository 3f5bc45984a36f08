package hub

import (
	"github.com/prometheus/client_golang/prometheus"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// Metrics count what the hub does.
type Metrics struct {
	Connections prometheus.Gauge
	Deliveries  prometheus.Counter // events put into the queue of a connection
	Dropped     prometheus.Counter // frames that were true only for a moment, spared under load
	Slow        prometheus.Counter // connections closed because they did not keep up
}

// NewMetrics registers them; without a registry they count for themselves.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		Connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gateway_connections", Help: "Connections that are open."}),
		Deliveries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_deliveries_total", Help: "Events queued for a connection."}),
		Dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_dropped_total", Help: "Ephemeral frames dropped because a queue was full."}),
		Slow: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_slow_total", Help: "Connections closed because they did not keep up."}),
	}
	if r != nil {
		r.MustRegister(m.Connections, m.Deliveries, m.Dropped, m.Slow)
	}
	return m
}

// mergeable says that of such a stream the newest value stands for all before it.
func mergeable(c routingv1.Class) bool {
	return c == routingv1.Class_CLASS_EPHEMERAL || c == routingv1.Class_CLASS_COUNTER
}
