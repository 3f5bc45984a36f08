package signal

import "github.com/prometheus/client_golang/prometheus"

// Metrics count the signals that connections of this gateway have sent, the deliveries of signals to such connections,
// and the batches of signals that were not published, or only in part.
type Metrics struct {
	Sent      prometheus.Counter
	Delivered prometheus.Counter
	Lost      prometheus.Counter
}

// NewMetrics returns the metrics, and registers them unless the registry is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		Sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_signals_total", Help: "Signals that connections of this gateway have sent."}),
		Delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_signal_deliveries_total", Help: "Signals queued for a connection."}),
		Lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_signal_publish_failures_total", Help: "Batches of signals that could not be published to Redis."}),
	}
	if r != nil {
		r.MustRegister(m.Sent, m.Delivered, m.Lost)
	}
	return m
}
