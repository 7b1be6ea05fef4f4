package submission

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

var home = netip.MustParseAddr("192.0.2.1")

// line is a line of the file with a cheap hash.
func line(t *testing.T, name, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return name + ":" + string(h) + "\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, text string) (*Users, string, *strings.Builder) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	write(t, path, text)
	log := &strings.Builder{}
	u, err := Open(path, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return u, path, log
}

func TestVerify(t *testing.T) {
	u, path, log := open(t, "# people\n\n"+line(t, "ann", "a secret")+line(t, "bob", "another"))
	check := func(name, password string, want Verdict) {
		t.Helper()
		for range 2 { // the second time it is remembered
			if got := u.Verify(t.Context(), home, name, password); got != want {
				t.Errorf("%s %s: %d, want %d", name, password, got, want)
			}
		}
		u.guess.heal(home, name)
	}
	check("ann", "a secret", Granted)
	check("ann", "another", Refused)
	check("Ann", "a secret", Refused)
	check("bob", "another", Granted)
	check("carol", "", Refused)
	// An unknown name takes as long as the file's own.
	if cost, err := bcrypt.Cost([]byte(u.dummy)); err != nil || cost != bcrypt.MinCost {
		t.Errorf("an unknown name takes the cost %d, %v", cost, err)
	}
	// A new file counts at once; one that cannot be read does not.
	write(t, path, line(t, "ann", "a new secret"))
	check("ann", "a secret", Refused)
	check("ann", "a new secret", Granted)
	check("bob", "another", Refused)
	write(t, path, "ann:a password in clear\n")
	check("ann", "a new secret", Granted)
	if log := log.String(); strings.Count(log, "stay as they were") != 1 || strings.Contains(log, "in clear") {
		t.Errorf("log: %s", log)
	}
}

func TestBadFiles(t *testing.T) {
	costly := "x:$2a$15$" + strings.Repeat("a", 53)
	for text, want := range map[string]string{
		"ann\n":                                   "line 1 is not NAME:HASH",
		":" + line(t, "", "x")[1:]:                "line 1 is not NAME:HASH",
		"# a\nann:secret\n":                       "line 2: what is behind the name is no bcrypt hash",
		line(t, "a", "b") + line(t, "a", "c"):     "line 2: a is there twice",
		costly:                                    "a hash of cost 15 would take too long",
		"ann:" + strings.Repeat("x", 70<<10):      "token too long",
		strings.Repeat("#\n", maxFile/2) + "####": "more than",
	} {
		path := filepath.Join(t.TempDir(), "users")
		write(t, path, text)
		if _, err := Open(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: error %v, want %q", text, err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "users")
	write(t, path, "")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, nil); err == nil || !strings.Contains(err.Error(), "chmod 640") {
		t.Errorf("a file for everybody: %v", err)
	}
}

// Guesses are put off for longer and longer, per network and name: neither others
// in the office nor the same name elsewhere wait for them.
func TestGuesses(t *testing.T) {
	var g guesses
	g.init()
	now := time.Now()
	near, far := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:0:1::1")
	for i := range freeGuesses {
		if !g.try(near, "ann", now) {
			t.Fatalf("free guess %d is not looked at", i)
		}
	}
	for i, want := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900} {
		if !g.try(near, "ann", now) {
			t.Fatalf("guess %d is not looked at when its wait is over", i)
		}
		want *= time.Second
		if g.try(netip.MustParseAddr("2001:db8::ffff"), "ann", now.Add(want-1)) {
			t.Errorf("guess %d: the wait is not %s", i, want)
		}
		now = now.Add(want)
	}
	if !g.try(far, "ann", now) || !g.try(near, "bob", now) {
		t.Error("others wait too")
	}
	g.heal(near, "bob")
	for range 3 {
		if !g.try(near, "ann", now) {
			break
		}
	}
	if g.try(near, "ann", now) {
		t.Error("a login of another heals the guesser's wait")
	}
	g.heal(near, "ann")
	for range freeGuesses {
		if !g.try(near, "ann", now) {
			t.Error("it is not healed")
		}
	}
}

// One password tried on many names is a guess too; who has failed before and is
// known by name goes on by his own count.
func TestGuessesOverNames(t *testing.T) {
	var g guesses
	g.init()
	now := time.Now()
	bad := netip.MustParseAddr("203.0.113.1")
	looked := 0
	for i := range 1000 {
		if g.try(bad, fmt.Sprint("user", i), now) {
			looked++
		}
	}
	if looked != freeNames+1 {
		t.Errorf("%d names were tried at once, not %d", looked, freeNames+1)
	}
	if !g.try(bad, "user0", now) {
		t.Error("a second try of a name waits for other names")
	}
}

// However many there are at once, they are counted one by one.
func TestGuessesAtOnce(t *testing.T) {
	var g guesses
	g.init()
	now := time.Now()
	var wg sync.WaitGroup
	var looked atomic.Int32
	for range 200 {
		wg.Go(func() {
			if g.try(home, "ann", now) {
				looked.Add(1)
			}
		})
	}
	wg.Wait()
	if n := looked.Load(); n != freeGuesses+1 {
		t.Errorf("%d guesses at once, not %d", n, freeGuesses+1)
	}
	g.forgive(home, "ann")
}

// A login that could not be looked at, because all turns were taken, counts neither for
// its name nor for its network: a flood of others would else lock an office out.
func TestForgiven(t *testing.T) {
	var g guesses
	g.init()
	now := time.Now()
	for i := range 3 * freeNames {
		name := fmt.Sprint("user", i)
		if !g.try(home, name, now) {
			t.Fatalf("name %d is not looked at", i)
		}
		g.forgive(home, name)
	}
	if len(g.names)+len(g.nets) > 0 {
		t.Errorf("%d names and %d networks are remembered", len(g.names), len(g.nets))
	}
}

// However many networks guess, memory is bounded, and the one that guesses most
// is not forgotten for it.
func TestGuessesAreBounded(t *testing.T) {
	var g guesses
	g.init()
	now := time.Now()
	bad := netip.MustParseAddr("203.0.113.1")
	for range freeGuesses + 20 {
		g.try(bad, "ann", now)
		now = now.Add(time.Second)
		if x := g.names[g.key(bad, "ann")]; now.Before(x.until) {
			now = x.until
		}
	}
	g.try(bad, "ann", now)
	for i := range maxGuessed + 20 {
		g.try(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), "ann", now)
	}
	if len(g.names) > maxGuessed || len(g.nets) > maxGuessed || g.try(bad, "ann", now) {
		t.Errorf("%d names, %d networks; the guesser may go on", len(g.names), len(g.nets))
	}
}

// Strangers cannot have more hashes computed at once than there are turns, and who
// cannot wait any longer is told to come later.
func TestTurns(t *testing.T) {
	u, _, _ := open(t, line(t, "ann", "a secret"))
	for range atOnce {
		u.turns <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if got := u.Verify(ctx, home, "ann", "a secret"); got != Later {
			t.Errorf("verdict %d", got)
		}
	})
	cancel()
	wg.Wait()
	for range atOnce {
		<-u.turns
	}
	if got := u.Verify(t.Context(), home, "ann", "a secret"); got != Granted {
		t.Errorf("verdict %d", got)
	}
}

func TestHash(t *testing.T) {
	if cost, err := bcrypt.Cost([]byte(nobody)); err != nil || cost != Cost {
		t.Errorf("the hash for an empty file: cost %d, %v", cost, err)
	}
	l, err := Hash("ann", "a good secret")
	if err != nil {
		t.Fatal(err)
	}
	u, _, _ := open(t, l+"\n")
	if u.Len() != 1 || u.Verify(t.Context(), home, "ann", "a good secret") != Granted {
		t.Errorf("%s does not work", l)
	}
	for name, password := range map[string]string{"": "12345678", "a:b": "12345678", "#a": "12345678", "a\nb": "12345678", "ann": "short", "bob": strings.Repeat("x", 73)} {
		if _, err := Hash(name, password); err == nil || strings.Contains(err.Error(), "12345678") {
			t.Errorf("%q %q: %v", name, password, err)
		}
	}
}
