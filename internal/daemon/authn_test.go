package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/smtp"
	"net/textproto"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/resolver"

	"github.com/miekg/dns"
)

// authnSite is a relay in front of two sinks, with a real name server for the domains of senders.
type authnSite struct {
	t    *testing.T
	d    *Daemon
	ns   *realtest.NSD
	sink *mailtest.Sink
	key  string // file with the private key of all domains
}

const authnHead = `$TTL 60
@ SOA ns1 hostmaster 1 3600 600 604800 60
@ NS ns1
ns1 A 192.0.2.53
`

// newAuthnSite starts one. options go into smtp; KEY in them is the file of the key.
func newAuthnSite(t *testing.T, options string) *authnSite {
	t.Helper()
	s := &authnSite{t: t, key: t.TempDir() + "/key.pem"}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := base64.StdEncoding.EncodeToString(pub)
	zone := func(spf, policy string) string {
		return authnHead + fmt.Sprintf("@ TXT %q\n_dmarc TXT %q\nsel._domainkey TXT \"v=DKIM1; k=rsa; p=%s\" %q\n", spf, policy, p[:200], p[200:])
	}
	s.ns = realtest.StartNSD(t, map[string]string{
		"good.test":   zone("v=spf1 ip4:127.0.0.1 -all", "v=DMARC1; p=reject"),
		"strict.test": zone("v=spf1 -all", "v=DMARC1; p=reject"),
		"aside.test":  zone("v=spf1 -all", "v=DMARC1; p=quarantine"),
	})
	s.sink = newAuthnSink(t)
	other := newAuthnSink(t)
	s.d = serveTest(t, t.TempDir(), fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: [%q]%s}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old: {smtp: "smtp+insecure://%s"}
  new: {smtp: "smtp+insecure://%s"}
routing: {unknown: old}
queue: {min_free: 0}
`, s.ns.Addr, strings.ReplaceAll(options, "KEY", s.key), s.sink.Addr(), other.Addr()))
	return s
}

func newAuthnSink(t *testing.T) *mailtest.Sink {
	t.Helper()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	return sink
}

// sign has dkimpy sign a message.
func (s *authnSite) sign(domain, msg string) string {
	s.t.Helper()
	cmd := exec.Command(realtest.Need(s.t, "dkimsign"), "sel", domain, s.key)
	cmd.Stdin = strings.NewReader(msg)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("dkimsign: %v: %s", err, problem.String())
	}
	return out.String()
}

// send hands a message over and gives the code and text of the reply.
func (s *authnSite) send(from, msg string) (int, string) {
	s.t.Helper()
	err := smtp.SendMail(s.d.SMTPAddrs()[0].String(), nil, from, []string{"ann@example.org"}, []byte(msg))
	var reply *textproto.Error
	switch {
	case err == nil:
		return 250, ""
	case errors.As(err, &reply):
		return reply.Code, reply.Msg
	}
	s.t.Fatal(err)
	return 0, ""
}

// delivered gives the only message that came to the backend.
func (s *authnSite) delivered() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	msgs, err := s.sink.Wait(ctx, 1)
	if err != nil || len(msgs) != 1 {
		s.t.Fatalf("%d messages came to the backend: %v", len(msgs), err)
	}
	s.sink.Forget()
	return string(msgs[0].Body)
}

// metrics gives the lines of the metrics.
func (s *authnSite) metrics() string {
	s.t.Helper()
	resp, err := http.Get(s.d.AdminURL() + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// TestAuthentication: what dkimpy signed comes through a whole relay, with a real name server behind it, with the right
// verdicts on top, without what was forged in our name, and otherwise as it was sent.
func TestAuthentication(t *testing.T) {
	s := newAuthnSite(t, ", authentication: {enforce: reject}")
	plain := "From: Joe <joe@news.good.test>\r\nTo: ann@example.org\r\nSubject: a test\r\nDate: Fri, 11 Jul 2025 21:00:37 -0700\r\n\r\n" +
		strings.Repeat("Some text, and  more. \r\n", 5000) + "\r\n\r\n"
	signed := s.sign("good.test", plain)
	forged := "Authentication-Results: mx.example.org;\r\n\tdmarc=pass header.from=bank.example\r\n"
	if code, text := s.send("bounce@good.test", forged+signed); code != 250 {
		t.Fatal(code, text)
	}
	got := s.delivered()
	top, below := strings.CutSuffix(got, signed)
	if !below || strings.Contains(got, "bank.example") {
		t.Errorf("below our trace it is not what was signed, or what was forged is there:\n%.1500s", got)
	}
	for _, want := range []string{
		"Authentication-Results: mx.example.org;\r\n\tspf=pass smtp.mailfrom=bounce@good.test;\r\n\tdkim=pass header.d=good.test header.s=sel",
		"dmarc=pass (p=reject policy=reject done=none)", "header.from=news.good.test\r\nReceived: from localhost",
	} {
		if !strings.Contains(top, want) {
			t.Errorf("on top there is no %q:\n%s", want, top)
		}
	}
	if code, text := s.send("x@nobody.test", strings.Replace(plain, "news.good.test", "strict.test", 1)); code != 550 ||
		!strings.Contains(text, "5.7.1 refused by the DMARC policy of strict.test") {
		t.Errorf("what fails a policy of reject: %d %s", code, text)
	}
	if code, text := s.send("x@nobody.test", strings.Replace(plain, "news.good.test", "aside.test", 1)); code != 250 {
		t.Fatal(code, text)
	}
	if got := s.delivered(); !strings.HasPrefix(got, "X-Crossfade-Quarantine: dmarc=fail policy.domain=aside.test\r\nAuthentication-Results: mx.example.org;") {
		t.Errorf("what fails a policy of quarantine:\n%.500s", got)
	}
	s.ns.Stop(t)
	if code, text := s.send("x@strict.test", strings.Replace(plain, "news.good.test", "other.strict.test", 1)); code != 250 {
		t.Errorf("without DNS: %d %s", code, text)
	}
	if got := s.delivered(); !strings.Contains(got, "spf=") || !strings.Contains(got, "dmarc=temperror") {
		t.Errorf("without DNS:\n%.500s", got)
	}
	text := s.metrics()
	for _, want := range []string{
		`crossfade_authentication_results_total{method="dkim",result="pass"} 1`, `crossfade_authentication_enforced_total{what="reject"} 1`,
		`crossfade_authentication_enforced_total{what="quarantine"} 1`, `crossfade_forged_results_total 1`, `crossfade_resolver_lookups_total{result="found",type="TXT"}`,
		`crossfade_authentication_results_total{method="dmarc",result="temperror"} 1`, `crossfade_authentication_wait_seconds_count 4`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

// TestAuthenticationOfOurs: mail of trusted systems is not checked, and keeps what they wrote; nothing is checked when that is off.
func TestAuthenticationOfOurs(t *testing.T) {
	msg := "Authentication-Results: mx.example.org; spf=pass\r\nFrom: joe@strict.test\r\n\r\nHi.\r\n"
	for name, options := range map[string]string{
		"trusted": ", trusted: [127.0.0.1/32], authentication: {enforce: reject}",
		"off":     ", authentication: {verify: false}",
	} {
		s := newAuthnSite(t, options)
		if code, text := s.send("joe@strict.test", msg); code != 250 {
			t.Fatal(code, text)
		}
		got := s.delivered()
		if !strings.HasPrefix(got, "Received:") || strings.Count(got, "Authentication-Results:") != map[string]int{"trusted": 1}[name] {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

// TestStrangersDoNotHoldUpDeliveries: however many answers the relay waits for because of strangers, what is published
// about the servers that mail is delivered to can be asked for.
func TestStrangersDoNotHoldUpDeliveries(t *testing.T) {
	var slow atomic.Int64
	ns, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
		resp := new(dns.Msg).SetReply(req)
		if strings.HasSuffix(req.Question[0].Name, ".slow.test.") {
			slow.Add(1)
			return nil
		}
		return resp
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	d, err := New(parse(t, t.TempDir(), fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: [%q]}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends: {old: {smtp: "smtp://127.0.0.1:9"}, new: {smtp: "smtp://127.0.0.1:8"}}
routing: {unknown: old}
`, ns.Addr)), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range resolver.DefaultMaxInFlight + 50 {
		wg.Go(func() { _, _ = d.resolver.LookupA(ctx, fmt.Sprintf("n%d.slow.test", i)) })
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); slow.Load() < resolver.DefaultMaxInFlight; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d questions are under way", slow.Load())
		}
	}
	soon, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	if _, err := d.policies.resolver.LookupA(soon, "mx.test"); err != nil {
		t.Error(err)
	}
}
