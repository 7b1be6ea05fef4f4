package daemon

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/smtp"
	"os"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest/realtest"
	"crossfade/mail"
	"crossfade/relay/resolver"
	"crossfade/relay/tlspolicy"
	"crossfade/relay/tlsreport"
)

// TestTLSReports: what came of TLS with a server is told the next day, once, to where the owner of its domain wants it,
// signed, over the smart host; and a restart loses neither the counts nor that it was told.
func TestTLSReports(t *testing.T) {
	s := &authnSite{t: t, key: t.TempDir() + "/key.pem"}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ns = realtest.StartNSD(t, map[string]string{
		"good.test": authnHead + "_smtp._tls TXT \"v=TLSRPTv1; rua=mailto:tls@good.test\"\n",
	})
	old, out := newAuthnSink(t), newAuthnSink(t)
	s.sink = out
	s.d = serveTest(t, t.TempDir(), fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
store: ./data
smtp:
  listen: ["127.0.0.1:0"]
  resolvers: [%q]
  arc: {domain: good.test, selector: sel, key: %s}
  smart_host: {url: "smtp+insecure://%s"}
  trusted: [192.0.2.0/24]
  tls_reports: {contact: postmaster@good.test}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old: {smtp: "smtp://%s", tls: {mta_sts: good.test}}
  new: {smtp: "smtp+insecure://127.0.0.1:9"}
routing: {unknown: old}
queue: {min_free: 0}
`, s.ns.Addr, s.key, out.Addr(), old.Addr()))
	if err := smtp.SendMail(s.d.SMTPAddrs()[0].String(), nil, "joe@far.test", []string{"ann@example.org"}, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := old.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}

	begin := func() *tlsReports {
		r, err := s.d.newTLSReports()
		if err != nil {
			t.Fatal(err)
		}
		r.load(t.Context())
		return r
	}
	counted := s.d.policies.counts.All()
	if len(counted) == 0 {
		t.Fatal("nothing was counted")
	}
	today, err := time.Parse(time.DateOnly, counted[0].Day)
	if err != nil {
		t.Fatal(err)
	}
	at := func(r *tlsReports, when time.Time) {
		r.now = func() time.Time { return when }
		r.send(t.Context())
		r.save(t.Context())
	}
	r := begin()
	at(r, today.Add(23*time.Hour))                            // of today
	at(r, today.AddDate(0, 0, 1).Add(r.spread()-time.Second)) // too early
	if n := len(r.state.Sent); n != 0 {
		t.Fatalf("sent before its time: %+v", r.state.Sent)
	}

	// As after a restart.
	s.d.policies.counts = tlspolicy.Counts{}
	r = begin()
	late := today.AddDate(0, 0, 1).Add(reportsSpread)
	at(r, late)
	msg := s.delivered()
	if a := realtest.DKIMPy(t, map[string]string{"sel._domainkey.good.test": s.record()}, realtest.DKIMPyJob{Op: "dkim", Message: []byte(msg)}); a[0].Status != "pass" {
		t.Errorf("dkimpy says %+v\n%s", a, msg)
	}
	report := attached(t, msg)
	text, _ := json.Marshal(report)
	if report.ID != today.Format(time.DateOnly)+"@mx.example.org" || report.Contact != "postmaster@good.test" || len(report.Policies) != 1 || report.Policies[0].Policy.Domain != "good.test" ||
		report.Policies[0].Policy.Type != tlspolicy.NoPolicy || report.Policies[0].Summary.Successful+report.Policies[0].Summary.Failed == 0 ||
		!report.Range.Start.Equal(today) {
		t.Errorf("the report is %s", text)
	}

	// It is told once, also after another restart.
	at(r, late.Add(time.Hour))
	r = begin()
	at(r, late.Add(2*time.Hour))
	if got := out.Messages(); len(got) != 0 {
		t.Errorf("told again: %d messages", len(got))
	}
	if m := s.metrics(); !strings.Contains(m, `crossfade_tls_reports_total{result="sent"} 1`) {
		t.Error("not counted")
	}

	// What the DNS cannot tell now is tried again in an hour.
	s.d.policies.counts.Restore([]tlspolicy.Count{{Day: today.Format(time.DateOnly), Session: tlspolicy.Session{Server: "backends.old.smtp", Owner: "good.test", Policy: "sts", Result: "success"}, Sessions: 1}})
	r = begin()
	r.state.Sent = nil
	asked, answer := 0, errors.New("no answer")
	if r.sender, err = tlsreport.New(tlsreport.Config{
		Contact: mail.Address{Local: "a", Domain: "example.org"},
		Submit:  func(context.Context, *mail.Envelope, []byte) error { return nil },
		LookupTXT: func(context.Context, string) ([]string, error) {
			asked++
			return nil, answer
		},
	}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		at(r, late)
	}
	at(r, late.Add(reportsAgain))
	if asked != 2 || len(r.state.Sent) != 0 {
		t.Errorf("asked %d times in an hour; %+v", asked, r.state.Sent)
	}
	// Who wants no reports is asked once a day.
	asked, answer = 0, nil
	for range 3 {
		at(r, late.Add(2*reportsAgain))
	}
	if asked != 1 {
		t.Errorf("asked %d times for somebody who wants none", asked)
	}
}

// keptRecords is a ledger in memory.
type keptRecords map[string][]byte

func (k keptRecords) LoadLedger(context.Context, string) (map[string][]byte, error) { return k, nil }

func (k keptRecords) SaveLedger(_ context.Context, _, name string, data []byte) error {
	k[name] = data
	return nil
}

// TestTLSReportsKilled: what was told before a kill is not told again after it, though there was more to tell.
func TestTLSReportsKilled(t *testing.T) {
	res, err := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:9"}})
	if err != nil {
		t.Fatal(err)
	}
	day := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	kept, told := keptRecords{}, map[string]int{}
	begin := func(killed bool) *tlsReports {
		r := &tlsReports{
			policies: newTLSPolicies(res, "", nil), organization: "mx.example.org", node: "a", ledger: kept, told: func(bool) {}, log: slog.New(slog.DiscardHandler),
			now: func() time.Time { return day.AddDate(0, 0, 1).Add(reportsSpread) }, again: map[string]time.Time{},
		}
		r.sender, err = tlsreport.New(tlsreport.Config{
			Contact: mail.Address{Local: "a", Domain: "example.org"},
			Sign:    func(m []byte) ([]byte, error) { return m, nil },
			LookupTXT: func(context.Context, string) ([]string, error) {
				return []string{"v=TLSRPTv1; rua=mailto:one@one.example,mailto:two@two.example"}, nil
			},
			Submit: func(_ context.Context, env *mail.Envelope, _ []byte) error {
				if told[env.Recipients[0].Addr.Local]++; killed && env.Recipients[0].Addr.Local == "two" {
					return errors.New("killed")
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.policies.sts.Close)
		if id := r.id("2026-11-20"); id != "2026-11-20_a@mx.example.org" {
			t.Errorf("the report is %s", id)
		}
		return r
	}
	first := begin(true)
	first.load(t.Context())
	first.policies.counts.Restore([]tlspolicy.Count{{Day: day.Format(time.DateOnly), Session: tlspolicy.Session{Owner: "one.example", Result: "success"}, Sessions: 1}})
	first.send(t.Context()) // and nothing is saved any more
	second := begin(false)
	second.load(t.Context())
	second.send(t.Context())
	if told["one"] != 1 || told["two"] != 2 {
		t.Errorf("told: %v", told)
	}
	// A ledger that cannot be read is not written over, and what it may say was told is not told again.
	before := string(kept["counts/a"])
	third := begin(false)
	third.ledger = deafRecords{kept}
	third.policies.counts.Restore([]tlspolicy.Count{{Day: day.Format(time.DateOnly), Session: tlspolicy.Session{Owner: "one.example", Result: "success"}, Sessions: 1}})
	third.load(t.Context())
	third.send(t.Context())
	third.save(t.Context())
	if told["one"] != 1 || string(kept["counts/a"]) != before || before == "" {
		t.Errorf("told: %v; kept %s, before %s", told, kept["counts/a"], before)
	}
	// Without a key nothing goes by mail, and that is not tried each hour.
	unsigned := begin(false)
	failed, asked := 0, 0
	unsigned.told = func(bool) { failed++ }
	if unsigned.sender, err = tlsreport.New(tlsreport.Config{
		Contact: mail.Address{Local: "a", Domain: "example.org"},
		LookupTXT: func(context.Context, string) ([]string, error) {
			asked++
			return []string{"v=TLSRPTv1; rua=mailto:one@one.example"}, nil
		},
		Submit: func(context.Context, *mail.Envelope, []byte) error { return errors.New("unsigned") },
	}); err != nil {
		t.Fatal(err)
	}
	unsigned.ledger = keptRecords{}
	unsigned.load(t.Context())
	unsigned.policies.counts.Restore([]tlspolicy.Count{{Day: day.Format(time.DateOnly), Session: tlspolicy.Session{Owner: "one.example", Result: "success"}, Sessions: 1}})
	for i := range 3 {
		unsigned.now = func() time.Time { return day.AddDate(0, 0, 1).Add(reportsSpread + time.Duration(i)*reportsAgain) }
		unsigned.send(t.Context())
	}
	if failed != 1 || asked != 1 {
		t.Errorf("failed %d times, asked %d times", failed, asked)
	}
}

// deafRecords is a ledger that cannot be read now.
type deafRecords struct{ keptRecords }

func (deafRecords) LoadLedger(context.Context, string) (map[string][]byte, error) {
	return nil, errors.New("it does not answer")
}

// attached is the report in a message.
func attached(t *testing.T, msg string) (r tlspolicy.Report) {
	t.Helper()
	_, rest, _ := strings.Cut(msg, "boundary=\"")
	boundary, body, _ := strings.Cut(rest, "\"")
	parts := multipart.NewReader(strings.NewReader(body), boundary)
	for {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatalf("no report in\n%s\n%v", msg, err)
		}
		if p.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
			continue
		}
		packed, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, p))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewDecoder(z).Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
}
