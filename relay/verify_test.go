package relay

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/mail"
	"crossfade/router"
)

// fakeProber answers from a table and counts the questions.
type fakeProber struct {
	mu    sync.Mutex
	says  map[string]Knows // by local part; "" is for all others
	asked int
	now   int // at this moment
	most  int
	delay time.Duration
}

func (p *fakeProber) Probe(ctx context.Context, a mail.Address) Knows {
	p.mu.Lock()
	p.asked++
	p.now++
	p.most = max(p.most, p.now)
	says, ok := p.says[a.Local]
	if !ok {
		says = p.says[""]
	}
	delay := p.delay
	p.mu.Unlock()
	defer func() { p.mu.Lock(); p.now--; p.mu.Unlock() }()
	if delay == 0 {
		return says
	}
	select {
	case <-time.After(delay):
		return says
	case <-ctx.Done():
		return Unsure
	}
}

func (p *fakeProber) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *fakeProber) say(local string, k Knows) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.says[local] = k
}

func always(k Knows) *fakeProber { return &fakeProber{says: map[string]Knows{"": k}} }

func at(local string) mail.Address { return mail.Address{Local: local, Domain: "example.org"} }

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		old, new Knows
		want     Verdict
	}{
		{KnowsIt, KnowsIt, Verdict{true, mail.Old, true}},
		{KnowsIt, KnowsNo, Verdict{true, mail.Old, true}},
		{KnowsIt, Unsure, Verdict{true, mail.Old, true}},
		{KnowsNo, KnowsIt, Verdict{true, mail.New, true}},
		{KnowsNo, KnowsNo, Verdict{false, "", true}},
		{KnowsNo, Unsure, Verdict{true, mail.Old, false}},
		{Unsure, KnowsIt, Verdict{true, mail.Old, false}}, // old may know him too
		{Unsure, KnowsNo, Verdict{true, mail.Old, false}},
		{Unsure, Unsure, Verdict{true, mail.Old, false}},
	} {
		v := NewVerifier(VerifierConfig{Old: always(test.old), New: always(test.new)})
		if got := v.Verify(t.Context(), at("ann")); got != test.want {
			t.Errorf("old %v, new %v: %+v", test.old, test.new, got)
		}
		v.Close()
	}
}

// A yes is remembered for minutes, a no for seconds, not knowing never.
func TestVerifierMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := &fakeProber{says: map[string]Knows{"yes": KnowsIt, "no": KnowsNo, "huh": Unsure}}
		v := NewVerifier(VerifierConfig{Old: old, New: always(KnowsNo)})
		defer v.Close()
		verify := func(local string, exists bool, questions int) {
			t.Helper()
			before := old.count()
			if got := v.Verify(t.Context(), at(local)); got.Exists != exists {
				t.Errorf("%s: %+v", local, got)
			}
			if asked := old.count() - before; asked != questions {
				t.Errorf("%s: %d questions, not %d", local, asked, questions)
			}
		}
		verify("yes", true, 1)
		verify("no", false, 1)
		verify("huh", true, 1)
		verify("yes", true, 0)
		verify("YES", true, 0)
		verify("no", false, 0)
		verify("huh", true, 1)
		old.say("no", KnowsIt) // made meanwhile
		time.Sleep(15 * time.Second)
		verify("no", true, 1)
		old.say("yes", KnowsNo)
		time.Sleep(9*time.Minute + 44*time.Second)
		verify("yes", true, 0)
		time.Sleep(time.Second)
		verify("yes", false, 1)
	})
}

func TestVerifierAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := always(KnowsIt)
		old.delay = time.Second
		v := NewVerifier(VerifierConfig{Old: old, New: always(KnowsNo), MaxProbes: 3})
		defer v.Close()
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				if got := v.Verify(t.Context(), at(fmt.Sprint("u", i%10))); got.Hint != mail.Old || !got.Sure {
					t.Errorf("%+v", got)
				}
			})
		}
		wg.Wait()
		if old.asked != 10 || old.most != 3 {
			t.Errorf("%d questions for 10 addresses, %d at once", old.asked, old.most)
		}
	})
}

// Who cannot wait, or is not answered, accepts; and the answer is kept for the
// next one.
func TestVerifierTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, now := always(KnowsNo), always(KnowsNo)
		old.delay, now.delay = 5*time.Second, 5*time.Second
		v := NewVerifier(VerifierConfig{Old: old, New: now, MaxProbes: 1, Timeout: 12 * time.Second})
		defer v.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := v.Verify(ctx, at("ann")); got != accepted {
			t.Errorf("%+v", got)
		}
		time.Sleep(5 * time.Second)
		if got := v.Verify(t.Context(), at("ann")); got.Exists || old.count() != 1 {
			t.Errorf("the answer that came late was lost: %+v, %d questions", got, old.count())
		}
		old.delay = time.Hour
		began := time.Now()
		if got := v.Verify(t.Context(), at("bob")); got != accepted || time.Since(began) != 12*time.Second {
			t.Errorf("a side that hangs: %+v after %v", got, time.Since(began))
		}
	})
}

func TestVerifierForgetsTheOldest(t *testing.T) {
	old := always(KnowsIt)
	v := NewVerifier(VerifierConfig{Old: old, New: always(KnowsNo), MaxEntries: 3})
	for _, local := range []string{"a", "b", "c", "a", "d", "a", "b"} { // d takes the place of b
		v.Verify(t.Context(), at(local))
	}
	if old.count() != 5 || len(v.entries) != 3 || v.order.Len() != 3 {
		t.Errorf("%d questions, %d entries", old.count(), len(v.entries))
	}
	v.Close()
	v.Close()
	if got := v.Verify(t.Context(), at("new")); got != accepted {
		t.Errorf("after Close: %+v", got)
	}
}

func TestUnknownUserPolicies(t *testing.T) {
	for _, test := range []struct {
		policy   router.Policy
		old, new Knows
		want     string
		hint     mail.Route
	}{
		{router.PolicyVerify, KnowsIt, KnowsNo, "250", mail.Old},
		{router.PolicyVerify, KnowsNo, KnowsIt, "250", mail.New},
		{router.PolicyVerify, KnowsNo, KnowsNo, "550 5.1.1", ""},
		{router.PolicyVerify, KnowsNo, Unsure, "250", mail.Old},
		{router.PolicyReject, KnowsIt, KnowsIt, "550 5.1.1", ""},
		{router.PolicyOld, KnowsNo, KnowsNo, "250", mail.Old},
		{router.PolicyNew, KnowsNo, KnowsNo, "250", mail.New},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			s := newSite(t, test.policy, func(c *ServerConfig) {
				c.Verifier = NewVerifier(VerifierConfig{Old: always(test.old), New: always(test.new)})
			})
			c := s.hello()
			c.cmd("MAIL FROM:<>", "250")
			c.cmd("RCPT TO:<postmaster>", "250")
			c.cmd("RCPT TO:<Who+tag@example.org>", test.want)
			c.cmd("DATA", "354")
			c.send("\r\n.\r\n")
			c.want("250")
			rcpts := s.queue.one(t).env.Recipients
			if !strings.HasPrefix(test.want, "250") {
				if len(rcpts) != 1 {
					t.Errorf("%+v", rcpts)
				}
				return
			}
			if len(rcpts) != 2 || rcpts[1].Hint != test.hint || rcpts[1].User != "who@example.org" || rcpts[1].Addr.String() != "Who+tag@example.org" {
				t.Errorf("%+v", rcpts)
			}
		})
	}
}

func TestNoVerifierAccepts(t *testing.T) {
	s := newSite(t, router.PolicyVerify, nil)
	if got := s.hello().deliver("\r\n", "who@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	if r := s.queue.one(t).env.Recipients[0]; r.Hint != mail.Old {
		t.Errorf("%+v", r)
	}
}
