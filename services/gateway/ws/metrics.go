package ws

import "github.com/prometheus/client_golang/prometheus"

// Metrics of connections. Frames counts the messages that clients have sent after their first one, except messages that
// are too large or of the wrong kind (text or binary). Closed counts, by reason, the ended connections whose connect
// was accepted.
type Metrics struct {
	Frames prometheus.Counter
	Closed *prometheus.CounterVec
}

// NewMetrics returns the metrics, and registers them unless the registry is nil.
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
