package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// AuthMetrics are the figures of checking senders. The daemon hands its methods
// to the checker and the resolver as hooks; all are safe for use by many
// goroutines.
type AuthMetrics struct {
	Results  *prometheus.CounterVec // by method and result: messages
	Applied  *prometheus.CounterVec // by what: DMARC policies that were followed, or prevented
	Wait     prometheus.Histogram   // seconds that the end of a message waited for its check
	Forged   prometheus.Counter     // Authentication-Results in our name that were taken out
	Lookups  *prometheus.CounterVec // by type and result: lookups, hits of the cache among them
	LookTime prometheus.Histogram   // seconds of a lookup that left the cache

	results, lookups map[[2]string]prometheus.Counter // of Results and Lookups: each message counts in a dozen of them
}

// NewAuthMetrics makes the collectors and registers them with reg, which must
// not have them yet. down tells how many resolvers are of no use.
func NewAuthMetrics(reg prometheus.Registerer, down func() float64) *AuthMetrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "crossfade", Name: name, Help: help}
	}
	times := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "crossfade", Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0002, 2, 16)})
	}
	m := &AuthMetrics{
		Results:  prometheus.NewCounterVec(opts("authentication_results_total", "Messages of strangers, by method (spf, dkim, dmarc) and result; for dkim the best of a message."), []string{"method", "result"}),
		Applied:  prometheus.NewCounterVec(opts("authentication_enforced_total", "Messages to which a DMARC policy was applied (reject, quarantine), or was not because somebody trusted vouches for them (vouched)."), []string{"what"}),
		Wait:     times("authentication_wait_seconds", "Time that the end of a message waited for its check."),
		Forged:   prometheus.NewCounter(opts("forged_results_total", "Authentication-Results fields in our name that were taken out of mail of strangers.")),
		Lookups:  prometheus.NewCounterVec(opts("resolver_lookups_total", "Lookups of the relay by type and result; hit came from the cache, shared from a lookup under way, the others from the resolvers."), []string{"type", "result"}),
		LookTime: times("resolver_lookup_seconds", "Time of lookups that left the cache."),
	}
	reg.MustRegister(m.Results, m.Applied, m.Wait, m.Forged, m.Lookups, m.LookTime,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "crossfade", Name: "resolvers_down", Help: "DNS resolvers of the relay that are of no use at present: they answer nothing, other things than were asked, or SERVFAIL to everything."}, down))
	m.results = counters(m.Results, []string{"spf", "dkim", "dmarc"}, []string{"pass", "fail", "temperror"})
	m.lookups = counters(m.Lookups, []string{"TXT", "MX", "A", "AAAA"}, []string{"hit"})
	for _, what := range []string{"reject", "quarantine", "vouched"} {
		m.Applied.WithLabelValues(what)
	}
	return m
}

// counters gives those of the usual labels, which are there from the start then,
// and cost no search among all.
func counters(vec *prometheus.CounterVec, first, second []string) map[[2]string]prometheus.Counter {
	m := map[[2]string]prometheus.Counter{}
	for _, a := range first {
		for _, b := range second {
			m[[2]string{a, b}] = vec.WithLabelValues(a, b)
		}
	}
	return m
}

func count(usual map[[2]string]prometheus.Counter, vec *prometheus.CounterVec, first, second string) {
	if c, ok := usual[[2]string{first, second}]; ok {
		c.Inc()
		return
	}
	vec.WithLabelValues(first, second).Inc()
}

// Result counts what a method came to.
func (m *AuthMetrics) Result(method, result string) { count(m.results, m.Results, method, result) }

// Enforced counts a policy that was applied or prevented.
func (m *AuthMetrics) Enforced(what string) { m.Applied.WithLabelValues(what).Inc() }

// Waited counts the time that a message waited for its check.
func (m *AuthMetrics) Waited(d time.Duration) { m.Wait.Observe(d.Seconds()) }

// Took counts forged fields.
func (m *AuthMetrics) Took(fields int) { m.Forged.Add(float64(fields)) }

// Looked counts a lookup; took is 0 for one that did not leave the cache.
func (m *AuthMetrics) Looked(typ, result string, took time.Duration) {
	count(m.lookups, m.Lookups, typ, result)
	if took > 0 {
		m.LookTime.Observe(took.Seconds())
	}
}
