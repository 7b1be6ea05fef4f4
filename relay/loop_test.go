package relay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/wire"
	"crossfade/router"
	"crossfade/store/disk"
)

// received is a trace header as we write it, folded.
func received(id mail.ID, forRcpt string) string {
	env := &mail.Envelope{ID: id, Received: time.Unix(1_700_000_000, 0)}
	if forRcpt != "" {
		env.Recipients = []mail.Recipient{{Addr: outAddr(forRcpt)}}
	}
	info := wire.Info{Remote: netip.MustParseAddrPort("192.0.2.1:25"), Helo: "far.test", ESMTP: true}
	return string(appendReceived(nil, traceInfo{Info: info, by: "mx.example.org (Crossfade)", env: env}))
}

func TestPassageIsRead(t *testing.T) {
	first, second := mail.NewID(), mail.NewID()
	text := "Received: from x by old.internal (Postfix) id 4711 for <bob@example.org>; now\r\n" + received(second, "Ann+tag@Example.ORG") +
		"Received: from evil by other.test (Crossfade) with ESMTP id " + string(mail.NewID()) + " for <eve@example.org>; now\r\n" +
		received(first, "") + "Received: by mx.example.org (Crossfade) id nonsense for <not an address>;\r\nSubject: x\r\n\r\nReceived: by mx.example.org (Crossfade)\r\n"
	for _, size := range []int{1, 13, 1 << 20} {
		h := &headerScan{own: "mx.example.org (Crossfade)", ours: true}
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if err := h.scan([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if h.hops != 5 || h.ownHops != 3 || !slices.Equal(h.passage.IDs, []string{string(second), string(first)}) || !slices.Equal(h.passage.For, []string{"ann+tag@example.org"}) {
			t.Errorf("in pieces of %d: %d hops, %d ours, %+v", size, h.hops, h.ownHops, h.passage)
		}
	}
}

// loopSite takes mail in from two systems, told apart by their address: all of
// the tests' connections come from old.
func loopSite(t *testing.T, side mail.Route, trusted bool) *inSite {
	return newSite(t, router.PolicyOld, func(c *ServerConfig) {
		c.Side = func(netip.Addr) mail.Route { return side }
		c.Wire.Trusted = func(netip.Addr) bool { return trusted }
	})
}

// TestLoopsOfOurOwnAreTakenIn: what goes round between us and a backend is
// accepted, to be parked, whoever hands it over. What never was here is refused to
// strangers, and so is what has our name and no id.
func TestLoopsOfOurOwnAreTakenIn(t *testing.T) {
	id := mail.NewID()
	round := strings.Repeat(received(id, "ann@example.org"), 3) + "Subject: x\r\n\r\nx\r\n"
	many := strings.Repeat("Received: x\r\n", maxHops+1) + "Subject: x\r\n\r\nx\r\n"
	for _, tt := range []struct {
		side    mail.Route
		trusted bool
		want    string
	}{{mail.Old, false, "250"}, {"", true, "250"}, {"", false, "554 5.4.6"}} {
		for _, body := range []string{round, many} {
			s := loopSite(t, tt.side, tt.trusted)
			if body == round {
				tt.want = "250"
			} else if tt.side == "" && !tt.trusted {
				tt.want = "554 5.4.6"
			}
			reply := s.hello().deliver(body, "ann@example.org")
			if !strings.HasPrefix(reply, tt.want) {
				t.Errorf("from %q, trusted %t: %s, want %s", tt.side, tt.trusted, reply, tt.want)
			}
			if tt.want != "250" {
				continue
			}
			if p := s.queue.one(t).env.Passage; p.From != tt.side || p.Hops < 3 || body == round && (p.Ours != 3 || len(p.For) != 3) {
				t.Errorf("from %q: %+v", tt.side, p)
			}
		}
	}
	s := loopSite(t, mail.Old, true)
	s.hello().deliver("Received: x\r\nSubject: x\r\n\r\nx\r\n", "ann@example.org")
	if p := s.queue.one(t).env.Passage; !p.IsZero() {
		t.Errorf("a message that was never here: %+v", p)
	}
}

// TestLoopsOfStrangers: what was here is taken in from whomever, a notice without a
// sender too, and never refused for good; but a header is easily written, so there is
// a bound, beyond which they are to come later.
func TestLoopsOfStrangers(t *testing.T) {
	s := loopSite(t, "", false)
	c := s.hello()
	letter := func(trace string) string {
		c.cmd("MAIL FROM:<>", "250")
		c.cmd("RCPT TO:<ann@example.org>", "250")
		c.cmd("DATA", "354")
		return c.cmd(trace+"Subject: x\r\n\r\nx\r\n.", "")
	}
	id := mail.NewID()
	long := strings.Repeat("Received: x\r\n", maxHops) + received(id, "ann@example.org") // ours is the oldest
	for range strangeLoops / 2 {
		for _, trace := range []string{long, strings.Repeat(received(id, "ann@example.org"), maxOwnHops)} {
			if reply := letter(trace); !strings.HasPrefix(reply, "250") {
				t.Fatal(reply)
			}
		}
	}
	if reply := letter(long); !strings.HasPrefix(reply, "451 4.4.6") {
		t.Errorf("one too many: %s", reply)
	}
	if reply := letter(strings.Repeat("Received: by mx.example.org (Crossfade)\r\n", maxOwnHops)); !strings.HasPrefix(reply, "554 5.4.6") {
		t.Errorf("without an id: %s", reply)
	}
	if reply := letter("Received: x\r\n"); !strings.HasPrefix(reply, "250") {
		t.Errorf("mail without a loop: %s", reply)
	}
}

func TestLoopReason(t *testing.T) {
	ids := []string{"01ARZ3NDEKTSV4RRFFQ69G5FAV"}
	passage := func(from mail.Route, ours int, names ...string) mail.Passage {
		return mail.Passage{From: from, Hops: 2 * ours, Ours: ours, IDs: ids, For: names}
	}
	for name, tt := range map[string]struct {
		passage mail.Passage
		item    queue.Item
		route   mail.Route
		want    string
	}{
		"never here":                      {passage: mail.Passage{}, route: mail.Old},
		"back to where it comes from":     {passage: passage(mail.Old, 1, "ann@b.test"), route: mail.Old, want: "old (192.0.2.7, which calls itself old.internal) gave this message back"},
		"the same by its alias":           {passage: passage(mail.Old, 1, "info@b.test"), route: mail.Old, want: "set the user to new"},
		"on to the other side":            {passage: passage(mail.Old, 1, "ann@b.test"), route: mail.New},
		"for somebody else":               {passage: passage(mail.Old, 1, "bob@b.test"), route: mail.Old},
		"a forwarding inside of old":      {passage: passage(mail.Old, 2), route: mail.Old},
		"from a system that nobody knows": {passage: passage("", 1, "ann@b.test"), route: mail.Old},
		"three times":                     {passage: passage("", 3, "bob@b.test"), route: mail.New, want: "a system that is in no sends_from (192.0.2.7, which calls itself old.internal; if it belongs to one side, name it there)"},
		"three times, on to the other":    {passage: passage(mail.Old, 3, "bob@b.test"), route: mail.New, want: "came through here 3 times already (as " + ids[0]},
		"many hops":                       {passage: mail.Passage{Hops: 51}, route: mail.Old, want: "51 Received fields"},
		"tried before":                    {passage: passage(mail.Old, 3, "ann@b.test"), item: queue.Item{Attempts: 1}, route: mail.Old},
		"let go by an operator":           {passage: passage(mail.Old, 3, "ann@b.test"), item: queue.Item{LastReply: loopMark + "x"}, route: mail.Old},
	} {
		env := &mail.Envelope{
			Passage: tt.passage, Client: mail.Client{Addr: netip.MustParseAddrPort("192.0.2.7:1"), Helo: "old.internal"},
			Recipients: []mail.Recipient{{Addr: outAddr("ann@b.test"), Orig: outAddr("Info@b.test")}},
		}
		got := loopReason(env, tt.item, tt.route)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// TestLoopIsParked: the recipient who goes round is parked and nobody is told;
// the others of the message get it. What an operator lets go is delivered.
func TestLoopIsParked(t *testing.T) {
	outNoLeaks(t)
	s, store := newDiskSite(t, nil)
	id := putLooped(t, store, 2, "ann@b.test", "bob@b.test")
	inPoll(t, "the other recipient", func() bool { return s.sinks[mail.Old].Count() == 1 })
	var parked queue.Rcpt
	inPoll(t, "parking", func() bool {
		e, err := store.Get(t.Context(), id)
		if err != nil || len(e.Rcpts) != 1 {
			return false
		}
		parked = e.Rcpts[0]
		return parked.State == queue.Parked
	})
	if parked.Addr.String() != "ann@b.test" || !strings.HasPrefix(parked.LastReply, loopMark+"old ") || s.alarmCount() != 1 {
		t.Errorf("%+v, %d alarms", parked, s.alarmCount())
	}
	if a := s.sinks[mail.Old].Messages()[0].Addrs(); !slices.Equal(a, []string{"bob@b.test"}) {
		t.Errorf("delivered to %v", a)
	}
	if n := s.sinks[mail.Out].Count(); n != 0 {
		t.Errorf("%d notifications went out", n)
	}
	if _, err := store.Apply(t.Context(), queue.Filter{IDs: []mail.ID{id}}, queue.Action{Verb: queue.DoRetry}); err != nil {
		t.Fatal(err)
	}
	inPoll(t, "delivery after the operator's word", func() bool { return s.sinks[mail.Old].Count() == 2 })
}

// TestFirstReturnWaits: what a side gives back for the first time may come from
// what it remembers; it waits, and goes there once more.
func TestFirstReturnWaits(t *testing.T) {
	outNoLeaks(t)
	s, store := newDiskSite(t, nil)
	id := putLooped(t, store, 1, "ann@b.test")
	inPoll(t, "the wait", func() bool {
		e, err := store.Get(t.Context(), id)
		if err != nil || e.Rcpts[0].LastReply == "" {
			return false
		}
		r := e.Rcpts[0]
		if r.State != queue.Queued || !strings.HasPrefix(r.LastReply, loopMark) || time.Until(r.Due) < loopPause-10*time.Second || s.alarmCount() != 0 {
			t.Errorf("%+v, %d alarms", r, s.alarmCount())
		}
		return true
	})
	if _, err := store.Apply(t.Context(), queue.Filter{IDs: []mail.ID{id}}, queue.Action{Verb: queue.DoRetry}); err != nil {
		t.Fatal(err)
	}
	inPoll(t, "the second try", func() bool { return s.sinks[mail.Old].Count() == 1 })
}

// TestLoopEndsWithTheFlip: the same message is no loop once its user is on the
// other side.
func TestLoopEndsWithTheFlip(t *testing.T) {
	outNoLeaks(t)
	s, store := newDiskSite(t, nil)
	diskState(t, store, router.User{Address: "ann@b.test", Kind: router.KindMailbox}, router.StateNew)
	putLooped(t, store, 1, "ann@b.test")
	inPoll(t, "delivery to new", func() bool { return s.sinks[mail.New].Count() == 1 })
}

// putLooped queues a message that old gave back, and that was here for the
// first of its recipients.
func putLooped(t *testing.T, store *disk.Store, times int, rcpts ...string) mail.ID {
	t.Helper()
	env := &mail.Envelope{
		ID: mail.NewID(), From: outAddr("sender@far.test"), Received: time.Now(), Client: mail.Client{Helo: "old.internal"},
		Passage: mail.Passage{From: mail.Old, Hops: 3, Ours: times, For: rcpts[:1]},
	}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, mail.Recipient{Addr: outAddr(r), User: r, Hint: mail.Old})
	}
	if err := store.Put(t.Context(), env, strings.NewReader("Subject: x\r\n\r\ntext\r\n")); err != nil {
		t.Fatal(err)
	}
	return env.ID
}

// TestRelayingOut: only trusted clients may send to the outside, only where
// that is switched on, and nothing that only looks like an address outside.
func TestRelayingOut(t *testing.T) {
	on := true
	site := func(trusted bool) *inSite {
		return newSite(t, router.PolicyReject, func(c *ServerConfig) {
			c.Wire.Trusted = func(netip.Addr) bool { return trusted }
			c.RelaysOut = func(wire.Info) bool { return on }
		})
	}
	inside, outside := site(true), site(false)
	denied := []string{
		"x@outside.test", `"x@outside.test"@example.org`, "x%outside.test@example.org", "outside.test!x@example.org", "x@mx.example.org", "x@[192.0.2.1]",
	}
	c := outside.hello()
	c.cmd("MAIL FROM:<ann@example.org>", "250")
	for _, rcpt := range denied {
		c.cmd("RCPT TO:<"+rcpt+">", "550 5.7.1")
	}
	c = inside.hello()
	c.cmd("MAIL FROM:<ann@example.org>", "250")
	for _, rcpt := range denied[1:5] { // ours, with a way to elsewhere
		c.cmd("RCPT TO:<"+rcpt+">", "550 5.7.1")
	}
	c.cmd("RSET", "250")
	c.deliver("Subject: x\r\n\r\nx\r\n", "x@outside.test", "ann@example.org")
	got := inside.queue.one(t).env.Recipients
	if len(got) != 2 || got[0].Addr.String() != "x@outside.test" || got[0].Hint != mail.Out || got[0].User != "" || got[1].Hint == mail.Out {
		t.Errorf("%+v", got)
	}
	on = false
	c.cmd("MAIL FROM:<ann@example.org>", "250")
	c.cmd("RCPT TO:<x@outside.test>", "550 5.7.1")
	plain := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.Wire.Trusted = func(netip.Addr) bool { return true } })
	c = plain.hello()
	c.cmd("MAIL FROM:<ann@example.org>", "250")
	c.cmd("RCPT TO:<x@outside.test>", "550 5.7.1")
}
