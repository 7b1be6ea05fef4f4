package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"time"

	"crossfade/mail"
	"crossfade/relay/authn/arc"
	"crossfade/relay/authn/dkim"
	"crossfade/relay/tlspolicy"
	"crossfade/relay/tlsreport"
)

const (
	tlsRecords    = "tls"     // the name under which the ledger keeps what follows: no user has it
	tlsCounts     = "counts/" // the node's name follows
	reportsLook   = 5 * time.Minute
	reportsSpread = 4 * time.Hour // after midnight (UTC) within which they go: those of all the world would come at once
	reportsAgain  = time.Hour     // after one that failed
	reportTime    = 3 * time.Minute
)

// tlsReports keeps the counts of TLS with the servers that mail is delivered to over restarts, and sends those of the day
// before to the owners of the domains whose policies were looked at (RFC 8460).
type tlsReports struct {
	policies     *tlsPolicies
	organization string
	node         string // of several; empty: it is the only one, whatever the machine is called
	ledger       interface {
		LoadLedger(ctx context.Context, user string) (map[string][]byte, error)
		SaveLedger(ctx context.Context, user, name string, data []byte) error
	}
	sender *tlsreport.Sender // nil: reports are not sent
	told   func(sent bool)
	log    *slog.Logger
	now    func() time.Time

	state  tlsState
	loaded bool   // what was kept is in state
	saved  []byte // the state as the ledger has it
	again  map[string]time.Time
}

// tlsState is what is kept.
type tlsState struct {
	Counts []tlspolicy.Count `json:"counts"`
	Sent   []sentReport      `json:"sent"`
}

// sentReport is one that need not be sent any more.
type sentReport struct {
	Day    string `json:"day"`
	Domain string `json:"domain"`
	Target string `json:"target"` // empty: there is nothing left to tell the domain
}

func (d *Daemon) newTLSReports() (*tlsReports, error) {
	node := d.cfg.Node
	if node == "" && shared(d.cfg) {
		node = d.nodeName()
	}
	t := &tlsReports{
		policies: d.policies, organization: d.cfg.Hostname, node: node, ledger: d.store, log: d.log, now: time.Now,
		told: d.metrics.TLSReported, again: map[string]time.Time{},
	}
	if !d.cfg.SMTP.TLSReports.Enabled() {
		return t, nil
	}
	contact, err := mail.ParseAddress(d.cfg.SMTP.TLSReports.Contact)
	if err != nil {
		return nil, fmt.Errorf("smtp.tls_reports.contact: %w", err)
	}
	cfg := tlsreport.Config{Contact: contact, LookupTXT: lookupTXT(d.policies.resolver), Submit: d.submitReport}
	if a := d.cfg.SMTP.ARC; a.Seals() {
		key, err := arc.OpenKey(a.Key, d.log)
		if err != nil {
			return nil, fmt.Errorf("smtp.arc.key: %w", err)
		}
		cfg.Sign = func(message []byte) ([]byte, error) {
			signer := dkim.Signer{Domain: a.Domain, Selector: a.Selector, Key: key.Signer(), Names: tlsreport.Signed} // the key may change
			field, err := signer.Sign(message, time.Now())
			return append([]byte(field), message...), err
		}
	}
	t.sender, err = tlsreport.New(cfg)
	return t, err
}

// submitReport queues a message of our own.
func (d *Daemon) submitReport(ctx context.Context, env *mail.Envelope, message []byte) error {
	rcpts, err := d.resolveSender(ctx, env.Recipients[0].Addr)
	if err != nil {
		return err
	}
	if len(rcpts) == 0 {
		return errors.New("the address leads to nobody")
	}
	env.Recipients = rcpts
	return d.store.Put(ctx, env, bytes.NewReader(message))
}

// run works until ctx ends.
func (t *tlsReports) run(ctx context.Context) error {
	t.load(ctx)
	tick := time.NewTicker(reportsLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), scrapeTime)
			defer cancel()
			t.save(last)
			return nil
		case <-tick.C:
			t.load(ctx)
			t.send(ctx)
			t.save(ctx)
		}
	}
}

// load takes up what was kept, unless that was done. Until it can be read nothing is sent, nor saved over it; what is
// damaged is missing in the next report, and nothing else.
func (t *tlsReports) load(ctx context.Context) {
	if t.loaded {
		return
	}
	records, err := t.ledger.LoadLedger(ctx, tlsRecords)
	if err != nil {
		t.log.Warn("the counts of TLS from before the start cannot be read now; that is tried again", "error", err)
		return
	}
	t.loaded = true
	if kept := records[tlsCounts+t.node]; kept != nil {
		if err := json.Unmarshal(kept, &t.state); err != nil {
			t.log.Error("the counts of TLS from before the start are damaged and are begun anew", "error", err)
			t.state = tlsState{}
		}
	}
	t.policies.counts.Restore(t.state.Counts)
}

func (t *tlsReports) save(ctx context.Context) {
	if !t.loaded {
		return
	}
	t.state.Counts = t.policies.counts.All()
	data, err := json.Marshal(t.state)
	if err != nil || bytes.Equal(data, t.saved) || t.saved == nil && len(t.state.Counts)+len(t.state.Sent) == 0 {
		return
	}
	if err := t.ledger.SaveLedger(ctx, tlsRecords, tlsCounts+t.node, data); err != nil {
		t.log.Warn("the counts of TLS cannot be saved now; that is tried again", "error", err)
		return
	}
	t.saved = data
}

// send sends the reports of the day before that are due.
func (t *tlsReports) send(ctx context.Context) {
	now := t.now().UTC()
	midnight := now.Truncate(24 * time.Hour)
	day := midnight.AddDate(0, 0, -1).Format(time.DateOnly)
	t.state.Sent = slices.DeleteFunc(t.state.Sent, func(s sentReport) bool { return s.Day != day })
	if t.sender == nil || !t.loaded || now.Before(midnight.Add(t.spread())) {
		return
	}
	for _, r := range t.policies.counts.Reports(t.organization) {
		if r.Range.Start.Format(time.DateOnly) != day {
			continue
		}
		for _, domain := range r.Owners() {
			if now.Before(t.again[domain]) {
				continue
			}
			if !t.domain(ctx, day, domain, r.For(domain, t.id(day), t.policies.sts.Lines(domain))) {
				t.again[domain] = now.Add(reportsAgain)
			}
		}
	}
}

// id is the name of this node's reports of a day.
func (t *tlsReports) id(day string) string {
	if t.node != "" {
		day += "_" + t.node
	}
	return day + "@" + t.organization
}

// spread is when after midnight the reports of this node go.
func (t *tlsReports) spread() time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(t.organization + "/" + t.node))
	return time.Duration(h.Sum32()%uint32(reportsSpread/time.Second)) * time.Second
}

// domain sends a report to where its domain wants it; false: something has to be tried again.
func (t *tlsReports) domain(ctx context.Context, day, domain string, r tlspolicy.Report) bool {
	if slices.Contains(t.state.Sent, sentReport{day, domain, ""}) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	targets, err := t.sender.Targets(ctx, domain)
	if err != nil {
		t.failed(domain, "", err)
		return false
	}
	all := true
	for _, target := range targets {
		done := sentReport{day, domain, target}
		if slices.Contains(t.state.Sent, done) {
			continue
		}
		if err := t.sender.Send(ctx, domain, target, r); err != nil {
			t.failed(domain, target, err)
			if !errors.Is(err, tlsreport.ErrUnsigned) { // which only an operator mends
				all = false
			}
			continue
		}
		t.state.Sent = append(t.state.Sent, done)
		t.save(ctx) // a kill must not have it told again
		t.told(true)
		t.log.Info("a report about TLS was sent", "domain", domain, "to", target, "report", r.ID)
	}
	if all {
		t.state.Sent = append(t.state.Sent, sentReport{day, domain, ""})
	}
	return all
}

func (t *tlsReports) failed(domain, target string, err error) {
	t.told(false)
	if errors.Is(err, tlsreport.ErrUnsigned) {
		t.log.Warn("a report about TLS is not sent", "domain", domain, "to", target, "error", err)
		return
	}
	t.log.Warn("a report about TLS was not sent; that is tried again until the day is over", "domain", domain, "to", target, "error", err, "next", t.now().Add(reportsAgain))
}
