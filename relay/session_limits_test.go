package relay

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/relay/limit"
	"crossfade/relay/wire"
	"crossfade/router"
)

// limitedSite has a guard, and notes which limits were reached.
type limitedSite struct {
	*inSite
	mu   sync.Mutex
	hits map[string]int
}

func newLimitedSite(t *testing.T, set limit.Settings, more ...func(*ServerConfig)) *limitedSite {
	l := &limitedSite{hits: map[string]int{}}
	l.inSite = newSite(t, router.PolicyReject, func(c *ServerConfig) {
		c.Guard = limit.New(set)
		c.Metrics.Limited = func(name string) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.hits[name]++
		}
		for _, f := range more {
			f(c)
		}
	})
	return l
}

// also serves one more listener, which is the one that is dialled from now on.
func (l *limitedSite) also(opts ListenerOptions) {
	l.t.Helper()
	more, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.addr = more.Addr().String()
	go func() { _ = l.srv.ServeWith(more, opts) }() // the first listener's end is the end of both
}

func (l *limitedSite) hit(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hits[name]
}

const limitedText = "Subject: x\r\n\r\nx\r\n"

// TestRates: each rate has its reply and its count, and a limit of one is not
// that of another.
func TestRates(t *testing.T) {
	hour := func(n int) limit.Rate { return limit.Rate{Count: n, Per: time.Hour} }
	for name, c := range map[string]struct {
		set  limit.Settings
		want []string // replies to three messages: to ann from b.example, to ann from c.example, to bob from b.example
		hit  string
	}{
		"messages of a host":          {limit.Settings{Host: limit.Rates{Messages: hour(1)}}, []string{"250", "450 4.7.1", "450 4.7.1"}, limit.HostMessages},
		"messages of a network":       {limit.Settings{Network: limit.Rates{Messages: hour(2)}}, []string{"250", "250", "450 4.7.1"}, limit.NetworkMessages},
		"messages of a domain":        {limit.Settings{SenderDomain: limit.Rates{Messages: hour(1)}}, []string{"250", "250", "450 4.7.1"}, limit.DomainMessages},
		"recipients of a host":        {limit.Settings{Host: limit.Rates{Recipients: hour(1)}}, []string{"250", "450 4.7.1", "450 4.7.1"}, limit.HostRecipients},
		"recipients of a network":     {limit.Settings{Network: limit.Rates{Recipients: hour(2)}}, []string{"250", "250", "450 4.7.1"}, limit.NetworkRecipients},
		"recipients of a domain":      {limit.Settings{SenderDomain: limit.Rates{Recipients: hour(1)}}, []string{"250", "250", "450 4.7.1"}, limit.DomainRecipients},
		"messages for one mailbox":    {limit.Settings{Recipient: hour(1)}, []string{"250", "450 4.2.1", "250"}, limit.RecipientMessages},
		"a client of ours":            {limit.Settings{Host: limit.Rates{Messages: hour(1)}, Recipient: hour(1), Ours: netip.Addr.IsLoopback}, []string{"250", "250", "250"}, ""},
		"none of it where it is zero": {limit.Settings{}, []string{"250", "250", "250"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newLimitedSite(t, c.set)
			for i, m := range []struct{ from, to string }{{"b.example", "ann"}, {"c.example", "ann"}, {"B.Example", "bob"}} {
				p := s.hello()
				p.send(fmt.Sprintf("MAIL FROM:<x@%s>\r\n", m.from))
				got := p.reply()
				if strings.HasPrefix(got, "250") {
					p.send(fmt.Sprintf("RCPT TO:<%s@example.org>\r\n", m.to))
					if got = p.reply(); strings.HasPrefix(got, "250") {
						p.cmd("DATA", "354")
						p.send(limitedText + ".\r\n")
						p.want("250")
					}
				}
				if !strings.HasPrefix(got, c.want[i]) {
					t.Errorf("message %d: %q, want %s", i+1, got, c.want[i])
				}
			}
			if c.hit != "" && s.hit(c.hit) == 0 {
				t.Errorf("%s was not counted: %v", c.hit, s.hits)
			}
		})
	}
}

// TestBusyMailbox: only mail that is taken counts for its recipient. Whoever names
// one a hundred times, and sends nothing, keeps nobody's mail from him.
func TestBusyMailbox(t *testing.T) {
	s := newLimitedSite(t, limit.Settings{Recipient: limit.Rate{Count: 2, Per: time.Hour}})
	c := s.hello()
	for range 20 {
		c.cmd("MAIL FROM:<a@b.example>", "250")
		for range 5 {
			c.cmd("RCPT TO:<ann@example.org>", "250")
		}
		c.cmd("RSET", "250")
	}
	for range 2 {
		c.cmd("MAIL FROM:<a@b.example>", "250")
		c.cmd("RCPT TO:<ann@example.org>", "250")
		c.cmd("RCPT TO:<Ann@Example.org>", "250")
		c.cmd("DATA", "354")
		c.send(limitedText + ".\r\n")
		c.want("250")
	}
	c.cmd("MAIL FROM:<a@b.example>", "250")
	c.cmd("RCPT TO:<ann@example.org>", "450 4.2.1")
	c.cmd("RCPT TO:<bob@example.org>", "250")
	if n := s.hit(limit.RecipientMessages); n != 1 {
		t.Errorf("reached %d times", n)
	}
}

// TestHarvest: somebody who tries names is slowed, then cut, and is not better
// off on a new connection; recipients who exist are answered all the while; mail
// that is taken heals.
func TestHarvest(t *testing.T) {
	set := limit.Settings{Failed: limit.Failed{SlowAfter: 3, Delay: 30 * time.Millisecond, MaxDelay: 60 * time.Millisecond, CutAfter: 6}}
	s := newLimitedSite(t, set)
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.example>", "250")
	try := func(i int) (string, time.Duration) {
		began := time.Now()
		c.send(fmt.Sprintf("RCPT TO:<no%d@example.org>\r\n", i))
		return c.reply(), time.Since(began)
	}
	for i, least := range []time.Duration{0, 0, 0, 30, 60, 60} {
		got, took := try(i)
		if !strings.HasPrefix(got, "550 5.1.1") || took < least*time.Millisecond {
			t.Errorf("name %d: %q after %v, want 550 after %d ms", i+1, got, took, least)
		}
		c.cmd("RCPT TO:<ann@example.org>", "250")
		c.cmd("RSET", "250")
		c.cmd("MAIL FROM:<a@b.example>", "250")
	}
	if got, _ := try(7); !strings.HasPrefix(got, "421 4.7.0") {
		t.Errorf("name 7: %q", got)
	}
	s.dial().want("421 4.7.0 too many unknown recipients") // a new connection, from the same network
	s.also(ListenerOptions{Auth: wire.AuthRequired})
	s.dial().want("220") // where a login comes before any name
	if s.hit(limit.Slowed) != 4 || s.hit(limit.FailedRecipients) != 1 {
		t.Errorf("counted: %v", s.hits)
	}
}

// TestHarvestHeals: a sender with a list that is half dead is not taken for one.
func TestHarvestHeals(t *testing.T) {
	set := limit.Settings{Failed: limit.Failed{SlowAfter: 3, Delay: time.Minute, MaxDelay: time.Minute, CutAfter: 6}}
	s := newLimitedSite(t, set)
	for range 10 {
		c := s.hello()
		c.cmd("MAIL FROM:<a@b.example>", "250")
		for i := range 2 {
			c.cmd(fmt.Sprintf("RCPT TO:<no%d@example.org>", i), "550 5.1.1")
		}
		c.cmd("RCPT TO:<ann@example.org>", "250")
		c.cmd("RCPT TO:<bob@example.org>", "250")
		c.cmd("DATA", "354")
		c.send(limitedText + ".\r\n")
		c.want("250")
		c.cmd("QUIT", "221")
	}
	if n := s.hit(limit.Slowed); n != 0 {
		t.Errorf("%d replies were kept back", n)
	}
}

// TestHeaderFields: a hundred thousand header fields are refused at the first one
// too many, in the time that it takes to read them.
func TestHeaderFields(t *testing.T) {
	s := newLimitedSite(t, limit.Settings{})
	for n, want := range map[int]string{10_000: "250", 10_001: "554 5.6.0", 100_000: "554 5.6.0"} {
		began := time.Now()
		if got := s.hello().deliver(strings.Repeat("X-A: b\r\n", n)+"\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, want) {
			t.Errorf("%d fields: %s", n, got)
		}
		t.Logf("%d header fields: %v", n, time.Since(began))
	}
	if s.hit(limit.HeaderFields) != 2 {
		t.Errorf("counted: %v", s.hits)
	}
}
