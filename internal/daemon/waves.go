package daemon

import (
	"crossfade/cutover"

	"github.com/prometheus/client_golang/prometheus"
)

// paceCollector tells how fast this node copies just now, and which waves stand
// still by themselves.
type paceCollector struct {
	conductor                *cutover.Conductor
	messages, bytes, stopped *prometheus.Desc
}

func newPaceCollector(c *cutover.Conductor) *paceCollector {
	return &paceCollector{
		conductor: c,
		messages:  prometheus.NewDesc("crossfade_backfill_messages_per_second", "Messages that passes under way on this node carry, by the last ten seconds.", nil, nil),
		bytes:     prometheus.NewDesc("crossfade_backfill_bytes_per_second", "Octets that passes under way on this node carry, by the last ten seconds.", nil, nil),
		stopped:   prometheus.NewDesc("crossfade_cutover_waves_stopped", "Waves that stopped by themselves, and wait for an operator.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (p *paceCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{p.messages, p.bytes, p.stopped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *paceCollector) Collect(ch chan<- prometheus.Metric) {
	messages, octets := p.conductor.Rates()
	stopped := 0
	for _, x := range p.conductor.Pauses() {
		if x.By == cutover.Itself {
			stopped++
		}
	}
	ch <- prometheus.MustNewConstMetric(p.messages, prometheus.GaugeValue, messages)
	ch <- prometheus.MustNewConstMetric(p.bytes, prometheus.GaugeValue, octets)
	ch <- prometheus.MustNewConstMetric(p.stopped, prometheus.GaugeValue, float64(stopped))
}
