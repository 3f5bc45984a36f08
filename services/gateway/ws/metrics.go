package ws

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what clients send and why connections end.
type Metrics struct {
	Frames prometheus.Counter
	Closed *prometheus.CounterVec
}

// NewMetrics makes the metrics, and registers them unless the registry is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		Frames: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_frames_total", Help: "Frames that clients sent."}),
		Closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gateway_closed_total", Help: "Connections that ended, by reason."}, []string{"reason"}),
	}
	if r != nil {
		r.MustRegister(m.Frames, m.Closed)
	}
	return m
}
