package rooms

import "github.com/prometheus/client_golang/prometheus"

// Metrics count the calls of Rooms and Resume to owners, and the connections that resumed.
type Metrics struct {
	Calls   *prometheus.CounterVec // by owner and call
	Resumed *prometheus.CounterVec // connections, by owner and source of their missed events
}

// NewMetrics returns the metrics, and registers them unless the registry is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		Calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gateway_room_calls_total",
			Help: "Calls that ask an owner for the rooms of many users, or for their missed events."}, []string{"owner", "call"}),
		Resumed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gateway_resumed_total",
			Help: "Connections that resumed, by the source of their missed events: recent (the event buffer) or log."},
			[]string{"owner", "from"}),
	}
	if r != nil {
		r.MustRegister(m.Calls, m.Resumed)
	}
	return m
}
