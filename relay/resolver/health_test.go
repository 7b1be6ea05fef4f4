package resolver

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/miekg/dns"
)

// TestTroubles: a server is told of when it lies to everything, or has had no answer to anything for a minute and ten
// questions; not when it has none to some.
func TestTroubles(t *testing.T) {
	var twist atomic.Pointer[func(req, resp *dns.Msg) *dns.Msg]
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg { return (*twist.Load())(req, resp) })
	servfail := func(req, resp *dns.Msg) *dns.Msg { return resp.SetRcode(req, dns.RcodeServerFailure) }
	well := func(_, resp *dns.Msg) *dns.Msg { return resp }
	r, clock := newResolver(t, d.Addr, nil)
	n := 0
	ask := func(how func(req, resp *dns.Msg) *dns.Msg, times int, told bool) {
		t.Helper()
		twist.Store(&how)
		for range times {
			n++
			_, _ = r.LookupTXT(t.Context(), strings.Repeat("a", n)+".test")
		}
		if got := r.Troubles(); (len(got) == 1) != told || told && (got[0].Server != d.Addr || got[0].Since.IsZero() || !strings.Contains(got[0].Says, "SERVFAIL")) {
			t.Errorf("after %d questions: %+v, want one: %t", n, got, told)
		}
	}
	ask(servfail, 20, false) // for a moment
	clock.add(uselessFor)
	ask(well, 1, false)
	ask(servfail, 1, false)
	clock.add(uselessFor)
	ask(servfail, 2, false) // too few: it had none to three
	ask(servfail, 10, true)
	if down, _ := r.Down(); down != 0 {
		t.Error("it lives, and is asked on")
	}
	ask(well, 1, false)
}

// TestLiarIsDown: a server that answers other things than it is asked, the root's name servers too, is as good as dead, and
// costs no time; when it answers right it is asked again.
func TestLiarIsDown(t *testing.T) {
	var honest atomic.Bool
	d, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
		resp := new(dns.Msg).SetReply(req)
		resp.Answer = []dns.RR{rr(req.Question[0].Name + " 60 IN TXT true")}
		if !honest.Load() {
			resp.Id++
		}
		return resp
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, clock := newResolver(t, d.Addr, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	for _, name := range []string{"a.test", "b.test", "c.test", "d.test"} { // nobody has the time to look at the server
		if _, err := r.LookupTXT(t.Context(), name); !errors.Is(err, ErrTemporary) {
			t.Fatal(err)
		}
	}
	if down, _ := r.Down(); down != 1 || len(r.Troubles()) != 1 {
		t.Fatalf("%d are down, troubles %v", down, r.Troubles())
	}
	honest.Store(true)
	clock.add(maxRest)
	if a, err := r.LookupTXT(t.Context(), "e.test"); err != nil || len(a.Records) != 1 || len(r.Troubles()) != 0 {
		t.Errorf("%v, %v, troubles %v", a, err, r.Troubles())
	}
}
