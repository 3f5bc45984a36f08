package fanout

import "github.com/prometheus/client_golang/prometheus"

// Metrics count repeated records, gaps and unreadable records, and measure for each partition the position of the
// fan-out and the age that the last record had when it was taken.
type Metrics struct {
	Repeats    prometheus.Counter
	Gaps       prometheus.Counter
	Unreadable prometheus.Counter
	Position   *prometheus.GaugeVec
	Behind     *prometheus.GaugeVec
}

// NewMetrics returns the metrics, and registers them unless the registry is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	place := []string{"topic", "partition"}
	m := &Metrics{
		Repeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_repeats_total", Help: "Records that were read before and dropped."}),
		Gaps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_gaps_total", Help: "Gaps in partitions that were filled from an owner's log."}),
		Unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gateway_unreadable_total", Help: "Records or bodies that cannot be decoded."}),
		Position: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gateway_partition_position", Help: "Position up to which a partition is complete."}, place),
		Behind: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gateway_partition_behind_seconds", Help: "Age of a partition's last record when it was taken."}, place),
	}
	if r != nil {
		r.MustRegister(m.Repeats, m.Gaps, m.Unreadable, m.Position, m.Behind)
	}
	return m
}
