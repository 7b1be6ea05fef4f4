package limit

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestSubjects(t *testing.T) {
	for in, want := range map[string][2]string{
		"192.0.2.7":                {"192.0.2.7/32", "192.0.2.0/24"},
		"::ffff:192.0.2.7":         {"192.0.2.7/32", "192.0.2.0/24"},
		"2001:db8:1:2:3:4:5:6":     {"2001:db8:1:2::/64", "2001:db8:1::/48"},
		"fe80::1%eth0":             {"fe80::/64", "fe80::/48"},
		"2001:db8:1:ffff:3:4:5:ff": {"2001:db8:1:ffff::/64", "2001:db8:1::/48"},
	} {
		if h, n := Host(addr(in)), Network(addr(in)); h.String() != want[0] || n.String() != want[1] {
			t.Errorf("%s is of %s and %s, want %v", in, h, n, want)
		}
	}
	if Host(netip.Addr{}).IsValid() || Network(netip.Addr{}).IsValid() {
		t.Error("an unknown address has a network")
	}
}

// TestRateComesBack: a rate lets its number through at once and gives it back
// over its time.
func TestRateComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Settings{Host: Rates{Messages: Rate{60, time.Hour}}})
		send := func() (n int) {
			for range 200 {
				if g.Mail(addr("192.0.2.1"), "x.example") == "" {
					n++
				}
			}
			return n
		}
		if n := send(); n != 60 {
			t.Errorf("%d passed at once", n)
		}
		if g.Mail(addr("192.0.2.2"), "x.example") != "" {
			t.Error("the neighbour pays for it")
		}
		for minutes, want := range []int{0, 1, 2, 3} {
			time.Sleep(time.Duration(minutes) * time.Minute) // in the bubble's time
			if n := send(); n != want {
				t.Errorf("%d passed after %d minutes", n, minutes)
			}
		}
	})
}

// TestBigProvider: the defaults of the configuration let a provider send a
// hundred messages a second out of one /24, each on a connection of its own, from
// a single address.
func TestBigProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Settings{
			Connections: 1000, PerHost: 50, Reserve: 25,
			Host:      Rates{Rate{6000, time.Minute}, Rate{12000, time.Minute}, Rate{60000, time.Minute}},
			Network:   Rates{Rate{24000, time.Minute}, Rate{30000, time.Minute}, Rate{300000, time.Minute}},
			Recipient: Rate{6000, time.Minute},
		})
		a := addr("192.0.2.9")
		for i := range 60_000 { // ten minutes
			time.Sleep(10 * time.Millisecond)
			if r, _ := g.Enter(a); r != "" {
				t.Fatalf("connection %d: %s", i, r)
			}
			if r := g.Mail(a, "big.example"); r != "" {
				t.Fatalf("message %d: %s", i, r)
			}
			if r := g.Rcpt(a, "big.example"); r != "" {
				t.Fatalf("recipient %d: %s", i, r)
			}
			g.Leave(a)
		}
	})
}

// nth is a network of its own for each n.
func nth(n int) netip.Addr {
	var b [16]byte
	b[0], b[1] = 0x20, 0x01
	binary.BigEndian.PutUint32(b[2:], uint32(n))
	return netip.AddrFrom16(b)
}

// TestFloodResetsNobody: seventy thousand networks and sender domains do not
// get anybody's count forgotten who has used his up, and do not take more memory
// than the tables have.
func TestFloodResetsNobody(t *testing.T) {
	g := New(Settings{
		Host: Rates{Messages: Rate{100, 24 * time.Hour}}, Network: Rates{Messages: Rate{100, 24 * time.Hour}},
		SenderDomain: Rates{Messages: Rate{100, 24 * time.Hour}},
		Failed:       Failed{CutAfter: 100},
	})
	bad := make([]netip.Addr, 50)
	for i := range bad {
		bad[i] = addr(fmt.Sprintf("192.0.%d.1", i))
		for range 150 {
			g.Mail(bad[i], "bad.example")
			g.Failed(bad[i])
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const flood = 70_000
	for i := range flood {
		g.Mail(nth(i), fmt.Sprintf("d%d.example", i))
		g.Failed(nth(i))
		g.Accepted(nth(i), 1)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	for _, a := range bad {
		if g.Mail(a, "") == "" {
			t.Errorf("%s may send again", a)
		}
		if r, _ := g.Enter(a); r != FailedRecipients {
			t.Errorf("the failures of %s are forgotten: %q", a, r)
		}
	}
	if g.Mail(nth(flood+1), "bad.example") == "" {
		t.Error("the sender domain may send again")
	}
	mb := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20
	t.Logf("a flood of %d networks and domains takes %d MB", flood, mb)
	if mb > 40 {
		t.Errorf("the tables take %d MB", mb)
	}
	if n := g.book.len(); n != tableSize {
		t.Errorf("%d networks are remembered, the bound is %d", n, tableSize)
	}
	runtime.KeepAlive(g)
}

// TestGoodNetworksAreRemembered: those that send much are not pushed out of the
// book by many that send one message each, and are forgotten after a week.
func TestGoodNetworksAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Settings{})
		good := addr("192.0.2.1")
		for range 100 {
			g.Accepted(good, 1)
		}
		for i := range 3 * tableSize {
			g.Accepted(nth(i), 1)
		}
		if !g.known(subject(Network(good))) {
			t.Error("forgotten")
		}
		if g.known(subject(Network(addr("198.51.100.1")))) {
			t.Error("somebody who never sent anything is known")
		}
		time.Sleep(knownFor - time.Hour)
		if !g.known(subject(Network(good))) {
			t.Error("forgotten within the week")
		}
		time.Sleep(2 * time.Hour)
		if g.known(subject(Network(good))) {
			t.Error("remembered for longer than a week")
		}
	})
}

// TestFailuresFade: an hour heals what cut a connection, and a network that is
// known for good mail is not turned away at its greeting.
func TestFailuresFade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Settings{Failed: Failed{SlowAfter: 10, Delay: time.Second, MaxDelay: 5 * time.Second, CutAfter: 100}})
		bad, neighbour, good := addr("192.0.2.1"), addr("192.0.2.200"), addr("198.51.100.1")
		g.Accepted(good, 1)
		delays := map[int]time.Duration{10: 0, 11: time.Second, 14: 4 * time.Second, 15: 5 * time.Second, 99: 5 * time.Second}
		for i := 1; i <= 101; i++ {
			d, cut := g.Failed(bad)
			if want, ok := delays[i]; ok && d != want || cut != (i > 100) {
				t.Errorf("failure %d: %v, %t", i, d, cut)
			}
			g.Failed(good)
		}
		for a, want := range map[netip.Addr]string{bad: FailedRecipients, neighbour: FailedRecipients, good: "", addr("203.0.113.1"): ""} {
			if got, _ := g.Enter(a); got != want {
				t.Errorf("%s: %q, want %q", a, got, want)
			}
			if got, _ := (Logins{g}).Enter(a); got != "" {
				t.Errorf("%s may not even log in: %q", a, got)
			}
		}
		time.Sleep(time.Minute)
		if got, _ := g.Enter(neighbour); got != "" {
			t.Errorf("after a minute: %q", got)
		}
		if d, cut := g.Failed(bad); d == 0 || cut && d == 0 {
			t.Errorf("after a minute a failure is free: %v", d)
		}
		time.Sleep(time.Hour)
		if d, cut := g.Failed(bad); d != 0 || cut {
			t.Errorf("after an hour: %v, %t", d, cut)
		}
	})
}

// TestReserve: a flood from many networks takes what strangers may have and no
// more; networks that sent good mail, and our own, have their places.
func TestReserve(t *testing.T) {
	own := addr("10.0.0.1")
	g := New(Settings{Connections: 400, Reserve: 25, Ours: func(a netip.Addr) bool { return a == own }})
	good := make([]netip.Addr, 60)
	for i := range good {
		good[i] = addr(fmt.Sprintf("198.51.%d.1", i))
		g.Accepted(good[i], 1)
	}
	in := 0
	for i := range 5000 {
		if r, _ := g.Enter(nth(i)); r == "" {
			in++
		} else if r != Full {
			t.Fatalf("connection %d: %s", i, r)
		}
	}
	if in != 300 {
		t.Errorf("strangers have %d places of 400", in)
	}
	for _, a := range good {
		if r, _ := g.Enter(a); r != "" {
			t.Errorf("%s, who sent good mail: %s", a, r)
		}
	}
	for i := range 25 {
		g.Enter(good[i]) // up to their own bound of 375
	}
	if r, _ := g.Enter(good[0]); r != Full {
		t.Errorf("those who are known took the places of our own: %q", r)
	}
	for i := range 25 {
		if r, _ := g.Enter(own); r != "" {
			t.Errorf("our own connection %d: %s", i, r)
		}
	}
	if r, _ := g.Enter(own); r != Full {
		t.Errorf("more than all: %q", r)
	}
	for i := range 300 {
		g.Leave(nth(i))
	}
	if r, _ := g.Enter(nth(1)); r != "" {
		t.Errorf("places that are free again: %s", r)
	}
}

// TestShare: a network alone does not get all places of strangers, and the one
// with most is turned away before one that has none.
func TestShare(t *testing.T) {
	g := New(Settings{Connections: 1000, Reserve: 25})
	greedy := 0
	for i := range 1000 {
		if r, _ := g.Enter(addr(fmt.Sprintf("192.0.2.%d", i%250))); r == "" {
			greedy++
		} else if r != NetworkShare {
			t.Fatal(r)
		}
	}
	if greedy != 375 {
		t.Errorf("one network has %d places of the 750 of strangers", greedy)
	}
	others := 0
	for i := range 300 {
		if r, _ := g.Enter(nth(i)); r == "" {
			others++
		}
	}
	if others != 300 {
		t.Errorf("%d of 300 others found a place", others)
	}
}

// TestPlacesAtOnce: hosts and networks have their own bounds, and everything is
// taken off again.
func TestPlacesAtOnce(t *testing.T) {
	g := New(Settings{PerHost: 2, PerNetwork: 3})
	for _, c := range []struct{ from, want string }{
		{"192.0.2.1", ""}, {"192.0.2.1", ""}, {"192.0.2.1", HostConnections}, {"192.0.2.2", ""}, {"192.0.2.3", NetworkConnections},
		{"192.0.3.1", ""}, {"2001:db8::1", ""}, {"2001:db8::2", ""}, {"2001:db8::3", HostConnections}, {"2001:db8:0:1::1", ""},
		{"2001:db8:0:2::1", NetworkConnections},
	} {
		if got, _ := g.Enter(addr(c.from)); got != c.want {
			t.Errorf("%s: %q, want %q", c.from, got, c.want)
		}
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.3.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"} {
		g.Leave(addr(a))
	}
	if g.doors.total != 0 || len(g.doors.count) != 0 {
		t.Errorf("left over: %d, %v", g.doors.total, g.doors.count)
	}
}

// TestUpdate: new settings hold at once, and what was counted under a rate that
// stays is not forgotten.
func TestUpdate(t *testing.T) {
	set := Settings{Host: Rates{Messages: Rate{1, time.Hour}}}
	g := New(set)
	a := addr("192.0.2.1")
	g.Mail(a, "")
	set.Network.Messages = Rate{1000, time.Hour}
	g.Update(set)
	if g.Mail(a, "") != HostMessages {
		t.Error("a reload gave everybody a new start")
	}
	set.Host.Messages = Rate{5, time.Hour}
	g.Update(set)
	if g.Mail(a, "") != "" {
		t.Error("the higher rate is not in force")
	}
	set.Ours = func(b netip.Addr) bool { return a == b }
	g.Update(set)
	for range 10 {
		if r := g.Mail(a, ""); r != "" {
			t.Error(r)
		}
	}
}
