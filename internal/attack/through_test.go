package attack

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// TestSmugglingThrough sends the cases through the relay into each real backend:
// what the relay takes arrives there once, with just the bytes that settling
// makes of it but for what the backend is known to change, or comes back as one
// bounce; what is inside of it never becomes mail.
func TestSmugglingThrough(t *testing.T) {
	cases := matrix()
	if !long() {
		cases = sample(cases, 12)
	}
	for _, s := range starters {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := s.start(t)
			f := startFront(t, b.url, "", "")
			x := &through{b: b, f: f, cases: cases}
			x.send(t)
			x.await(t)
			x.check(t)
		})
	}
}

// through is the cases on their way into one backend.
type through struct {
	b     *backend
	f     *front
	cases []smuggling
	taken []smuggling // by the relay
	mail  map[string][]kept
}

func (x *through) send(t *testing.T) {
	t.Helper()
	for _, err := range each(x.cases, 4, func(c smuggling) error {
		k, err := dialTalk(x.f.smtp)
		if err != nil {
			return err
		}
		replies, err := c.send(k, whole)
		if err != nil {
			return fmt.Errorf("%s (%s): %w, after %q", c.id, c.name, err, replies)
		}
		if got := codes(replies); c.want().refused != (got == "550 221" || got == "554 221") {
			return fmt.Errorf("%s (%s): %q", c.id, c.name, replies)
		}
		return nil
	}) {
		t.Error(err)
	}
	for _, c := range x.cases {
		if !c.want().refused {
			x.taken = append(x.taken, c)
		}
	}
}

// await waits until each message is there or came back, and then for one that
// was sent last of all.
func (x *through) await(t *testing.T) {
	t.Helper()
	arrived := func(ids ...string) func() error {
		return func() (err error) {
			if x.mail, err = x.b.mail(); err != nil {
				return err
			}
			var left []string
			for _, id := range ids {
				if len(x.mail[id])+len(x.mail["bounce of "+id]) == 0 {
					left = append(left, id)
				}
			}
			if len(left) > 0 {
				return fmt.Errorf("%d are missing: %v", len(left), left[:min(5, len(left))])
			}
			return nil
		}
	}
	var ids []string
	for _, c := range x.taken {
		ids = append(ids, c.id)
	}
	until(t, 4*time.Minute, "the messages to arrive at "+x.b.name, arrived(ids...))
	k, err := dialTalk(x.f.smtp)
	if err != nil {
		t.Fatal(err)
	}
	last := smuggling{id: "last", body: []byte("From: <x@y.test>\r\nSubject: last.\r\n\r\nlast\r\n.\r\n")}
	if replies, err := last.send(k, whole); err != nil || codes(replies) != "250 221" {
		t.Fatalf("%q, %v", replies, err)
	}
	until(t, time.Minute, "the last message to arrive at "+x.b.name, arrived("last"))
}

func (x *through) check(t *testing.T) {
	t.Helper()
	bounced, honest, unknown, changed := 0, 0, 0, map[string]int{}
	for _, c := range x.taken {
		inner := x.mail["smuggled in "+c.id]
		delete(x.mail, "smuggled in "+c.id)
		switch {
		case c.honest():
			if honest++; len(inner) > 1 {
				t.Errorf("%s: %d", c.id, len(inner))
			}
		case len(inner) > 0:
			t.Errorf("SMUGGLED through %s: %s (%s; %s):\n%s", x.b.name, c.id, c.group, c.name, inner[0].raw)
		}
		got, back := x.mail[c.id], x.mail["bounce of "+c.id]
		delete(x.mail, c.id)
		delete(x.mail, "bounce of "+c.id)
		if len(got)+len(back) != 1 {
			t.Errorf("%s (%s) is there %d times at %s, and came back %d times", c.id, c.name, len(got), x.b.name, len(back))
			continue
		}
		if bounced += len(back); len(got) == 1 {
			change, err := x.compare(c, got[0])
			if err != nil {
				if unknown++; unknown < 4 {
					t.Errorf("%s (%s) at %s: %v", c.id, c.name, x.b.name, err)
				}
				continue
			}
			changed[change]++
		}
	}
	if unknown > 0 {
		t.Errorf("%d arrived at %s changed in a way that is not known", unknown, x.b.name)
	}
	delete(x.mail, "last")
	for s, l := range x.mail {
		t.Errorf("%d messages at %s that nobody sent, %q:\n%.600s", len(l), x.b.name, s, l[0].raw)
	}
	figure(t, "%d cases: %d refused by the relay, %d arrived as one message (%v), %d came back as one bounce, smuggled 0; %d with a true end of data",
		len(x.cases), len(x.cases)-len(x.taken), len(x.taken)-bounced, changed, bounced, honest)
}

// compare says how the backend changed a message, "as sent" for not at all. A
// change that is not known is an error. Nothing of the inner message may be in
// what the backend wrote on top.
func (x *through) compare(c smuggling, m kept) (string, error) {
	body, err := belowOurs(m.raw)
	if err != nil {
		return "", err
	}
	top := m.raw[:len(m.raw)-len(body)]
	if bytes.Contains(top, []byte("smuggle")) || !bytes.Contains(top, []byte(attacker)) {
		return "", fmt.Errorf("the envelope is not the one that was given:\n%s", top)
	}
	want := c.want().body
	for _, k := range append([]change{{"as sent", same}}, changes[x.b.name]...) {
		if bytes.Equal(body, k.do(want)) {
			return k.name, nil
		}
	}
	return "", fmt.Errorf("changed in a way that is not known:\n%.900q\nwant\n%.900q", body, want)
}

// change is what a server is known to do to a message.
type change struct {
	name string
	do   func([]byte) []byte
}

func same(b []byte) []byte { return b }

// changes of each backend.
var changes = map[string][]change{
	"Courier":   {{"each line cut at its first NUL", cutAtNUL}},
	"OpenSMTPD": {{"each line cut at its first NUL", cutAtNUL}},
}

func cutAtNUL(b []byte) []byte {
	var out []byte
	for l := range bytes.SplitAfterSeq(b, []byte("\r\n")) {
		if text, _, has := bytes.Cut(l, []byte{0}); has {
			l = append(bytes.Clone(text), "\r\n"...)
		}
		out = append(out, l...)
	}
	return out
}
