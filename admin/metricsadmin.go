package admin

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// APIMetrics are the figures of the API itself.
type APIMetrics struct {
	// Refused counts requests by reason: token (a wrong one), expired, locked-out,
	// role, host, web-page, streams, connections.
	Refused *prometheus.CounterVec
	// Sequence is the number of the last line of the audit log.
	Sequence prometheus.Gauge
}

// NewAPIMetrics makes the collectors and registers them with reg.
func NewAPIMetrics(reg prometheus.Registerer) (*APIMetrics, error) {
	m := &APIMetrics{
		Refused: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "crossfade", Name: "admin_refused_total",
			Help: "Requests and connections of the admin API that were refused, by reason."}, []string{"reason"}),
		Sequence: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "crossfade", Name: "audit_log_sequence",
			Help: "Number of the last line of the audit log of this process: it never gets smaller."}),
	}
	for _, c := range []prometheus.Collector{m.Refused, m.Sequence} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("metrics of the admin API: %w", err)
		}
	}
	for _, reason := range []string{"token", "expired", "locked-out", "role", "host", "web-page", "streams", "connections"} {
		m.Refused.WithLabelValues(reason)
	}
	return m, nil
}

// Refuse counts a request that was refused.
func (m *APIMetrics) Refuse(reason string) { m.Refused.WithLabelValues(reason).Inc() }
