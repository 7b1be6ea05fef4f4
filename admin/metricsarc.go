package admin

import "github.com/prometheus/client_golang/prometheus"

// ARCMetrics are the figures of the Authenticated Received Chain. All methods are
// safe for use by many goroutines.
type ARCMetrics struct {
	Results *prometheus.CounterVec // by result: messages
	Seals   *prometheus.CounterVec // by outcome: messages
}

// NewARCMetrics makes the collectors and registers them with reg, which must not
// have them yet.
func NewARCMetrics(reg prometheus.Registerer) *ARCMetrics {
	m := &ARCMetrics{
		Results: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "crossfade", Name: "arc_results_total", Help: "Messages of strangers, by what their chain of ARC came to (none, pass, fail, temperror)."}, []string{"result"}),
		Seals:   prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "crossfade", Name: "arc_seals_total", Help: "Messages of strangers, by whether they were sealed: sealed, not (because of the message), failed (because of the key)."}, []string{"outcome"}),
	}
	reg.MustRegister(m.Results, m.Seals)
	for _, result := range []string{"none", "pass", "fail", "temperror"} {
		m.Results.WithLabelValues(result)
	}
	for _, outcome := range []string{"sealed", "not", "failed"} {
		m.Seals.WithLabelValues(outcome)
	}
	return m
}

// Judged counts a chain.
func (m *ARCMetrics) Judged(result string) { m.Results.WithLabelValues(result).Inc() }

// Sealed counts a message that could be sealed.
func (m *ARCMetrics) Sealed(outcome string) { m.Seals.WithLabelValues(outcome).Inc() }
