package daemon

import (
	"context"
	"log/slog"
	"math"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/dnswatch"

	"github.com/prometheus/client_golang/prometheus"
)

// dnsChecker makes what looks at the records of a configuration's domains.
func dnsChecker(cfg *config.Config, log *slog.Logger) (*dnswatch.Checker, error) {
	d := cfg.DNS
	domains := d.Domains
	if len(domains) == 0 {
		domains = cfg.Domains
	}
	return dnswatch.NewChecker(dnswatch.Config{
		Site: dnswatch.Site{
			Domains: domains, Hostname: cfg.Hostname, RelayMX: d.RelayMX, RelayAddrs: d.RelayAddresses, OldMX: d.OldMX, NewMX: d.NewMX,
			SPFRelay: d.SPFRelay, SPFNew: d.SPFNew, SPFOld: d.SPFOld, DKIMOld: d.DKIMOld, DKIMNew: d.DKIMNew, TTL: time.Duration(d.TTL),
		},
		Resolvers: d.Resolvers, Nameservers: d.Nameservers, Log: log,
	})
}

// CheckDNS looks at the records of a configuration's domains for a phase; an
// empty one is guessed. past is what a relay's watch has seen, nil when it is
// not known.
func CheckDNS(ctx context.Context, cfg *config.Config, phase dnswatch.Phase, past *dnswatch.State) (dnswatch.Report, error) {
	c, err := dnsChecker(cfg, nil)
	if err != nil {
		return dnswatch.Report{}, err
	}
	return c.Check(ctx, phase, past)
}

// openDNS makes the watch, where the configuration wants one.
func (d *Daemon) openDNS() error {
	if !d.cfg.DNS.Watch {
		return nil
	}
	c, err := dnsChecker(d.cfg, d.log)
	if err != nil {
		return err
	}
	d.strays = newStrayBook(d)
	d.dns = dnswatch.NewWatch(dnswatch.WatchConfig{Checker: c, Store: dnsStore{d}, Stragglers: d.strays, Interval: time.Duration(d.cfg.DNS.Interval)})
	return nil
}

// dnsMayClose is nil when the DNS says nothing against closing the windows of
// users: nobody can know the old records any more, or nobody watches them.
func (d *Daemon) dnsMayClose(ctx context.Context) error {
	if d.dns == nil {
		return nil
	}
	return d.dns.MayClose(ctx)
}

// dnsStore keeps the state of the watch among the records of the ledger, under
// a user who is none.
type dnsStore struct{ d *Daemon }

const (
	dnsRecords = "dnswatch"
	dnsRecord  = "state"
)

// LoadDNS implements dnswatch.Store.
func (s dnsStore) LoadDNS(ctx context.Context) ([]byte, error) {
	records, err := s.d.store.LoadLedger(ctx, dnsRecords)
	return records[dnsRecord], err
}

// SaveDNS implements dnswatch.Store.
func (s dnsStore) SaveDNS(ctx context.Context, state []byte) error {
	return s.d.store.SaveLedger(ctx, dnsRecords, dnsRecord, state)
}

// dnsAPI is what operators see of the watch.
func (d *Daemon) dnsAPI() admin.DNSAPI {
	if d.dns == nil {
		return nil
	}
	return d.dns
}

// dnsCollector shows the watch to Prometheus. Without a watch it shows nothing.
type dnsCollector struct {
	watch                                   *dnswatch.Watch
	round, may, until, findings, stragglers *prometheus.Desc
	servers                                 *prometheus.Desc
}

func newDNSCollector(w *dnswatch.Watch) *dnsCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("crossfade_dns_"+name, help, labels, nil)
	}
	return &dnsCollector{
		watch:      w,
		round:      desc("last_answer_timestamp_seconds", "When a name server answered the watch last; 0: never."),
		may:        desc("window_may_close", "1 when nobody can know the old records any more, 0 otherwise."),
		until:      desc("old_until_timestamp_seconds", "When the old records of a domain are known to nobody any more, by what has to run out: dns, mta-sts, queues; +Inf while they are given out.", "domain", "what"),
		findings:   desc("findings", "Findings of the last whole check, by severity.", "severity"),
		stragglers: desc("stragglers_today", "Messages that came to the old side today (UTC), as far as they are counted."),
		servers:    desc("servers", "Name servers asked by the last look, by kind and whether they answered.", "kind", "state"),
	}
}

// Describe implements prometheus.Collector.
func (c *dnsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.round, c.may, c.until, c.findings, c.stragglers, c.servers} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *dnsCollector) Collect(ch chan<- prometheus.Metric) {
	if c.watch == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	st, err := c.watch.Status(ctx)
	gauge(c.may, oneIf(st.MayClose))
	if st.State != nil {
		gauge(c.round, seconds(st.State.LastAnswer, 0))
	}
	for _, l := range st.Lines {
		gauge(c.until, seconds(l.Until, math.Inf(1)), l.Domain, l.What)
	}
	if st.Report != nil {
		for _, s := range []dnswatch.Severity{dnswatch.OK, dnswatch.Note, dnswatch.Warn, dnswatch.Stop} {
			gauge(c.findings, float64(st.Report.Count(s)), string(s))
		}
	}
	c.collectServers(st, gauge)
	if err == nil && st.Stragglers != nil {
		gauge(c.stragglers, float64(today(st.Stragglers)))
	}
}

func (c *dnsCollector) collectServers(st dnswatch.Status, gauge func(*prometheus.Desc, float64, ...string)) {
	counts := map[[2]string]int{}
	for _, s := range st.Servers {
		kind, state := "resolver", "answering"
		if s.Authoritative {
			kind = "authoritative"
		}
		if s.Answered == 0 {
			state = "silent"
		}
		counts[[2]string{kind, state}]++
	}
	for _, kind := range []string{"resolver", "authoritative"} {
		for _, state := range []string{"answering", "silent"} {
			gauge(c.servers, float64(counts[[2]string{kind, state}]), kind, state)
		}
	}
}

func today(counts []dnswatch.StragglerCount) (n int) {
	day := time.Now().UTC().Format(time.DateOnly)
	for _, s := range counts {
		if s.Day == day {
			n += s.Messages
		}
	}
	return n
}

func seconds(t time.Time, none float64) float64 {
	if t.IsZero() {
		return none
	}
	return float64(t.Unix())
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
