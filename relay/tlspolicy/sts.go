package tlspolicy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"crossfade/dnswatch"
	"crossfade/relay/resolver"
	"crossfade/relay/smtpclient"
)

// STSConfig is what an [STS] works with. LookupTXT is needed.
type STSConfig struct {
	LookupTXT func(ctx context.Context, name string) (resolver.Answer[string], error)
	// Fetch reads a policy; nil fetches it over HTTPS.
	Fetch func(ctx context.Context, domain string) (dnswatch.Policy, error)
	// File keeps policies over a restart; empty: nothing does.
	File   string
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

// STS keeps the policies of domains (RFC 8461). It is safe for use by many goroutines.
type STS struct {
	cfg STSConfig

	mu      sync.Mutex
	domains map[string]*stsDomain
	looks   sync.WaitGroup
	ctx     context.Context // of looks that nobody waits for
	end     context.CancelFunc
}

// stsDomain is what is known of one domain.
type stsDomain struct {
	asking sync.Mutex // held while the domain is asked, so that it is asked once

	mu      sync.Mutex // guards what follows
	kept    keptPolicy
	again   time.Time // not before
	problem string
}

// keptPolicy is a policy as it lies in the file.
type keptPolicy struct {
	ID      string          `json:"id"` // of the record that announced it
	Policy  dnswatch.Policy `json:"policy"`
	Fetched time.Time       `json:"fetched"`
}

func (k *keptPolicy) good(now time.Time) bool {
	return k.Policy.Mode != "" && now.Before(k.Fetched.Add(k.Policy.MaxAge))
}

const (
	stsLook  = 5 * time.Minute  // between two looks at a record (RFC 8461, 3.3)
	stsFetch = 10 * time.Second // the first connections to the server wait for it
)

// NewSTS reads what is kept. A file that cannot be read is a warning: the policies are fetched again.
func NewSTS(cfg STSConfig) *STS {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Fetch == nil {
		cfg.Fetch = func(ctx context.Context, domain string) (dnswatch.Policy, error) {
			return dnswatch.FetchPolicy(ctx, domain, dnswatch.PolicyOptions{})
		}
	}
	s := &STS{cfg: cfg, domains: map[string]*stsDomain{}}
	s.ctx, s.end = context.WithCancel(context.Background())
	if cfg.File == "" {
		return s
	}
	kept := map[string]keptPolicy{}
	data, err := os.ReadFile(cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	if err != nil {
		cfg.Logger.Warn("MTA-STS policies that were kept cannot be read; they are fetched again", "file", cfg.File, "error", err)
	}
	for domain, k := range kept {
		s.domains[domain] = &stsDomain{kept: k}
	}
	return s
}

// Policy gives the policy of a domain that is in force; false: there is none. The record is looked at every few minutes,
// and the policy is fetched when that names another one. What was fetched counts for its max_age, whatever becomes of
// record and web server meanwhile (RFC 8461, 5.1), and nobody waits for a look while it does.
func (s *STS) Policy(ctx context.Context, domain string) (dnswatch.Policy, bool) {
	s.mu.Lock()
	d := s.domains[domain]
	if d == nil {
		d = &stsDomain{}
		s.domains[domain] = d
	}
	s.mu.Unlock()
	now := s.cfg.Now()
	kept, due := d.now(now)
	switch {
	case !due:
	case !kept.good(now):
		d.asking.Lock()
		s.look(context.WithoutCancel(ctx), domain, d) // others may wait for it too
		d.asking.Unlock()
		kept, _ = d.now(now)
	case d.asking.TryLock():
		s.looks.Go(func() {
			defer d.asking.Unlock()
			s.look(s.ctx, domain, d)
		})
	}
	return kept.Policy, kept.good(now)
}

// Lines are the lines of the policy of a domain that was last in force, without asking anybody; none: there was none.
func (s *STS) Lines(domain string) []string {
	s.mu.Lock()
	d := s.domains[domain]
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	kept, _ := d.now(time.Time{})
	if kept.Policy.Mode == "" {
		return nil
	}
	out := []string{"version: STSv1", "mode: " + kept.Policy.Mode}
	for _, mx := range kept.Policy.MX {
		out = append(out, "mx: "+mx)
	}
	return append(out, fmt.Sprintf("max_age: %d", int64(kept.Policy.MaxAge/time.Second)))
}

// Wait waits for looks that nobody else waits for.
func (s *STS) Wait() { s.looks.Wait() }

// Close ends them. It is called when nobody asks for policies any more.
func (s *STS) Close() {
	s.end()
	s.Wait()
}

// now gives what is known, and whether it is time to look again.
func (d *stsDomain) now(now time.Time) (kept keptPolicy, due bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept, !now.Before(d.again)
}

// look finds out what is true now, unless that was just done. It is called with d.asking held.
func (s *STS) look(ctx context.Context, domain string, d *stsDomain) {
	now := s.cfg.Now()
	kept, due := d.now(now)
	if !due {
		return
	}
	fresh, err := s.refresh(ctx, domain, kept)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept, d.again = fresh, now.Add(stsLook)
	problem := ""
	if err != nil {
		if problem = err.Error(); d.problem != problem {
			s.cfg.Logger.Warn("an MTA-STS policy could not be fetched", "domain", domain, "error", err, "kept", fresh.good(now))
		}
	}
	d.problem = problem
}

// refresh reads the record, and the policy when the record names another one or the one that is kept is past half its time.
// It gives what is to be kept, with an error too.
func (s *STS) refresh(ctx context.Context, domain string, kept keptPolicy) (keptPolicy, error) {
	ctx, cancel := context.WithTimeout(ctx, stsFetch)
	defer cancel()
	id, err := s.recordID(ctx, domain)
	if err != nil || id == "" {
		return kept, err
	}
	now := s.cfg.Now()
	if id == kept.ID && kept.good(now) && now.Sub(kept.Fetched) < min(kept.Policy.MaxAge/2, 24*time.Hour) {
		return kept, nil
	}
	p, err := s.cfg.Fetch(ctx, domain)
	if err != nil {
		return kept, fmt.Errorf("fetch the MTA-STS policy of %s: %w", domain, err)
	}
	kept = keptPolicy{ID: id, Policy: p, Fetched: now}
	return kept, s.save(domain, kept)
}

// recordID is the id of the domain's only TXT record of MTA-STS (RFC 8461, 3.1); empty: it has none.
func (s *STS) recordID(ctx context.Context, domain string) (string, error) {
	a, err := s.cfg.LookupTXT(ctx, "_mta-sts."+domain)
	if errors.Is(err, resolver.ErrNoName) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for an MTA-STS policy of %s: %w", domain, err)
	}
	id := ""
	for _, text := range a.Records {
		version, rest, _ := strings.Cut(text, ";")
		if strings.TrimSpace(version) != "v=STSv1" {
			continue
		}
		if id != "" {
			return "", nil // more than one counts as none
		}
		for field := range strings.SplitSeq(rest, ";") {
			if key, value, _ := strings.Cut(field, "="); strings.TrimSpace(key) == "id" {
				id = strings.TrimSpace(value)
			}
		}
	}
	return id, nil
}

// save writes what is kept with one more policy. It is called with that domain's lock held, so it reads the file and not
// the other domains.
func (s *STS) save(domain string, k keptPolicy) error {
	if s.cfg.File == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]keptPolicy{}
	if data, err := os.ReadFile(s.cfg.File); err == nil {
		_ = json.Unmarshal(data, &all) // what cannot be read is fetched again
	}
	all[domain] = k
	data, err := json.MarshalIndent(all, "", "\t")
	if err == nil {
		err = os.WriteFile(s.cfg.File+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(s.cfg.File+".new", s.cfg.File)
	}
	if err != nil {
		return fmt.Errorf("keep the MTA-STS policy of %s: %w", domain, err)
	}
	return nil
}

// The reasons why a server does not meet a policy.
var (
	ErrNotListed = errors.New("the MTA-STS policy does not name this server")
	errNoChain   = errors.New("the server showed no certificate")
)

// Rule is what the policy of a domain demands of one of its servers. roots are the authorities that count; nil: the
// system's.
func (s *STS) Rule(ctx context.Context, domain, host string, roots *x509.CertPool) smtpclient.Rule {
	p, ok := s.Policy(ctx, domain)
	if !ok || p.Mode == "none" {
		return smtpclient.Rule{}
	}
	enforce := p.Mode == "enforce"
	return smtpclient.Rule{Name: RuleSTS, Require: enforce, Proves: enforce, Testing: !enforce, Verify: func(state tls.ConnectionState) error {
		if !p.Covers(host) {
			return fmt.Errorf("%w: %s is none of %s", ErrNotListed, host, strings.Join(p.MX, ", "))
		}
		return verifyPKIX(state.PeerCertificates, host, roots)
	}}
}

// verifyPKIX is the usual check of a chain.
func verifyPKIX(chain []*x509.Certificate, host string, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errNoChain
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between})
	return err
}
