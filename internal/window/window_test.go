package window

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/audit"
	"crossfade/router"
)

// TestWindow: waves, two rollbacks and the way forward again, under mail on all ways, with people at their mailboxes, while the
// relay is killed again and again.
func TestWindow(t *testing.T) {
	for name, s := range map[string]servers{"DovecotToDovecot": {}, "CyrusToDovecot": {cyrus: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through(t, s)
		})
	}
}

func through(t *testing.T, s servers) {
	people, before, waves, every, kills := 16, 12, 4, 80*time.Millisecond, 6
	if long() {
		people, before, waves, every, kills = 200, 60, 8, 40*time.Millisecond, 60
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := found(t, s, people, before, waves)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	work := &crowd{}
	for i := range uint64(3) {
		work.goes(func() error { return c.stream(ctx, seed+i, every) })
	}
	for i := range uint64(2) {
		work.goes(func() error { return c.live(ctx, seed+i, every) })
	}
	kctx, endKills := context.WithCancel(ctx)
	work.goes(func() error { return c.killer(kctx, seed, kills) })

	began := time.Now()
	for w := 1; w <= waves; w++ {
		c.forward(w)
		switch w {
		case 2:
			c.back(c.wave(1)[:2])
		case 3:
			c.back(c.wave(2))
		}
	}
	for w := 1; w <= 2; w++ { // who was taken back goes again
		c.forward(w)
	}
	took := time.Since(began)
	endKills()
	stop()
	if err := work.wait(); err != nil {
		t.Fatal(err)
	}
	c.drain()
	c.judge(took)
}

// crowd is goroutines whose first error counts.
type crowd struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	err error
}

func (w *crowd) goes(f func() error) {
	w.wg.Go(func() {
		if err := f(); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.err = errors.Join(w.err, err)
		}
	})
}

func (w *crowd) wait() error {
	w.wg.Wait()
	return w.err
}

func (c *company) wave(n int) (members []*person) {
	for _, p := range c.people {
		if p.wave == fmt.Sprintf("w%d", n) {
			members = append(members, p)
		}
	}
	return members
}

// forward moves the people of a wave who are on old.
func (c *company) forward(n int) {
	c.t.Helper()
	var who []*person
	for _, p := range c.wave(n) {
		if !p.onNew {
			who = append(who, p)
		}
	}
	c.shift(who, true, "start")
}

func (c *company) back(who []*person) {
	c.t.Helper()
	c.shift(who, false, "rollback")
}

// shift moves people to a side. They put their hands in their laps meanwhile; their mail does not.
func (c *company) shift(who []*person, onNew bool, verb string) {
	c.t.Helper()
	for _, p := range who {
		p.mu.Lock()
		p.moving = true
		p.mu.Unlock()
	}
	args := []string{"cutover", verb, "--no-wait"}
	for _, p := range who {
		args = append(args, p.addr)
	}
	if _, err := c.relay.ask(args...); err != nil {
		c.t.Fatal(err)
	}
	want := router.StateOld
	if onNew {
		want = router.StateNew
	}
	c.await(who, want, 4*time.Minute)
	for _, p := range who {
		p.mu.Lock()
		p.moving, p.onNew = false, onNew
		p.mu.Unlock()
	}
}

// killer kills the relay every few seconds.
func (c *company) killer(ctx context.Context, seed uint64, most int) error {
	rnd := rand.New(rand.NewPCG(seed, 11))
	for range most {
		sleep(ctx, 2*time.Second+time.Duration(rnd.IntN(4000))*time.Millisecond)
		if ctx.Err() != nil {
			break
		}
		if err := c.relay.kill(); err != nil {
			return err
		}
	}
	return nil
}

// drain waits until all queues are empty.
func (c *company) drain() {
	c.t.Helper()
	waitFor(c.t, 3*time.Minute, "the queues to be empty", func() error {
		page, err := c.relay.client.Queue(c.t.Context(), admin.QueueFilter{}, "", 5)
		if err != nil {
			return err
		}
		if n := len(page.Messages) + c.oldMX.Queued(c.t) + c.newMX.Queued(c.t); n > 0 {
			var what []string
			for _, m := range page.Messages {
				what = append(what, fmt.Sprintf("%+v", m.Rcpts))
			}
			return fmt.Errorf("%d messages are queued: %s", n, strings.Join(what, "; "))
		}
		return nil
	})
}

// tally is what a count found.
type tally struct {
	messages, returned              int
	missing, twice, strange, undead []string
}

func (a *tally) wrong() error {
	if len(a.missing)+len(a.twice)+len(a.strange)+len(a.undead) == 0 {
		return nil
	}
	first := func(l []string) string {
		sort.Strings(l)
		return strings.Join(l[:min(len(l), 5)], ", ")
	}
	return fmt.Errorf("%d missing (%s), %d twice (%s), %d that nobody sent (%s), %d that were deleted (%s)",
		len(a.missing), first(a.missing), len(a.twice), first(a.twice), len(a.strange), first(a.strange), len(a.undead), first(a.undead))
}

// count looks into the mailbox that each user reads.
func (c *company) count() (*tally, error) {
	a, seen, told := &tally{}, map[string]bool{}, map[*person]int{}
	for _, p := range c.people {
		there, err := contents(c.reads(p), p.addr)
		if err != nil {
			return nil, err
		}
		for id, places := range there {
			a.messages += len(places)
			e := c.book.entries[id]
			what := fmt.Sprintf("%s %s of %s at %s", id, wayOf(e), p.addr, strings.Join(places, " and "))
			switch {
			case e == nil || e.to != p:
				a.strange = append(a.strange, what)
			case e.gone && (e.touched || e.way == outside && c.sentAgain(id)):
				a.returned++
			case e.gone && told[p] < c.stays(p):
				told[p]++
				a.returned++
			case e.gone:
				a.undead = append(a.undead, what)
			case len(places) > 1:
				a.twice = append(a.twice, what)
			}
			seen[id] = true
		}
	}
	for id, e := range c.book.entries {
		if !seen[id] && !e.gone && !e.maybe {
			a.missing = append(a.missing, fmt.Sprintf("%s %s of %s", id, e.way, e.to.addr))
		}
	}
	return a, nil
}

// sentAgain tells whether the relay says of a message that it was in doubt after a kill, was looked for and not found, and was
// sent again: as when its user had deleted it by then.
func (c *company) sentAgain(id string) bool {
	life, err := c.relay.ask("why", "--no-look", id+"@outside.test")
	return err == nil && strings.Contains(life, "sent again, so it may arrive twice")
}

// deletionsLeft is how the relay says that deletions were not carried over, because it could not tell which message they
// were of after a kill.
var deletionsLeft = regexp.MustCompile(`folder=(\S+) .*class=deletions text="(\d+) messages were deleted on the source and stay`)

// stays is of how many messages of a user the relay said that, in one pass, over all folders.
func (c *company) stays(p *person) (n int) {
	text, err := os.ReadFile(c.relay.log)
	if err != nil {
		c.t.Error(err)
	}
	most := map[string]int{} // by folder
	for line := range strings.Lines(string(text)) {
		m := deletionsLeft.FindStringSubmatch(line)
		if m == nil || !strings.Contains(line, "user="+p.addr+" ") {
			continue
		}
		left, err := strconv.Atoi(m[2])
		if err != nil {
			c.t.Error(err)
		}
		most[m[1]] = max(most[m[1]], left)
	}
	for _, left := range most {
		n += left
	}
	return n
}

func wayOf(e *entry) way {
	if e == nil {
		return "?"
	}
	return e.way
}

// judge counts until all is in its place, and once more when the sweeps had time to spoil it.
func (c *company) judge(took time.Duration) {
	t := c.t
	t.Helper()
	settled := time.Now()
	var last *tally
	look := func() error {
		var err error
		if last, err = c.count(); err != nil {
			return err
		}
		return last.wrong()
	}
	defer func() {
		if t.Failed() && last != nil {
			c.explain(last)
		}
	}()
	waitFor(t, 2*time.Minute, "every message to be exactly once in the mailbox that its user reads", look)
	after := time.Since(settled)
	sleep(t.Context(), 8*time.Second)
	if err := look(); err != nil {
		t.Errorf("and then: %v", err)
	}
	ways, deleted, maybe := c.book.totals()
	c.audit(ways[outside], maybe)
	figure(t, "%d people, %d kills -9, %s; messages that lay on old %d, from outside %d (reply lost: %d), straight to old %d, straight to new %d; deleted by their users %d; found %d, missing 0, twice 0, deleted and still there 0 (come back for a reason that docs/faults.md names: %d), %s after the last one was sent",
		len(c.people), c.relay.kills, took.Round(time.Second), ways[past], ways[outside], maybe, ways[stale], ways[within], deleted, last.messages, last.returned, after.Round(time.Second))
}

// explain shows what the relay knows of messages that are not as they should be, and what it did with the mailboxes of their
// users.
func (c *company) explain(a *tally) {
	c.t.Helper()
	wrong := slices.Concat(a.missing, a.twice, a.strange, a.undead)
	for _, what := range wrong[:min(len(wrong), 3)] {
		id, _, _ := strings.Cut(what, " ")
		if e := c.book.entries[id]; e != nil {
			c.t.Logf("%s: gone %t, touched %t", what, e.gone, e.touched)
			c.life(id+"@outside.test", e.to.addr)
		}
	}
}

// life shows the life of one message of a user.
func (c *company) life(id, user string) {
	c.t.Helper()
	life, err := c.relay.ask("why", id)
	text, _ := os.ReadFile(c.relay.log) // for the message alone
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, user) || strings.Contains(line, id) || strings.Contains(line, "crossfade is up") {
			lines = append(lines, line)
		}
	}
	c.t.Logf("%s: %s%v\nand the log of crossfade about its user:\n%s", id, life, err, strings.Join(lines[max(0, len(lines)-300):], ""))
}

// audit has the product count too: what it knows of is what came to it from outside.
func (c *company) audit(sent, maybe int) {
	t := c.t
	t.Helper()
	// It exits with 1 when it is not clean, and says the same.
	said, err := c.relay.ask("audit", "--json")
	if err != nil {
		said = err.Error()
	}
	var doc audit.Document
	if err := json.NewDecoder(strings.NewReader(said[max(strings.Index(said, "{"), 0):])).Decode(&doc); err != nil {
		t.Errorf("%v: %.500s", err, said)
		return
	}
	touched := c.deletedAndTouched(&doc)
	if a := doc.Total; a.Missing != 0 || a.Accepted > sent || a.Accepted < sent-maybe || a.Delivered != a.Accepted ||
		!doc.Clean && (touched == 0 || a.Look.Behind != touched || a.Look.Missing+a.Look.Unknown+a.Look.Twice != 0 || a.Look.Error != "") {
		t.Errorf("the audit: clean %t, accepted %d of %d that were sent (%d without a reply), delivered %d, missing %d, look %+v: %+v", doc.Clean, a.Accepted, sent, maybe, a.Delivered, a.Missing, a.Look, a.Differences)
		for _, u := range doc.Users {
			for _, id := range slices.Concat(u.Look.BehindIDs, u.Look.MissingIDs, u.Look.TwiceIDs) {
				c.life(string(id), u.User)
			}
		}
	}
}

// deletedAndTouched counts the messages that the audit finds in the mailbox that is not read alone, and that their users
// deleted in the other one after a device of theirs had filed the copy away: nothing tells the product that the two are the
// same, and it says so rather than taking the message for deleted (docs/faults.md).
func (c *company) deletedAndTouched(doc *audit.Document) (n int) {
	c.t.Helper()
	for _, u := range doc.Users {
		for _, id := range u.Look.BehindIDs {
			life, err := c.relay.ask("why", "--no-look", string(id))
			if err != nil {
				c.t.Error(err)
			}
			for mark, e := range c.book.entries {
				if e.gone && e.touched && strings.Contains(life, mark+"@outside.test") {
					n++
				}
			}
		}
	}
	return n
}

// figure reports a result that people want to see, as in internal/daemon.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	line := t.Name() + ": " + fmt.Sprintf(format, args...)
	fmt.Println(line)
	name := os.Getenv("CROSSFADE_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
	_, err = fmt.Fprintln(f, line)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
}
