package tlspolicy_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/dnswatch"
	"crossfade/internal/mailtest"
	"crossfade/relay/resolver"
	"crossfade/relay/smtpclient"
	"crossfade/relay/tlspolicy"
)

// stsWorld is what record and web server of a domain say.
type stsWorld struct {
	id      string
	records []string
	dnsErr  error
	policy  dnswatch.Policy
	webErr  error
	fetched int
	now     time.Time
}

func (w *stsWorld) open(file string) *tlspolicy.STS {
	return tlspolicy.NewSTS(tlspolicy.STSConfig{
		File: file, Now: func() time.Time { return w.now },
		LookupTXT: func(context.Context, string) (resolver.Answer[string], error) {
			if w.dnsErr != nil {
				return resolver.Answer[string]{}, w.dnsErr
			}
			records := w.records
			if w.id != "" {
				records = append([]string{"v=spf1 -all", "v=STSv1; id=" + w.id + ";"}, records...)
			}
			return resolver.Answer[string]{Records: records}, nil
		},
		Fetch: func(context.Context, string) (dnswatch.Policy, error) {
			w.fetched++
			return w.policy, w.webErr
		},
	})
}

// TestSTSPolicy: a policy that was fetched counts for its max_age, over a restart too, whatever becomes of its source.
func TestSTSPolicy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mta-sts.json")
	w := &stsWorld{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), policy: dnswatch.Policy{Mode: "enforce", MaxAge: 7 * 24 * time.Hour, MX: []string{"*.example.org"}}}
	s := w.open(file)
	look := func(what string, want bool, fetched int) {
		t.Helper()
		s.Policy(t.Context(), "example.org") // which looks, if it is time
		s.Wait()
		p, ok := s.Policy(t.Context(), "example.org")
		if ok != want || ok && p.MaxAge != w.policy.MaxAge || w.fetched != fetched {
			t.Errorf("%s: %+v, %t, fetched %d times", what, p, ok, w.fetched)
		}
	}
	look("no record", false, 0)
	if got := s.Lines("example.org"); got != nil {
		t.Errorf("the lines of no policy are %q", got)
	}
	w.id = "1"
	look("too early to look again", false, 0)
	w.now = w.now.Add(6 * time.Minute)
	look("a record", true, 1)
	if got := s.Lines("example.org"); !slices.Equal(got, []string{"version: STSv1", "mode: enforce", "mx: *.example.org", "max_age: 604800"}) {
		t.Errorf("its lines are %q", got)
	}
	w.now = w.now.Add(6 * time.Minute)
	look("the same record", true, 1)
	w.id, w.policy.Mode = "2", "testing"
	look("another record, too early", true, 1)
	w.now = w.now.Add(6 * time.Minute)
	look("another record", true, 2)
	if p, _ := s.Policy(t.Context(), "example.org"); p.Mode != "testing" {
		t.Errorf("the new policy is not in force: %+v", p)
	}
	w.now, w.webErr = w.now.Add(25*time.Hour), errors.New("no answer")
	look("a day later the web server is gone", true, 3)
	s = w.open(file)
	look("after a restart", true, 4)
	w.now, w.id = w.now.Add(4*24*time.Hour), ""
	look("the record is gone", true, 4)
	w.now, w.dnsErr = w.now.Add(3*24*time.Hour), resolver.ErrTemporary
	look("max_age is over", false, 4)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.dnsErr, w.webErr, w.id = nil, nil, "3"
	s = w.open(file)
	look("a damaged file", true, 5)
	w.records = []string{"v=STSv1; id=4"}
	s = w.open("")
	look("two records count as none", false, 5)
}

// TestSTSBehind: nobody waits for a web server while the policy that is kept counts; all wait for it while there is none.
func TestSTSBehind(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	web := make(chan dnswatch.Policy)
	asked := make(chan struct{}, 9)
	var mu sync.Mutex
	id := "1"
	s := tlspolicy.NewSTS(tlspolicy.STSConfig{
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now },
		LookupTXT: func(context.Context, string) (resolver.Answer[string], error) {
			mu.Lock()
			defer mu.Unlock()
			return resolver.Answer[string]{Records: []string{"v=STSv1; id=" + id}}, nil
		},
		Fetch: func(context.Context, string) (dnswatch.Policy, error) { asked <- struct{}{}; return <-web, nil },
	})
	var first sync.WaitGroup
	for range 3 {
		first.Go(func() {
			if p, ok := s.Policy(t.Context(), "example.org"); !ok || p.Mode != "testing" {
				t.Errorf("%+v, %t: it did not wait for the first policy", p, ok)
			}
		})
	}
	<-asked
	web <- dnswatch.Policy{Mode: "testing", MaxAge: 7 * 24 * time.Hour}
	first.Wait()
	mu.Lock()
	now, id = now.Add(6*time.Minute), "2"
	mu.Unlock()
	for range 3 {
		if p, ok := s.Policy(t.Context(), "example.org"); !ok || p.Mode != "testing" {
			t.Errorf("%+v, %t: the policy that is kept does not count", p, ok)
		}
	}
	<-asked
	web <- dnswatch.Policy{Mode: "enforce", MaxAge: 7 * 24 * time.Hour}
	s.Wait()
	defer s.Close()
	if p, ok := s.Policy(t.Context(), "example.org"); !ok || p.Mode != "enforce" || len(asked) != 0 {
		t.Errorf("%+v, %t: the new policy does not count, or was asked for %d times more", p, ok, len(asked))
	}
}

// TestSTSRule: enforce refuses, testing counts each session once, none is nothing; only smtp:// needs it, and it does not fall back.
func TestSTSRule(t *testing.T) {
	s := newSite(t)
	w := &stsWorld{id: "1", now: time.Now()}
	for _, c := range []struct {
		name, mode, mx, host string
		trusted              bool
		clear                bool
		want                 string
		counted              string
	}{
		{name: "right", mode: "enforce", mx: "mx.example.org", host: "mx.example.org", trusted: true},
		{name: "wildcard", mode: "enforce", mx: "*.example.org", host: "mx.example.org", trusted: true},
		{name: "not listed", mode: "enforce", mx: "mx2.example.org", host: "mx.example.org", trusted: true, want: "does not name this server"},
		{name: "another name in the certificate", mode: "enforce", mx: "*.example.org", host: "mx9.example.org", trusted: true, want: "mx9.example.org"},
		{name: "authority unknown", mode: "enforce", mx: "*.example.org", host: "mx.example.org", want: "unknown authority"},
		{name: "no STARTTLS", mode: "enforce", mx: "*.example.org", host: "mx.example.org", trusted: true, clear: true, want: "does not offer STARTTLS"},
		{name: "tested", mode: "testing", mx: "mx2.example.org", host: "mx.example.org", trusted: true, counted: "sts sts-policy-invalid"},
		{name: "tested, authority unknown", mode: "testing", mx: "mx.example.org", host: "mx.example.org", counted: "sts certificate-not-trusted"},
		{name: "tested, and right", mode: "testing", mx: "mx.example.org", host: "mx.example.org", trusted: true},
		{name: "none", mode: "none", host: "mx.example.org", counted: " success"},
	} {
		w.policy = dnswatch.Policy{Mode: c.mode, MaxAge: time.Hour, MX: []string{c.mx}}
		var results []string
		server := tlspolicy.Server{STS: w.open(""), Domain: "example.org", Host: c.host}
		if c.trusted {
			server.Roots = s.ca.Pool()
		}
		sink := s.sink
		if c.clear {
			sink = s.clear
		}
		conn, err := dial(t, sink, c.host, smtpclient.Opportunistic, server.Rule, &results)
		if c.want == "" && (err != nil || !conn.Encrypted() || conn.Verified() != (c.mode == "enforce")) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, smtpclient.ErrPolicy)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.want == "" && strings.Join(results, "; ") != cmp.Or(c.counted, "sts success") {
			t.Errorf("%s: counted %q", c.name, results)
		}
		if conn != nil {
			conn.Quit(t.Context())
		}
	}
}

// TestSTSTesting: a policy that is only being tested keeps no mail back from a server whose TLS does not work.
func TestSTSTesting(t *testing.T) {
	s := newSite(t)
	broken, err := mailtest.NewSink(mailtest.SinkConfig{STARTTLS: true, TLS: &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broken.Close() })
	for mode, sent := range map[string]bool{"testing": true, "none": true, "enforce": false} {
		w := &stsWorld{id: "1", now: time.Now(), policy: dnswatch.Policy{Mode: mode, MaxAge: time.Hour, MX: []string{"mx.example.org"}}}
		var results []string
		server := tlspolicy.Server{STS: w.open(""), Domain: "example.org", Host: "mx.example.org"}
		conn, err := dial(t, broken, "mx.example.org", smtpclient.Opportunistic, server.Rule, &results)
		if (err == nil) != sent || conn != nil && conn.Encrypted() {
			t.Errorf("%s: %v", mode, err)
		}
		if len(results) == 0 || !strings.HasSuffix(results[0], tlspolicy.ValidationFailure) {
			t.Errorf("%s: counted %q", mode, results)
		}
		if conn != nil {
			conn.Quit(t.Context())
		}
	}
}

// TestCounts: reports have the shape of RFC 8460, of today and yesterday.
func TestCounts(t *testing.T) {
	var c tlspolicy.Counts
	now := time.Date(2026, 3, 3, 1, 0, 0, 0, time.UTC)
	old, fresh := tlspolicy.Session{Server: "backends.old.smtp", Host: "old.internal"}, tlspolicy.Session{Server: "backends.new.smtp", Host: "new.internal", Policy: tlspolicy.RuleSTS}
	add := func(when time.Time, s tlspolicy.Session, result string) {
		s.Result = result
		c.Add(when, s)
	}
	add(now.AddDate(0, 0, -2), old, tlspolicy.Success)
	add(now.AddDate(0, 0, -1), old, tlspolicy.NoSTARTTLS)
	for range 3 {
		add(now, fresh, tlspolicy.Success)
	}
	add(now, fresh, tlspolicy.Expired)
	got := c.Reports("mx.example.org")
	if len(got) != 2 || got[0].ID != "2026-03-03@mx.example.org" || !got[0].Range.End.Equal(time.Date(2026, 3, 3, 23, 59, 59, 0, time.UTC)) {
		t.Fatalf("%+v", got)
	}
	p := got[0].Policies
	if len(p) != 1 || p[0].Policy.Type != "sts" || p[0].Summary != (tlspolicy.ReportSummary{Successful: 3, Failed: 1}) || p[0].Failures[0] != (tlspolicy.ReportFailure{Result: "certificate-expired", Host: "new.internal", Failed: 1}) {
		t.Errorf("%+v", p)
	}
	if y := got[1].Policies; len(y) != 1 || y[0].Policy.Type != "no-policy-found" || y[0].Summary.Failed != 1 {
		t.Errorf("%+v", y)
	}
}

// TestCountsOfWhom: what came of TLS with a server is told to whose it was then, also when its key in the configuration
// stands for somebody else's since, and after a restart.
func TestCountsOfWhom(t *testing.T) {
	var before, c tlspolicy.Counts
	now := time.Date(2026, 3, 3, 1, 0, 0, 0, time.UTC)
	for host, owner := range map[string]string{"mx.one.example": "one.example", "mx.two.example": "two.example", "inner.example.org": ""} {
		before.Add(now, tlspolicy.Session{Server: "backends.old.smtp", Host: host, Owner: owner, Result: tlspolicy.Expired})
	}
	c.Restore(before.All())
	r := c.Reports("mx.example.org")[0]
	if owners := r.Owners(); !slices.Equal(owners, []string{"one.example", "two.example"}) || len(r.Policies) != 3 {
		t.Fatalf("%q of %+v", owners, r)
	}
	one := r.For("one.example", "id", nil)
	if len(one.Policies) != 1 || one.Policies[0].Policy.Domain != "one.example" || !slices.Equal(one.Policies[0].Policy.Hosts, []string{"mx.one.example"}) ||
		one.Policies[0].Summary.Failed != 1 || one.Policies[0].Failures[0].Host != "mx.one.example" || r.Policies[0].Policy.Domain != "backends.old.smtp" {
		t.Errorf("%+v of %+v", one, r)
	}
}
