package admin

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Metrics are the figures that parts of the relay count. The daemon hands
// their methods to relay, backfill and cutover as hooks. All methods are safe
// for use by many goroutines.
type Metrics struct {
	Connections   prometheus.Counter     // SMTP connections taken
	Open          prometheus.Gauge       // SMTP connections open now
	Turned        *prometheus.CounterVec // by reason: connections closed by a limit
	Logins        *prometheus.CounterVec // by result: AUTH of clients
	LimitedTotal  *prometheus.CounterVec // by limit: commands and messages refused or slowed by a limit for one client
	Filter        *prometheus.CounterVec // by result: messages that the content filter looked at
	FilterTime    prometheus.Histogram
	Lists         *prometheus.CounterVec // by zone and result: questions to DNS lists
	VerdictFields prometheus.Counter     // taken out of mail of strangers
	AcceptedMsgs  prometheus.Counter     // messages answered with 250
	AcceptedRcpts prometheus.Counter     // recipients of them
	AcceptedBytes prometheus.Counter     // octets of them
	AcceptTime    prometheus.Histogram   // seconds from the final dot to 250
	RefusedTotal  *prometheus.CounterVec // by command and code: commands of peers answered 4xx or 5xx

	Recipients  *prometheus.CounterVec   // by route and result: outcomes of deliveries
	DeliverTime *prometheus.HistogramVec // by route: seconds of one delivery attempt
	Doubts      *prometheus.CounterVec   // by route and result: doubts about deliveries that ended
	Bounces     prometheus.Counter       // bounces queued
	Notices     prometheus.Counter       // delay notices queued

	Copied      prometheus.Counter     // messages the backfill appended
	CopiedBytes prometheus.Counter     // octets of them
	Passes      *prometheus.CounterVec // by result: passes of the backfill that ended
	Problems    *prometheus.CounterVec // by class: problems of messages and folders, when they are first met
	Throttled   prometheus.Counter     // seconds that passes waited because a server wanted it
	Mailboxes   *prometheus.GaugeVec   // by side: IMAP connections open now
	TailLag     prometheus.Histogram   // seconds from a change to the end of the pass that carried it
	Moves       *prometheus.CounterVec // by result: moves of users that ended
	HoldTime    prometheus.Histogram   // seconds that a user's mail was held
	Stops       prometheus.Counter     // waves that stopped by themselves
	Strays      *prometheus.CounterVec // by side: messages found where their user does not read

	Lookups *prometheus.CounterVec // by what and answer: questions of other programs

	Handshakes *prometheus.CounterVec // by result: TLS handshakes of SMTP clients
	Renewals   *prometheus.CounterVec // by result: attempts to get a certificate by ACME
	ServerTLS  *prometheus.CounterVec // by server, policy and result: connections for deliveries
	TLSReports *prometheus.CounterVec // by result: reports to the owners of domains
}

// NewMetrics makes the collectors and registers them with reg.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "crossfade", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "crossfade", Name: name, Help: help, Buckets: buckets}
	}
	m := &Metrics{
		Connections:   prometheus.NewCounter(opts("smtp_connections_total", "SMTP connections taken.")),
		Open:          prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "crossfade", Name: "smtp_connections_open", Help: "SMTP connections open now."}),
		Turned:        prometheus.NewCounterVec(opts("smtp_connections_turned_away_total", "SMTP connections closed by a limit, by reason."), []string{"reason"}),
		Logins:        prometheus.NewCounterVec(opts("smtp_logins_total", "Logins of SMTP clients, by result: granted, refused, or later for those that were not looked at."), []string{"result"}),
		LimitedTotal:  prometheus.NewCounterVec(opts("smtp_limited_total", "Commands and messages that a limit for one client, sender or recipient refused or slowed, by limit."), []string{"limit"}),
		Filter:        prometheus.NewCounterVec(opts("filter_messages_total", "Messages for the content filter, by result: passed, refused, put_off, too_large (not looked at) or failed (it could not be asked)."), []string{"result"}),
		FilterTime:    prometheus.NewHistogram(histogram("filter_seconds", "Time that a message waited for the content filter.", prometheus.ExponentialBuckets(0.001, 2, 16))),
		Lists:         prometheus.NewCounterVec(opts("dnsbl_lookups_total", "Answers of DNS lists about clients, by zone and result: listed, clear or error."), []string{"zone", "result"}),
		VerdictFields: prometheus.NewCounter(opts("filter_fields_removed_total", "Header fields of smtp.filter.verdicts that strangers wrote and that were taken out.")),
		AcceptedMsgs:  prometheus.NewCounter(opts("accepted_messages_total", "Messages answered with 250 after they were durable.")),
		AcceptedRcpts: prometheus.NewCounter(opts("accepted_recipients_total", "Recipients of accepted messages.")),
		AcceptedBytes: prometheus.NewCounter(opts("accepted_bytes_total", "Octets of accepted messages.")),
		AcceptTime:    prometheus.NewHistogram(histogram("accept_seconds", "Time from the final dot to 250.", prometheus.ExponentialBuckets(0.0005, 2, 15))),
		RefusedTotal:  prometheus.NewCounterVec(opts("refused_total", "Commands of peers answered with 4xx or 5xx, by command and code."), []string{"command", "code"}),
		Recipients:    prometheus.NewCounterVec(opts("delivery_recipients_total", "Outcomes of deliveries, per recipient, by route and result."), []string{"route", "result"}),
		DeliverTime:   prometheus.NewHistogramVec(histogram("delivery_seconds", "Time of one delivery attempt, by route.", prometheus.ExponentialBuckets(0.002, 2, 18)), []string{"route"}),
		Doubts:        prometheus.NewCounterVec(opts("delivery_doubts_total", "Recipients whose reply was lost, by route and result: found in the mailbox, or sent_again, which may arrive twice."), []string{"route", "result"}),
		Bounces:       prometheus.NewCounter(opts("bounces_total", "Bounces queued.")),
		Notices:       prometheus.NewCounter(opts("delay_notices_total", "Delay notices queued.")),
		Copied:        prometheus.NewCounter(opts("backfill_messages_total", "Messages that the backfill appended.")),
		CopiedBytes:   prometheus.NewCounter(opts("backfill_bytes_total", "Octets that the backfill appended.")),
		Passes:        prometheus.NewCounterVec(opts("backfill_passes_total", "Passes over mailboxes that ended, by result."), []string{"result"}),
		Problems:      prometheus.NewCounterVec(opts("backfill_problems_total", "Messages, folders and flags that could not be carried over as they are, by class, counted when they are first met."), []string{"class"}),
		Throttled:     prometheus.NewCounter(opts("backfill_throttled_seconds_total", "Time that passes waited because a server wanted less to be asked of it.")),
		Mailboxes:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "crossfade", Name: "backfill_connections_open", Help: "IMAP connections open now, by side."}, []string{"side"}),
		TailLag:       prometheus.NewHistogram(histogram("backfill_tail_lag_seconds", "Time from the news of a change in a mailbox that is watched to the end of the pass that carried it.", prometheus.ExponentialBuckets(0.05, 2, 14))),
		Moves:         prometheus.NewCounterVec(opts("cutover_moves_total", "Moves of users that ended, by result."), []string{"result"}),
		HoldTime:      prometheus.NewHistogram(histogram("cutover_hold_seconds", "Time that a user's mail was held during a flip or a rollback.", prometheus.ExponentialBuckets(0.1, 2, 14))),
		Strays:        prometheus.NewCounterVec(opts("cutover_strays_total", "Messages found in a mailbox that its user does not read and carried to the one that he reads, by the side where they were."), []string{"side"}),
		Stops:         prometheus.NewCounter(opts("cutover_wave_stops_total", "Waves that stopped by themselves, because attempts at flips failed.")),
		Lookups:       prometheus.NewCounterVec(opts("lookups_total", "Questions of other programs about where users are, by what was asked for and the answer."), []string{"what", "answer"}),
		Handshakes:    prometheus.NewCounterVec(opts("smtp_tls_handshakes_total", "TLS handshakes of SMTP clients, by result: ok or failed."), []string{"result"}),
		Renewals:      prometheus.NewCounterVec(opts("acme_attempts_total", "Attempts to get a certificate for smtp.tls from an authority (ACME), by result: ok or failed."), []string{"result"}),
		ServerTLS:     prometheus.NewCounterVec(opts("delivery_tls_total", "Connections for deliveries by server, by the policy that was found for it (tlsa, sts, no-policy-found), and by what became of TLS: success, or the failure as RFC 8460 names it."), []string{"server", "policy", "result"}),
		TLSReports:    prometheus.NewCounterVec(opts("tls_reports_total", "Reports about TLS (RFC 8460) to the owners of domains, by result: sent or failed, which is tried again until the day is over."), []string{"result"}),
	}
	for _, c := range []prometheus.Collector{
		m.Connections, m.Open, m.Turned, m.Logins, m.Filter, m.FilterTime, m.VerdictFields, m.LimitedTotal, m.Lists, m.AcceptedMsgs, m.AcceptedRcpts, m.AcceptedBytes, m.AcceptTime, m.RefusedTotal,
		m.Recipients, m.DeliverTime, m.Doubts, m.Bounces, m.Notices, m.Copied, m.CopiedBytes, m.Passes, m.Problems, m.Throttled, m.Mailboxes, m.TailLag, m.Moves, m.HoldTime,
		m.Stops, m.Strays, m.Lookups, m.Handshakes, m.Renewals, m.ServerTLS, m.TLSReports,
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	m.preset()
	return m, nil
}

// preset makes the series of known labels appear with 0, so that an alert on
// their rate sees the first one.
func (m *Metrics) preset() {
	for _, route := range []mail.Route{mail.Old, mail.New, mail.Out} {
		for _, kind := range []queue.Kind{queue.Done, queue.Retry, queue.Fail, queue.Park, queue.Reroute} {
			m.Recipients.WithLabelValues(string(route), resultName(kind))
		}
		m.DeliverTime.WithLabelValues(string(route))
		for _, result := range []string{"found", "sent_again"} {
			m.Doubts.WithLabelValues(string(route), result)
		}
	}
	for _, result := range []string{"ok", "failed", "limit"} {
		m.Passes.WithLabelValues(result)
	}
	for _, class := range backfill.Classes() {
		m.Problems.WithLabelValues(class)
	}
	for _, side := range []string{"old", "new"} {
		m.Mailboxes.WithLabelValues(side)
		m.Strays.WithLabelValues(side)
	}
	for _, result := range []string{"ok", "failed"} {
		m.Handshakes.WithLabelValues(result)
		m.Renewals.WithLabelValues(result)
	}
	for _, result := range []string{"flipped", "rolled back", "failed"} {
		m.Moves.WithLabelValues(result)
	}
}

// Accepted counts a message that was answered with 250, took being the time
// from its final dot to the answer.
func (m *Metrics) Accepted(recipients int, size int64, took time.Duration) {
	m.AcceptedMsgs.Inc()
	m.AcceptedRcpts.Add(float64(recipients))
	m.AcceptedBytes.Add(float64(size))
	m.AcceptTime.Observe(took.Seconds())
}

// Refused counts a negative reply to a peer. command is one of the SMTP verbs
// that the relay knows, never what the peer sent.
func (m *Metrics) Refused(command string, code int) {
	m.RefusedTotal.WithLabelValues(command, strconv.Itoa(code)).Inc()
}

// ConnOpened counts a connection; ConnClosed is its end.
func (m *Metrics) ConnOpened() {
	m.Connections.Inc()
	m.Open.Inc()
}

// ConnClosed is the end of a connection that ConnOpened counted.
func (m *Metrics) ConnClosed() { m.Open.Dec() }

// Filtered counts a message that the content filter was to look at, and the time that it waited.
func (m *Metrics) Filtered(result string, waited time.Duration) {
	m.Filter.WithLabelValues(result).Inc()
	m.FilterTime.Observe(waited.Seconds())
}

// Stripped counts fields that strangers must not write.
func (m *Metrics) Stripped(fields int) { m.VerdictFields.Add(float64(fields)) }

// LoggedIn counts a login of an SMTP client.
func (m *Metrics) LoggedIn(result string) { m.Logins.WithLabelValues(result).Inc() }

// ConnTurnedAway counts a connection that a limit closed.
func (m *Metrics) ConnTurnedAway(reason string) { m.Turned.WithLabelValues(reason).Inc() }

// Handshook counts a TLS handshake of an SMTP client.
func (m *Metrics) Handshook(ok bool) { m.Handshakes.WithLabelValues(okOrFailed(ok)).Inc() }

// Renewed counts an attempt to get a certificate by ACME.
func (m *Metrics) Renewed(ok bool) { m.Renewals.WithLabelValues(okOrFailed(ok)).Inc() }

// TLSFared counts a connection for deliveries by what became of its TLS.
func (m *Metrics) TLSFared(server, policy, result string) {
	m.ServerTLS.WithLabelValues(server, policy, result).Inc()
}

// TLSReported counts a report to the owner of a domain, sent or failed.
func (m *Metrics) TLSReported(sent bool) {
	result := "failed"
	if sent {
		result = "sent"
	}
	m.TLSReports.WithLabelValues(result).Inc()
}

func okOrFailed(ok bool) string {
	if ok {
		return "ok"
	}
	return "failed"
}

// Limited counts a limit for one client that was reached; limit is one of the
// words of package relay/limit.
func (m *Metrics) Limited(limit string) { m.LimitedTotal.WithLabelValues(limit).Inc() }

// ListLooked counts what a DNS list said about a client; the zone is one of the
// configuration.
func (m *Metrics) ListLooked(zone, result string) { m.Lists.WithLabelValues(zone, result).Inc() }

// PresetLimits makes the series of limits appear with 0: the reasons for which
// connections are turned away, and the limits of [Metrics.Limited].
func (m *Metrics) PresetLimits(turnedAway, limited []string) {
	for _, word := range turnedAway {
		m.Turned.WithLabelValues(word)
	}
	for _, word := range limited {
		m.LimitedTotal.WithLabelValues(word)
	}
}

// Delivered counts what became of one recipient of a delivery attempt. A
// release or a look at a mailbox was no attempt and is not counted.
func (m *Metrics) Delivered(route mail.Route, kind queue.Kind) {
	if kind != queue.Release && kind != queue.Defer {
		m.Recipients.WithLabelValues(string(route), resultName(kind)).Inc()
	}
}

// resultName is the label for an outcome.
func resultName(kind queue.Kind) string {
	switch kind {
	case queue.Done:
		return "delivered"
	case queue.Retry:
		return "deferred"
	case queue.Fail:
		return "bounced"
	case queue.Park:
		return "parked"
	case queue.Reroute:
		return "rerouted"
	}
	return "other"
}

// Attempt observes the time of one delivery attempt.
func (m *Metrics) Attempt(route mail.Route, took time.Duration) {
	m.DeliverTime.WithLabelValues(string(route)).Observe(took.Seconds())
}

// Doubted counts how a doubt about a delivery to one recipient ended.
func (m *Metrics) Doubted(route mail.Route, result string) {
	m.Doubts.WithLabelValues(string(route), result).Inc()
}

// Bounced counts a bounce that was queued.
func (m *Metrics) Bounced() { m.Bounces.Inc() }

// Noticed counts a delay notice that was queued.
func (m *Metrics) Noticed() { m.Notices.Inc() }

// Copying counts messages that the backfill appended, and their octets, while its
// passes run.
func (m *Metrics) Copying(messages int, octets int64) {
	m.Copied.Add(float64(messages))
	m.CopiedBytes.Add(float64(octets))
}

// Backfilled counts a pass of the backfill that ended. Problems it had before
// are not counted again.
func (m *Metrics) Backfilled(p cutover.Passed) {
	result := "ok"
	var limit *backfill.DayLimit
	switch {
	case errors.As(p.Err, &limit):
		result = "limit" // it goes on when the provider lets it
	case p.Err != nil:
		result = "failed"
	}
	m.Passes.WithLabelValues(result).Inc()
	m.Throttled.Add(p.Report.Throttled.Seconds())
	for _, x := range p.New {
		m.Problems.WithLabelValues(x.Class).Add(float64(max(x.Count, 1)))
	}
}

// IMAPConnections counts connections to a side, old or new, that were opened and
// closed.
func (m *Metrics) IMAPConnections(side string, n int) {
	m.Mailboxes.WithLabelValues(side).Add(float64(n))
}

// LookedUp counts a question of another program. what and answer are words of
// package lookup, never what was asked.
func (m *Metrics) LookedUp(what, answer string) { m.Lookups.WithLabelValues(what, answer).Inc() }

// Flipped counts a user who became new after his mail was held for hold.
func (m *Metrics) Flipped(hold time.Duration) {
	m.Moves.WithLabelValues("flipped").Inc()
	m.HoldTime.Observe(hold.Seconds())
}

// RolledBack counts a user who became old again after his mail was held for hold.
func (m *Metrics) RolledBack(hold time.Duration) {
	m.Moves.WithLabelValues("rolled back").Inc()
	m.HoldTime.Observe(hold.Seconds())
}

// Found counts mail that was found where its user does not read.
func (m *Metrics) Found(s cutover.Stray) { m.Strays.WithLabelValues(s.Side).Add(float64(s.Count)) }

// Lagged observes the time from the news of a change in a mailbox that is watched
// to the end of the pass that carried it.
func (m *Metrics) Lagged(after time.Duration) { m.TailLag.Observe(after.Seconds()) }

// MoveFailed counts an attempt to move a user that ended in an error.
func (m *Metrics) MoveFailed() { m.Moves.WithLabelValues("failed").Inc() }

// WaveStopped counts a wave that stopped by itself.
func (m *Metrics) WaveStopped() { m.Stops.Inc() }

// scrapeTime bounds what one scrape may ask of the store.
const scrapeTime = 5 * time.Second

// stateCollector reads queue and users when it is scraped.
type stateCollector struct {
	queue queue.Inspector
	users router.Table
	log   *slog.Logger
	now   func() time.Time

	recipients, routes, messages, bytes, free, oldest, byState, up *prometheus.Desc
}

// NewStateCollector makes the gauges of queue and users, which are read from
// the store at each scrape. A nil log discards.
func NewStateCollector(q queue.Inspector, users router.Table, log *slog.Logger) prometheus.Collector {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("crossfade_"+name, help, labels, nil)
	}
	return &stateCollector{
		queue: q, users: users, log: log, now: time.Now,
		recipients: desc("queue_recipients", "Recipients in the queue, by state.", "state"),
		routes:     desc("queue_route_recipients", "Queued recipients, by the route that they would take now.", "route"),
		messages:   desc("queue_messages", "Messages in the queue."),
		bytes:      desc("queue_bytes", "Octets of the bodies in the queue."),
		free:       desc("queue_free_bytes", "Room left on the store's medium, in octets; -1 unknown."),
		oldest:     desc("queue_oldest_seconds", "Age of the oldest message in the queue; 0 when it is empty."),
		byState:    desc("users", "Mailboxes in the table, by state.", "state"),
		up:         desc("store_up", "1 when the store answered this scrape, 0 when it did not."),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.recipients, c.routes, c.messages, c.bytes, c.free, c.oldest, c.byState, c.up} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	stats, err := c.queue.Stats(ctx)
	if err == nil {
		c.collectQueue(stats, gauge)
	}
	users, userErr := c.users.CountUsers(ctx)
	if userErr == nil {
		for _, s := range router.States() {
			gauge(c.byState, float64(users[s]), string(s))
		}
	}
	if err != nil || userErr != nil {
		c.log.Warn("the store does not answer a scrape of the metrics", "queue", err, "users", userErr)
		gauge(c.up, 0)
		return
	}
	gauge(c.up, 1)
}

func (c *stateCollector) collectQueue(s queue.Stats, gauge func(*prometheus.Desc, float64, ...string)) {
	for _, st := range queueStates {
		gauge(c.recipients, float64(s.States[st]), string(st))
	}
	for _, r := range []mail.Route{mail.Old, mail.New, mail.Out} {
		gauge(c.routes, float64(s.Routes[r]), string(r))
	}
	gauge(c.messages, float64(s.Messages))
	gauge(c.bytes, float64(s.Bytes))
	gauge(c.free, float64(s.Free))
	age := 0.0
	if !s.Oldest.IsZero() {
		age = max(0, c.now().Sub(s.Oldest).Seconds())
	}
	gauge(c.oldest, age)
}
