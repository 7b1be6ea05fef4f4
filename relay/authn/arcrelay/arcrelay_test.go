package arcrelay

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net"
	"net/netip"
	"net/smtp"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/mail"
	"crossfade/relay"
	"crossfade/relay/authn/arc"
	"crossfade/relay/smtpclient"
	"crossfade/relay/wire"
	"crossfade/router"
	"crossfade/store/disk"

	"go.uber.org/goleak"
)

// findings stands for the inspectors that judge by SPF, DKIM and DMARC.
type findings struct{ vouched []string }

func (f *findings) Inspect(_ context.Context, m relay.Incoming) relay.Inspection {
	return &finding{f: f, judgement: Find(m.Before)}
}

type finding struct {
	f         *findings
	judgement *Judgement
}

func (x *finding) Sent([]byte) {}
func (x *finding) Kept([]byte) {}
func (x *finding) Close()      {}
func (x *finding) End(context.Context, string) (string, error) {
	method := ""
	if x.judgement != nil {
		method = ";\r\n\t" + x.judgement.Method()
		if by, ok := x.judgement.Vouched("sender.example"); ok {
			x.f.vouched = append(x.f.vouched, by)
		}
	}
	return "Authentication-Results: mx.example.org;\r\n\tspf=pass smtp.mailfrom=ann@sender.example;\r\n\tdmarc=pass (p=none) header.from=sender.example" + method + "\r\nSubject: [new] one\r\nX-Verdict: good\r\n", nil
}

type site struct {
	addr, trusted string
	sink          *mailtest.Sink
	keys          map[string]*rsa.PrivateKey
	dns           map[string]string
	findings      *findings

	mu       sync.Mutex
	judged   []arc.Status
	outcomes []Outcome
}

func (s *site) lookup(_ context.Context, name string) ([]string, error) {
	if r := s.dns[name]; r != "" {
		return []string{r}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// newSite starts a relay that judges and seals, over a store on disk, with a sink
// as the old side.
func newSite(t *testing.T) *site {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	s := &site{keys: map[string]*rsa.PrivateKey{}, dns: map[string]string{}, findings: &findings{}}
	for _, domain := range []string{"example.org", "one.example", "two.example"} {
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		s.keys[domain] = key
		if s.dns["s1._domainkey."+domain], err = arc.Record(key.Public()); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.sink, err = mailtest.NewSink(mailtest.SinkConfig{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.sink.Close() })
	store, err := disk.Open(t.TempDir(), disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s.deliver(t, store)
	s.serve(t, store)
	return s
}

func (s *site) inspectors(t *testing.T) []relay.Inspector {
	v, err := arc.NewVerifier(arc.Config{LookupTXT: s.lookup})
	if err != nil {
		t.Fatal(err)
	}
	judge, err := NewJudge(JudgeConfig{Verifier: v, Trusted: func(d string) bool { return d == "one.example" }, Judged: func(r arc.Status) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.judged = append(s.judged, r)
	}})
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := arc.NewSealer(arc.SealerConfig{Domain: "example.org", Selector: "s1", Key: func() crypto.Signer { return s.keys["example.org"] }})
	if err != nil {
		t.Fatal(err)
	}
	seal, err := NewSeal(SealConfig{Sealer: sealer, AuthservID: "mx.example.org", Done: func(o Outcome) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.outcomes = append(s.outcomes, o)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return []relay.Inspector{judge, s.findings, seal}
}

func (s *site) serve(t *testing.T, store *disk.Store) {
	r, err := router.New(router.Config{Hostname: "mx.example.org", Domains: []string{"example.org"}, Unknown: router.PolicyOld}, store)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := relay.NewServer(relay.ServerConfig{
		Hostname: "mx.example.org", Router: r, Queue: store, Inspectors: s.inspectors(t),
		Wire: wire.Config{Trusted: func(ip netip.Addr) bool { return ip == netip.MustParseAddr("127.0.0.2") }},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-served
	})
}

func (s *site) deliver(t *testing.T, store *disk.Store) {
	b, err := relay.NewBackend(relay.BackendConfig{Name: mail.Old, Target: smtpclient.Target{Network: "tcp", Address: s.sink.Addr(), Mode: smtpclient.Insecure, Hello: "mx.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := relay.NewDeliverer(relay.DelivererConfig{Queue: store, Backends: map[mail.Route]*relay.Backend{mail.Old: b}, Hostname: "mx.example.org", Grace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// through sends messages through the relay and gives what the sink got, in their
// order.
func (s *site) through(t *testing.T, messages ...string) []string {
	t.Helper()
	for i, m := range messages {
		tagged := fmt.Sprintf("X-Number: %d\r\n%s", i, m)
		if err := smtp.SendMail(s.addr, nil, "ann@sender.example", []string{"bob@example.org"}, []byte(tagged)); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	got, err := s.sink.Wait(ctx, len(messages))
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, len(messages))
	for _, m := range got {
		for i := range out {
			if bytes.Contains(m.Body, fmt.Appendf(nil, "\r\nX-Number: %d\r\n", i)) {
				out[i] = string(m.Body)
			}
		}
	}
	return out
}

// seal adds a set as others would.
func (s *site) seal(t *testing.T, msg, domain string) string {
	t.Helper()
	v, _ := arc.NewVerifier(arc.Config{LookupTXT: s.lookup})
	check := v.Begin()
	check.Write([]byte(msg))
	sealer, err := arc.NewSealer(arc.SealerConfig{Domain: domain, Selector: "s1", Key: func() crypto.Signer { return s.keys[domain] }})
	if err != nil {
		t.Fatal(err)
	}
	x := sealer.Begin()
	x.Write([]byte(msg))
	lines, err := x.Seal(check.Finish(t.Context()), domain+"; spf=fail; dmarc=pass header.from=sender.example", "")
	if err != nil {
		t.Fatal(err)
	}
	return lines + msg
}

const message = "From: Ann <ann@sender.example>\r\nTo: bob@example.org\r\nSubject: one, \r\n folded\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\n" +
	"Message-ID: <1@sender.example>\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nHello  world \r\n.a dot\r\n..\r\n\r\n\r\nübrigens\r\n\r\n\r\n"

// TestSealedEndToEnd: what the backend gets is a chain that another
// implementation verifies, with our results in it.
func TestSealedEndToEnd(t *testing.T) {
	s := newSite(t)
	one := s.seal(t, message, "one.example")
	two := s.seal(t, one, "two.example")
	cases := []struct {
		name, msg string
		verdict   string // of dkimpy; empty: the chain has ended
		sets      int
		said      string // of the chain that came
	}{
		{"no chain", message, "pass", 1, "arc=none"},
		{"one set", one, "pass", 2, "arc=pass smtp.remote-ip=127.0.0.1 header.oldest-pass=0"},
		{"two sets", two, "pass", 3, "arc=pass smtp.remote-ip=127.0.0.1 header.oldest-pass=0"},
		{"changed on the way", strings.Replace(two, "Subject: one", "Subject: [list] one", 1), "", 3, "arc=fail"},
		{"forged results", "Authentication-Results: mx.example.org; arc=pass; spf=pass smtp.mailfrom=forged.example\r\n" + message, "pass", 1, "arc=none"},
		{"large", message + strings.Repeat("0123456789 \r\n\r\n", 50_000), "pass", 1, "arc=none"},
		{"no body", "From: ann@sender.example\r\n\r\n", "pass", 1, "arc=none"},
	}
	var sent []string
	for _, c := range cases {
		sent = append(sent, c.msg)
	}
	var jobs []realtest.DKIMPyJob
	got := s.through(t, sent...)
	for i, c := range cases {
		jobs = append(jobs, realtest.DKIMPyJob{Op: "verify", Message: []byte(got[i])})
		order := []string{"ARC-Seal: i=%d;", "\r\nARC-Message-Signature: i=%d;", "\r\nARC-Authentication-Results: i=%d; mx.example.org; ", "\r\nAuthentication-Results: mx.example.org;\r\n\tspf=pass", "\r\nSubject: [new] one\r\nX-Verdict: good\r\nReceived: from", "\r\nFrom:"}
		rest := got[i]
		for n, what := range order {
			if n < 3 {
				what = fmt.Sprintf(what, c.sets)
			}
			at := strings.Index(rest, what)
			if at < 0 || n == 0 && at > 0 {
				t.Fatalf("%s: no %q in its place:\n%.3000s", c.name, what, got[i])
			}
			rest = rest[at+len(what):]
		}
		_, set, _ := strings.Cut(got[i], "ARC-Authentication-Results:")
		set, _, _ = strings.Cut(set, "\r\nAuthentication-Results:")
		set = strings.Join(strings.Fields(set), " ")
		if !strings.Contains(set, c.said) || !strings.Contains(set, "spf=pass smtp.mailfrom=ann@sender.example; dmarc=pass") || strings.Contains(set, "forged") {
			t.Errorf("%s: sealed is %q", c.name, set)
		}
	}
	for i, a := range realtest.DKIMPy(t, s.dns, jobs...) {
		if a.Status != cases[i].verdict || !a.Sets[cases[i].sets].AMS {
			t.Errorf("%s: dkimpy says %q (%s), %+v\n%.3000s", cases[i].name, a.Status, a.Reason, a.Sets, got[i])
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.judged) != "[none pass pass fail none none none]" || fmt.Sprint(s.outcomes) != "[sealed sealed sealed sealed sealed sealed sealed]" {
		t.Errorf("counted %v and %v", s.judged, s.outcomes)
	}
	if fmt.Sprint(s.findings.vouched) != "[one.example one.example]" {
		t.Errorf("vouched for: %v", s.findings.vouched)
	}
}

// TestNotSealedEndToEnd: what cannot be sealed comes through as it is.
func TestNotSealedEndToEnd(t *testing.T) {
	s := newSite(t)
	failed := s.seal(t, strings.Replace(s.seal(t, message, "one.example"), "Subject: one", "Subject: two", 1), "two.example") // says cv=fail
	got := s.through(t, "Subject: no From\r\n\r\nx\r\n", failed)
	for i, m := range got {
		if strings.HasPrefix(m, "ARC-") || !strings.HasPrefix(m, "Authentication-Results: mx.example.org;") {
			t.Errorf("message %d:\n%s", i, m)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.outcomes) != "[not not]" {
		t.Errorf("counted %v", s.outcomes)
	}
}

// TestOwnMailIsLeftAlone: mail of our own systems is neither judged nor sealed.
func TestOwnMailIsLeftAlone(t *testing.T) {
	s := newSite(t)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	conn, err := d.DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Skipf("127.0.0.2 cannot be used here: %v", err)
	}
	c, err := smtp.NewClient(conn, "mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, step := range []error{c.Mail("ann@sender.example"), c.Rcpt("bob@example.org")} {
		if step != nil {
			t.Fatal(step)
		}
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(message))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	got, err := s.sink.Wait(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got[0].Body), "ARC-") || strings.Contains(string(got[0].Body), " arc=") {
		t.Errorf("%s", got[0].Body)
	}
}

func TestConfigs(t *testing.T) {
	if _, err := NewJudge(JudgeConfig{}); err == nil {
		t.Error("a judge of nothing")
	}
	if _, err := NewSeal(SealConfig{}); err == nil {
		t.Error("a seal of nothing")
	}
}
