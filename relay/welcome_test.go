package relay

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/relay/dnsbl"
	"crossfade/relay/limit"
	"crossfade/relay/resolver"
	"crossfade/router"
)

// listing is a Checker of lists that have 127.0.0.1 in one zone, and fail or
// refuse us in others.
func listing(t *testing.T, zones ...dnsbl.List) *dnsbl.Checker {
	t.Helper()
	d, err := mailtest.NewZoneDNS("1.0.0.127.bad.test. 60 IN A 127.0.0.2", "1.0.0.127.worse.test. 60 IN A 127.0.0.9",
		"1.0.0.127.full.test. 60 IN A 127.255.255.254")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	r, err := resolver.New(resolver.Config{Servers: []string{d.Addr}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c, err := dnsbl.New(dnsbl.Config{Resolver: r, Lists: zones})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestListedIsRefused: a client that is listed gets nobody but the postmaster,
// one that an error "lists" gets everybody, and trusted ones are not looked up.
func TestListedIsRefused(t *testing.T) {
	bad := listing(t, dnsbl.List{Zone: "bad.test", Weight: 1})
	s := newLimitedSite(t, limit.Settings{}, func(c *ServerConfig) { c.Welcome.Lists = bad })
	s.table.mu.Lock()
	s.table.users["postmaster@example.org"] = router.User{Address: "postmaster@example.org", Kind: router.KindMailbox, State: router.StateOld, Epoch: 1}
	s.table.mu.Unlock()
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.example>", "250")
	c.cmd("RCPT TO:<ann@example.org>", "550 5.7.1 127.0.0.1 is listed: bad.test (127.0.0.2)")
	c.cmd("RCPT TO:<PostMaster@example.org>", "250")
	if s.hit(limit.Listed) != 1 {
		t.Errorf("counted: %v", s.hits)
	}
	s.srv.SetWelcome(Welcome{Lists: listing(t, dnsbl.List{Zone: "full.test", Weight: 1}, dnsbl.List{Zone: "clear.test", Weight: 1})})
	if got := s.hello().deliver(limitedText, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Errorf("refused for an error: %s", got)
	}
	trusted := newLimitedSite(t, limit.Settings{}, func(c *ServerConfig) {
		c.Welcome = Welcome{Lists: bad, GreetDelay: time.Minute}
		c.Wire.Trusted = netip.Addr.IsLoopback
	})
	if got := trusted.hello().deliver(limitedText, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Errorf("a client of ours was refused: %s", got)
	}
}

// TestListedIsTagged: with tag the mail is taken, and says which lists have its
// client; nothing is said of one that is not listed.
func TestListedIsTagged(t *testing.T) {
	two := []dnsbl.List{{Zone: "bad.test", Weight: 1}, {Zone: "worse.test", Weight: 2}, {Zone: "full.test", Weight: 7}}
	lists := listing(t, two...)
	s := newLimitedSite(t, limit.Settings{}, func(c *ServerConfig) { c.Welcome = Welcome{Lists: lists, Tag: true} })
	c := s.hello()
	if got := c.deliver(limitedText, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	s.srv.SetWelcome(Welcome{Lists: listing(t, two[2]), Tag: true})
	if got := c.deliver(limitedText, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	all := s.queue.all()
	want := "X-Crossfade-DNSBL: score=3;\r\n\tbad.test (127.0.0.2),\r\n\tworse.test (127.0.0.9)\r\n"
	if len(all) != 2 || all[0].env.Trace != want || all[1].env.Trace != "" {
		t.Errorf("the traces: %q, %q", all[0].env.Trace, all[len(all)-1].env.Trace)
	}
	if s.hit(limit.Tagged) != 1 {
		t.Errorf("counted: %v", s.hits)
	}
}

// TestGreetDelay: strangers wait, until the first message of their network was
// taken; exempt clients never do.
func TestGreetDelay(t *testing.T) {
	const delay = 150 * time.Millisecond
	wait := func(s *limitedSite) time.Duration {
		began := time.Now()
		s.dial().want("220")
		return time.Since(began)
	}
	s := newLimitedSite(t, limit.Settings{}, func(c *ServerConfig) { c.Welcome.GreetDelay = delay })
	if d := wait(s); d < delay {
		t.Errorf("a stranger waited %v", d)
	}
	if got := s.hello().deliver(limitedText, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	if d := wait(s); d >= delay {
		t.Errorf("one who is known waited %v", d)
	}
	exempt := newLimitedSite(t, limit.Settings{Ours: netip.Addr.IsLoopback}, func(c *ServerConfig) { c.Welcome.GreetDelay = time.Minute })
	if d := wait(exempt); d > 10*time.Second {
		t.Errorf("an exempt client waited %v", d)
	}
}
