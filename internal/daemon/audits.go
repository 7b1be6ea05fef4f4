package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"crossfade/admin"
	"crossfade/audit"
	"crossfade/cutover"
	"crossfade/dnswatch"
	"crossfade/mail"
	"crossfade/router"
)

// audits makes audits, one at a time, and keeps the last one.
type audits struct {
	d     *Daemon
	asks  chan asked
	maker keyMaker
	kept  keptAudit

	mu     sync.Mutex
	status admin.AuditRun
}

var (
	_ admin.AuditsAPI = (*audits)(nil)
	_ admin.LivesAPI  = (*audits)(nil)
)

// asked is an audit that somebody wants.
type asked struct {
	run string // its name: nobody takes another one for it
	req audit.Request
}

// run makes audits until ctx ends.
func (a *audits) run(ctx context.Context) error {
	idle := time.NewTicker(idleAudit)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-idle.C:
			a.kept.rest()
		case ask := <-a.asks:
			doc, err := a.make(ctx, ask)
			a.note(func(s *admin.AuditRun) {
				s.Running, s.Ended = false, time.Now().UTC()
				if err != nil {
					s.Error = err.Error()
				} else {
					s.Clean = doc.Clean
				}
			})
			if err != nil && ctx.Err() == nil {
				a.d.log.Error("an audit did not come to its end", "err", err)
			}
		}
	}
}

func (a *audits) note(f func(*admin.AuditRun)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.status)
}

func (a *audits) make(ctx context.Context, ask asked) (*audit.Document, error) {
	key, err := a.key(ctx)
	if err != nil {
		return nil, err
	}
	auditor := a.auditor()
	auditor.Key, auditor.Name = key, ask.run
	doc, err := auditor.Run(ctx, ask.req, func(p audit.Progress) { a.note(func(s *admin.AuditRun) { s.Progress = p }) })
	if err != nil {
		return nil, err
	}
	if err := a.save(ctx, doc); err != nil {
		return nil, err
	}
	a.d.log.Info("an audit was made", "clean", doc.Clean, "users", len(doc.Users), "accepted", doc.Total.Accepted, "missing", doc.Total.Missing)
	return doc, nil
}

func (a *audits) auditor() *audit.Auditor {
	d := a.d
	out := &audit.Auditor{Journal: d.journal, Queue: d.store, Users: d.store, Sweeps: sweeps{d}, Hostname: d.cfg.Hostname, Version: d.opts.Version, TempDir: d.tempDir(), Log: d.log}
	if s := d.mailboxes.sides.Load(); s.new.server.Address != "" {
		out.Mailboxes = traces{d}
	}
	return out
}

// tempDir is where an audit keeps what it has read, and the backfill a large message
// between two servers: beside the store, whose disk has room; empty for the system's.
func (d *Daemon) tempDir() string {
	if shared(d.cfg) {
		return ""
	}
	return d.cfg.Store
}

// Start implements admin.AuditsAPI.
func (a *audits) Start(_ context.Context, req audit.Request) (admin.AuditRun, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status.Running {
		return a.status, fmt.Errorf("%w since %s", admin.ErrAuditing, a.status.Began.Format(time.RFC3339))
	}
	run := string(mail.NewID())
	select {
	case a.asks <- asked{run, req}:
	default:
		return a.status, fmt.Errorf("%w: it has not begun yet", admin.ErrAuditing)
	}
	a.status = admin.AuditRun{ID: run, Running: true, Began: time.Now().UTC()}
	return a.status, nil
}

// Status implements admin.AuditsAPI.
func (a *audits) Status() admin.AuditRun {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// Why implements admin.LivesAPI.
func (a *audits) Why(ctx context.Context, id string, look bool) ([]audit.Life, error) {
	return a.auditor().Why(ctx, id, look)
}

// quietTime is how long nothing may have come to old, and nobody in no table may
// have got mail, before it is switched off.
const quietTime = 7 * 24 * time.Hour

// Finish implements admin.LivesAPI.
func (a *audits) Finish(ctx context.Context) audit.Finish {
	e := &audit.Ending{Auditor: a.auditor(), Stats: a.d.store.Stats, LastAudit: a.last, DNS: afterDNS{a.d}, Stragglers: sweeps{a.d},
		Window: time.Duration(a.d.cfg.Cutover.Window), Quiet: quietTime}
	return e.Finish(ctx)
}

// sweeps tells what came to mailboxes past the relay, by what the conductor keeps
// of each user.
type sweeps struct{ d *Daemon }

func (s sweeps) each(ctx context.Context, f func(u router.User, t cutover.Tally)) error {
	for cursor := ""; ; {
		page, next, err := s.d.store.Users(ctx, router.Filter{Kind: router.KindMailbox}, cursor, 500)
		if err != nil {
			return fmt.Errorf("list the users: %w", err)
		}
		for _, u := range page {
			t, err := cutover.TallyOf(ctx, s.d.store, u.Address)
			if err != nil {
				return err
			}
			f(u, t)
		}
		if cursor = next; next == "" {
			return nil
		}
	}
}

// leftOf gives what sweeps cannot carry to the side that the user reads. What they
// left on that side while he read the other one is where he looks now.
func leftOf(u router.User, t cutover.Tally) cutover.Left {
	if readsNew(u) {
		return t.OldLeft
	}
	return t.NewLeft
}

// Swept implements audit.Sweeps.
func (s sweeps) Swept(ctx context.Context) (map[string]audit.SweptCount, error) {
	out := map[string]audit.SweptCount{}
	err := s.each(ctx, func(u router.User, t cutover.Tally) {
		n, left := t.Old.Count+t.New.Count, leftOf(u, t)
		if n+left.Count > 0 {
			out[u.Address] = audit.SweptCount{Found: n + left.Count, Copied: n, Left: left.Count, Why: left.Text, Grew: left.Grew}
		}
	})
	return out, err
}

// namedLeft bounds the users that are named of those with mail that is not carried.
const namedLeft = 10

// LastStraggler implements audit.Stragglers.
func (s sweeps) LastStraggler(ctx context.Context) (last audit.Straggler, err error) {
	settled, err := traces(s).Settled(ctx)
	if err != nil {
		return last, err
	}
	err = s.each(ctx, func(u router.User, t cutover.Tally) {
		if left := leftOf(u, t); !settled[u.Address].CoversLeft(left.Count, left.Grew) {
			if last.Left += left.Count; len(last.Of) < namedLeft {
				last.Of = append(last.Of, fmt.Sprintf("%s: %d since %s: %s", u.Address, left.Count, left.Since.Format(time.RFC3339), left.Text))
			}
		}
		if !t.Old.Last.After(last.At) {
			return
		}
		last.At, last.User, last.From = t.Old.Last, u.Address, "an unknown host"
		for _, o := range t.Old.From {
			if o.Last.Equal(t.Old.Last) {
				last.From = o.Host
			}
		}
	})
	return last, err
}

// afterDNS looks at the DNS as it has to be in the end.
type afterDNS struct{ d *Daemon }

// dnsTime bounds one look.
const dnsTime = 30 * time.Second

// After implements audit.DNS.
func (a afterDNS) After(ctx context.Context) (wrong []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTime)
	defer cancel()
	r, err := CheckDNS(ctx, a.d.cfg, dnswatch.After, nil)
	if err != nil {
		return nil, err
	}
	for _, f := range r.Findings {
		if f.Severity != dnswatch.Warn && f.Severity != dnswatch.Stop {
			continue
		}
		text := fmt.Sprintf("%s %s: %s", f.Check, f.Domain, f.Seen)
		if f.Change != "" {
			text += "; change it to " + f.Change
		}
		wrong = append(wrong, text)
	}
	return wrong, nil
}
