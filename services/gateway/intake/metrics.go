package intake

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Metrics count the waiting commands and the outcomes.
type Metrics struct {
	Waiting  prometheus.Gauge
	Outcomes *prometheus.CounterVec
}

// NewMetrics returns the metrics, and registers them unless the registry is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		Waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gateway_commands_waiting", Help: "Commands without an outcome."}),
		Outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gateway_outcomes_total", Help: "Outcomes that were passed to waiting clients."}, []string{"owner", "outcome"}),
	}
	if r != nil {
		r.MustRegister(m.Waiting, m.Outcomes)
	}
	return m
}

func (m *Metrics) outcome(r envelope.Outcome) {
	m.Outcomes.WithLabelValues(r.Source, string(r.Kind)).Inc()
}
