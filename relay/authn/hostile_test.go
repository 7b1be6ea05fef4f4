package authn

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/relay/resolver"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/miekg/dns"
)

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap watches how much memory is live while it runs.
func heap(work func()) (grown uint64) {
	var before, now runtime.MemStats
	live := func(m *runtime.MemStats) {
		runtime.GC()
		runtime.ReadMemStats(m)
	}
	live(&before)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				live(&now)
				if now.HeapAlloc > before.HeapAlloc {
					grown = max(grown, now.HeapAlloc-before.HeapAlloc)
				}
			}
		}
	}()
	work()
	close(stop)
	<-done
	return grown
}

// TestHostileMessages: messages that are made to cost much take bounded time and memory, which is printed.
func TestHostileMessages(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "v=DMARC1; p=none")...)
	simple := func(o *dkim.SignOptions) { o.HeaderCanonicalization, o.BodyCanonicalization = "simple", "simple" }
	signed := func(body string, change func(*dkim.SignOptions)) []byte {
		// Of a short body: only that the signatures are looked at matters.
		msg := sign(t, letter("a@example.com", "x\n"), "example.com", "rsa", change)
		return append(msg, body...)
	}
	signedRight := sign(t, letter("a@example.com", "x\n"), "example.com", "rsa", simple)
	other := "DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=example.com; s=rsa; h=from:to:subject:dkim-signature; bh=AAAA; b=AAAA\r\n"
	names := strings.TrimSuffix(strings.Repeat("x:", 5000), ":")
	blank := strings.Repeat("\r\n", mega/2)
	for _, tt := range []struct {
		name  string
		msg   func() []byte
		want  Result
		limit time.Duration
	}{
		{"50 MB of blank lines at the end, simple", func() []byte { return append(bytes.Clone(signedRight), blank...) }, Pass, 2 * time.Second},
		{"50 MB of blank lines with text behind, simple", func() []byte { return signed(blank+"x\r\n", simple) }, Fail, 2 * time.Second},
		{"50 MB of blank lines with text behind, relaxed", func() []byte { return signed(blank+"x\r\n", nil) }, Fail, 2 * time.Second},
		{"10 MB of lines of a blank each, relaxed", func() []byte { return signed(strings.Repeat(" \r\n", large/3), nil) }, Pass, 2 * time.Second},
		{"50 MB of 64 KiB of blank lines and a letter, simple", func() []byte {
			return signed(strings.Repeat(strings.Repeat("\r\n", 32<<10)+"x\r\n", mega>>16), simple)
		}, Fail, 5 * time.Second},
		{"10 MB of text with 8 signatures", func() []byte {
			return append([]byte(strings.Repeat(other, 7)), signed(strings.Repeat("a line of text like many others\r\n", large/33), simple)...)
		}, Fail, 20 * time.Second},
		{"100,000 header fields", func() []byte { return append([]byte(strings.Repeat("X: y\r\n", 100_000)), signedRight...) }, Policy, time.Second},
		{"20,000 header fields in 120 KiB, all signed", func() []byte { return signedFields("X: \r\n", 20_000, names) }, PermError, time.Second},
		{"900 header fields, 200 names", func() []byte { return signedFields("X: \r\n", 900, names[:399]) }, PermError, time.Second},
		{"10,000 DKIM signatures", func() []byte { return append([]byte(strings.Repeat(other, 10_000)), signedRight...) }, Policy, time.Second},
		{"800 DKIM signatures in 110 KiB", func() []byte { return append([]byte(strings.Repeat(other, 800)), signedRight...) }, Fail, time.Second},
		{"a header field of 10 MB", func() []byte { return append([]byte("X: "+strings.Repeat("x\r\n ", large/4)+"\r\n"), signedRight...) }, Policy, 2 * time.Second},
		{"a From of 1 MB of comments", func() []byte {
			return append([]byte("From: "+strings.Repeat("(", 1<<19)+strings.Repeat(")", 1<<19)+" a@example.com\r\n"), signedRight...)
		}, Policy, time.Second},
		{"a From of 60 KiB of addresses", func() []byte {
			return append([]byte("From: "+strings.Repeat("a@b.c,\r\n ", 60<<10/9)+"a@b.c\r\n"), signedRight...)
		}, Pass, time.Second},
		{"a Subject of 20,000 lines, 8 signatures, simple", func() []byte { return folded("simple") }, Fail, time.Second},
		{"a Subject of 20,000 lines, 8 signatures, relaxed", func() []byte { return folded("relaxed") }, Fail, time.Second},
	} {
		var r *Report
		msg := tt.msg()
		used := cpu()
		began := time.Now()
		r = check(t, c, "a@example.com", msg, 32<<10)
		took := time.Since(began)
		used = cpu() - used
		grown := heap(func() { check(t, c, "a@example.com", msg, 32<<10) })
		if len(r.DKIM) == 0 {
			t.Fatalf("%s: %+v", tt.name, r)
		}
		if r.DKIM[0].Result != tt.want {
			t.Errorf("%s: %+v", tt.name, r.DKIM)
		}
		limit := tt.limit * slowness
		if took > limit {
			t.Errorf("%s: it took %v", tt.name, took)
		}
		if grown > 24<<20 {
			t.Errorf("%s: %d MB more memory", tt.name, grown>>20)
		}
		figure(t, "%s (%d KB): %.0f ms, CPU %.0f ms, up to %.1f MB more memory: %s %s", tt.name, len(msg)>>10, took.Seconds()*1000, used.Seconds()*1000,
			float64(grown)/(1<<20), r.DKIM[0].Result, r.DKIM[0].Reason)
	}
}

// folded is a message with a field of very many lines, which its signatures name.
func folded(form string) []byte {
	one := "DKIM-Signature: v=1; a=rsa-sha256; c=" + form + "/simple; d=example.com; s=rsa; h=from:subject; bh=AAAA; b=AAAA\r\n"
	return []byte(strings.Repeat(one, 8) + "From: a@example.com\r\nSubject: x" + strings.Repeat("\r\n ", 20_000) + "y\r\n\r\nx\r\n")
}

// signedFields is a message with many fields that its signature names.
func signedFields(field string, n int, names string) []byte {
	return []byte(strings.Repeat(field, n) + "DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=rsa; h=from:" + names + "; bh=AAAA; b=AA\r\nFrom: a@example.com\r\n\r\nx\r\n")
}

// TestLargeKeyIsFree: a key of 16 kbit costs nothing, because nobody computes with it.
func TestLargeKeyIsFree(t *testing.T) {
	var b strings.Builder
	for range 6 {
		b.WriteString(strings.Repeat("A", 700))
	}
	c := newChecker(t, nil, append(domain("example.com", ""), txt("huge._domainkey.example.com", "v=DKIM1; p="+b.String()))...)
	msg := sign(t, letter("a@example.com", "x\n"), "example.com", "rsa", nil)
	msg = bytes.Replace(msg, []byte("s=rsa"), []byte("s=huge"), 1)
	used := cpu()
	for range 1000 {
		if r := check(t, c, "a@example.com", msg, whole); r.DKIM[0].Result != Policy {
			t.Fatal(r.DKIM)
		}
	}
	if each := (cpu() - used) / 1000; each > 2*time.Millisecond*slowness {
		t.Errorf("each takes %v", each)
	} else {
		figure(t, "a message with a key of 25 kbit: CPU %d µs", each.Microseconds())
	}
}

// TestHostileDNS: whatever the servers of a sender do, a message waits a bounded time, asks a bounded number of questions,
// and is not refused for it.
func TestHostileDNS(t *testing.T) {
	msg := sign(t, letter("a@example.com", "x\n"), "example.com", "rsa", nil)
	signedTwice := append([]byte("DKIM-Signature: v=1; a=rsa-sha256; d=other.example.com; s=rsa; h=from; bh=AAAA; b=AAAA\r\n"), msg...)
	rr := func(text string) dns.RR {
		r, err := dns.NewRR(text)
		if err != nil {
			panic(text + ": " + err.Error())
		}
		return r
	}
	for name, tt := range map[string]struct {
		answer func(name string, q dns.Question, resp *dns.Msg) *dns.Msg
		want   Result // of SPF
		dmarc  Result
	}{
		"silent":     {func(string, dns.Question, *dns.Msg) *dns.Msg { return nil }, TempError, TempError},
		"SERVFAIL":   {func(_ string, _ dns.Question, m *dns.Msg) *dns.Msg { m.Rcode = dns.RcodeServerFailure; return m }, TempError, TempError},
		"another id": {func(_ string, _ dns.Question, m *dns.Msg) *dns.Msg { m.Id++; return m }, TempError, TempError},
		"1,000 records": {func(n string, _ dns.Question, m *dns.Msg) *dns.Msg {
			for i := range 1000 {
				m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 1 IN TXT x%d", n, i)))
			}
			return m
		}, PermError, PermError},
		"CNAMEs in a circle": {func(n string, _ dns.Question, m *dns.Msg) *dns.Msg {
			m.Answer = []dns.RR{rr(n + " 1 IN CNAME loop.test."), rr("loop.test. 1 IN CNAME " + n)}
			return m
		}, PermError, PermError},
		"a huge record": {func(n string, _ dns.Question, m *dns.Msg) *dns.Msg {
			m.Answer = []dns.RR{rr(n + ` 1 IN TXT "v=spf1 " ` + strings.Repeat(`"`+strings.Repeat("a:b.c ", 40)+`" `, 200))}
			return m
		}, PermError, None},
		"SPF that includes itself": {func(n string, _ dns.Question, m *dns.Msg) *dns.Msg {
			m.Answer = []dns.RR{rr(n + ` 1 IN TXT "v=spf1 include:` + strings.TrimSuffix(n, ".") + ` -all"`)}
			return m
		}, PermError, None},
		"SPF that includes ever more": {func(n string, _ dns.Question, m *dns.Msg) *dns.Msg {
			if strings.Count(n, ".") < 30 && !strings.HasPrefix(n, "_dmarc") {
				m.Answer = []dns.RR{rr(n + ` 1 IN TXT "v=spf1 include:a.` + n + ` include:b.` + n + ` mx -all"`)}
			}
			return m
		}, PermError, None},
		"ten MX of hosts that do not answer": {func(n string, q dns.Question, m *dns.Msg) *dns.Msg {
			switch {
			case strings.HasPrefix(n, "_"), strings.Contains(n, "_domainkey"):
			case q.Qtype == dns.TypeTXT:
				m.Answer = []dns.RR{rr(n + ` 1 IN TXT "v=spf1 mx -all"`)}
			case q.Qtype == dns.TypeMX:
				for i := range 10 {
					m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 1 IN MX 1 h%d.example.com.", n, i)))
				}
			default:
				return nil
			}
			return m
		}, TempError, None},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
				resp := new(dns.Msg).SetReply(req)
				if req.Question[0].Name == "." {
					return resp
				}
				return tt.answer(req.Question[0].Name, req.Question[0], resp)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			c := checkerAt(t, d.Addr, func(cfg *Config) { cfg.Enforce = EnforceReject; cfg.Timeout = 500 * time.Millisecond })
			began := time.Now()
			r := check(t, c, "a@example.com", signedTwice, whole)
			if took := time.Since(began); took > 2*time.Second*slowness {
				t.Errorf("it took %v", took)
			}
			if r.SPF.Result != tt.want || r.DMARC.Result != tt.dmarc || r.Refusal() != nil || len(r.DKIM) != 2 || r.BestDKIM() == Pass {
				t.Errorf("%+v", r)
			}
			if n := d.Asked(); n > 2*maxQuestions {
				t.Errorf("%d questions", n)
			}
		})
	}
}

// TestForgedByManyLookups: a forger whose own domain publishes an SPF record of very many lookups, and who signs in the
// name of the author with a key that is not there, does not use up what the author's policy and keys are looked up with.
func TestForgedByManyLookups(t *testing.T) {
	zone := []string{txt("_dmarc.bank.com", "v=DMARC1; p=reject"), "bank.com. 300 IN A 192.0.2.1"}
	var spf strings.Builder
	for i := range 10 {
		fmt.Fprintf(&spf, "mx:m%d.forger.net ", i)
		for j := range 10 {
			host := fmt.Sprintf("h%d-%d.forger.net.", i, j)
			zone = append(zone, fmt.Sprintf("m%d.forger.net. 300 IN MX 1 %s", i, host), host+" 300 IN A 198.51.100.1")
		}
	}
	zone = append(zone, txt("forger.net", "v=spf1 "+spf.String()+"-all"))
	c := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceReject }, zone...)
	k := c.Begin(t.Context(), Message{ID: "01", Client: client, Helo: "x", From: mail.Address{Local: "a", Domain: "forger.net"}})
	defer k.Close()
	k.spf.get() // it has looked up all that it may
	k.Write([]byte("DKIM-Signature: v=1; a=rsa-sha256; d=bank.com; s=none; h=from; bh=AAAA; b=AAAA\r\n"))
	k.Write(letter("ceo@bank.com", "Pay.\n"))
	r := k.End(t.Context())
	if r.SPF.Result != TempError || !strings.Contains(r.SPF.Reason, "more lookups") {
		t.Errorf("the forger's SPF did not use up its lookups: %+v", r.SPF)
	}
	if r.DMARC.Result != Fail || r.DKIM[0].Result != PermError || r.Disposition != EnforceReject {
		t.Errorf("%+v %+v, done %s", r.DKIM, r.DMARC, r.Disposition)
	}
}

// TestManyAtOnce: many messages at once: all are judged right.
func TestManyAtOnce(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "v=DMARC1; p=reject")...)
	short := sign(t, letter("a@example.com", "x\n"), "example.com", "ed", nil)
	long := sign(t, letter("a@example.com", strings.Repeat("a line of text\n", 10_000)), "example.com", "rsa", nil)
	var wg sync.WaitGroup
	for i := range 150 {
		wg.Go(func() {
			msg := short
			if i%3 == 0 {
				msg = long
			}
			k := c.Begin(t.Context(), Message{Client: client, Helo: "x", From: mail.Address{Local: "a", Domain: "elsewhere.net"}})
			defer k.Close()
			feed(k, msg, 5000)
			if r := k.End(t.Context()); r.DMARC.Result != Pass {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
}

// TestSlowStranger: a stranger whose names are never answered has no part in the lookups of others.
func TestSlowStranger(t *testing.T) {
	good, err := dns.NewRR(txt("example.com", "v=spf1 ip4:192.0.2.10 -all"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
		n, resp := req.Question[0].Name, new(dns.Msg).SetReply(req)
		switch {
		case strings.Contains(n, "slow"):
			return nil
		case req.Question[0].Qtype == dns.TypeTXT && n == "example.com.":
			resp.Answer = []dns.RR{good}
		}
		return resp
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := resolver.New(resolver.Config{Servers: []string{d.Addr}, Timeout: 5 * time.Second, MaxInFlight: 16})
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Hostname: "mx.example.org", Resolver: r, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		from := mail.Address{Local: "a", Domain: fmt.Sprintf("slow%d.test", i)}
		k := c.Begin(t.Context(), Message{ID: "01", Client: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), Helo: "x", From: from})
		defer k.Close()
		k.Write(letter(from.String(), "Hi.\n"))
	}
	for deadline := time.Now().Add(10 * time.Second); d.Asked() < 2; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nothing is asked")
		}
	}
	if got := check(t, c, "a@example.com", letter("a@example.com", "Hi.\n"), whole); got.SPF.Result != Pass || got.Took > 2*time.Second {
		t.Errorf("%+v after %v", got.SPF, got.Took)
	}
}
