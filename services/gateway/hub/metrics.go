package hub

import "github.com/prometheus/client_golang/prometheus"

// Metrics count connections, delivered events and dropped frames.
type Metrics struct {
	Connections prometheus.Gauge
	Deliveries  prometheus.Counter // events put into the queue of a connection by Deliver, and missed events
	Dropped     prometheus.Counter // state, signals and heartbeats that were dropped because a queue was full
	Slow        prometheus.Counter // connections closed because they did not keep up
}

// NewMetrics returns the metrics, and registers them unless the registry is nil.
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
