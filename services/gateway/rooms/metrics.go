package rooms

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what coming and coming back costs the owners.
type Metrics struct {
	Calls   *prometheus.CounterVec // by owner and call
	Resumed *prometheus.CounterVec // connections, by owner and where their events came from
}

// NewMetrics registers them; without a registry they count for themselves.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		Calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gateway_room_calls_total",
			Help: "Calls that ask an owner for the rooms of many users, or for what they missed."}, []string{"owner", "call"}),
		Resumed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gateway_resumed_total",
			Help: "Connections that came back, by where what they missed came from: recent or log."}, []string{"owner", "from"}),
	}
	if r != nil {
		r.MustRegister(m.Calls, m.Resumed)
	}
	return m
}
