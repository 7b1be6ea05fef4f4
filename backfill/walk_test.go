package backfill_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/google/go-cmp/cmp"
)

var (
	walkSeed  = flag.Uint64("walk.seed", 1, "seed of TestWalk; 0: one by the clock")
	walkSteps = flag.Int("walk.steps", 70, "steps of TestWalk")
)

// walk is a mailbox on two servers to which everything happens that may.
type walk struct {
	*sides
	rnd     *rand.Rand
	ledger  *fileLedger
	settled bool           // the user reads new
	model   map[string]int // what his mailbox has to hold, by subject
	next    int
	left    bool // the last pass told of deletions that it could not carry over
	said    []string
}

// TestWalk: deliveries to either side, a user who moves, deletes and marks mail where
// he reads, a phone that moves mail where he does not, passes in both directions,
// kills, flips and rollbacks: in the end the mailbox that he reads holds each message
// as often as it should.
func TestWalk(t *testing.T) {
	t.Parallel()
	seed := *walkSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	w := &walk{sides: newSides(t), rnd: rand.New(rand.NewPCG(seed, 1)), model: map[string]int{}}
	w.ledger = newLedger(t)
	w.c = copier(t, w.ledger)
	w.c.Settle = 100 * time.Millisecond
	defer func() {
		if t.Failed() {
			t.Logf("seed %d: go test -run TestWalk -walk.seed=%d -walk.steps=%d\n%s", seed, seed, *walkSteps, strings.Join(w.said, "\n"))
		}
	}()
	w.deliver(w.src, 8)
	w.deliver(w.dst, 2)
	for range *walkSteps {
		w.step()
		if t.Failed() {
			return
		}
	}
	w.settle()
	w.check("in the end")
}

func (w *walk) say(format string, a ...any) { w.said = append(w.said, fmt.Sprintf(format, a...)) }

func (w *walk) read() *realtest.Dovecot {
	if w.settled {
		return w.dst
	}
	return w.src
}

func (w *walk) unread() *realtest.Dovecot {
	if w.settled {
		return w.src
	}
	return w.dst
}

func (w *walk) name(d *realtest.Dovecot) string {
	if d == w.src {
		return "old"
	}
	return "new"
}

// hows are the passes from the side that is read, and from the other one.
func (w *walk) hows() (reader, sweep string) {
	if w.settled {
		return "settled back", "settled forth"
	}
	return "forth", "back"
}

func (w *walk) step() {
	reader, sweep := w.hows()
	switch n := w.rnd.IntN(20); {
	case n < 3:
		w.deliver(w.read(), 1+w.rnd.IntN(2))
	case n < 6:
		w.deliver(w.unread(), 1+w.rnd.IntN(2))
	case n < 7:
		w.deliverBoth()
	case n < 9:
		w.move(w.read())
	case n < 10:
		w.remove()
	case n < 11:
		w.mark(w.read())
	case n < 13:
		w.phone()
	case n < 15:
		w.pass(reader)
	case n < 17:
		w.pass(sweep)
	case n < 19:
		w.kill([]string{reader, sweep}[w.rnd.IntN(2)])
	default:
		w.settle()
		w.check("before the flip")
		w.settled = !w.settled
		w.say("the user reads %s", w.name(w.read()))
	}
}

// folder gives the name of a folder on a side.
func (w *walk) folder(d *realtest.Dovecot, n int) string {
	name := []string{"INBOX", "INBOX", "Eins", "Zwei"}[n]
	if d == w.src && name != "INBOX" {
		return "INBOX." + name
	}
	return name
}

func (w *walk) deliver(d *realtest.Dovecot, n int) {
	for range n {
		f := w.folder(d, w.rnd.IntN(3))
		m := letter(w.next, 100)
		w.say("deliver %d to %s %s", w.next, w.name(d), f)
		w.model[fmt.Sprint(w.next)]++
		w.next++
		put(w.t, d, user, f, m)
	}
}

// deliverBoth delivers a copy to each side, as the relay does with deliver: both.
func (w *walk) deliverBoth() {
	w.say("deliver %d to both", w.next)
	for _, d := range []*realtest.Dovecot{w.src, w.dst} {
		m := letter(w.next, 100)
		m.Flags = nil
		m.Body = []byte(fmt.Sprintf("Return-Path: <x@%s>\r\nReceived: from far.example (far [192.0.2.1])\r\n\tby mx.example.org with ESMTP\r\n\tid Q%d; today\r\n%s",
			w.name(d), w.next, m.Body))
		put(w.t, d, user, "INBOX", m)
	}
	w.model[fmt.Sprint(w.next)]++
	w.next++
}

// pick gives a message of a side, nil when the folder that it looked into is empty.
func (w *walk) pick(d *realtest.Dovecot) (folder string, m *mailtest.StoredMessage) {
	folder = w.folder(d, w.rnd.IntN(4))
	if !slices.Contains(d.Folders(w.t, user), folder) {
		return folder, nil
	}
	all := d.Messages(w.t, user, folder)
	if len(all) == 0 {
		return folder, nil
	}
	return folder, &all[w.rnd.IntN(len(all))]
}

var subject = regexp.MustCompile(`Subject: letter (\d+)`)

func subjectOf(m mailtest.StoredMessage) string {
	if x := subject.FindSubmatch(m.Body); x != nil {
		return string(x[1])
	}
	return "?"
}

func (w *walk) move(d *realtest.Dovecot) {
	from, m := w.pick(d)
	to := w.folder(d, 1+w.rnd.IntN(3))
	if m == nil || from == to {
		return
	}
	w.say("move %s on %s from %s to %s", subjectOf(*m), w.name(d), from, to)
	moveMail(w.t, d, user, from, to, imap.UID(m.UID))
}

func (w *walk) remove() {
	from, m := w.pick(w.read())
	if m == nil {
		return
	}
	if strings.Contains(string(m.Body), "Return-Path") {
		return // of what lay on both sides before, the other one stays
	}
	w.say("delete %s on %s from %s", subjectOf(*m), w.name(w.read()), from)
	deleteMail(w.t, w.read(), user, from, imap.UID(m.UID))
	w.model[subjectOf(*m)]--
	if w.model[subjectOf(*m)] == 0 {
		delete(w.model, subjectOf(*m))
	}
}

func (w *walk) mark(d *realtest.Dovecot) {
	from, m := w.pick(d)
	if m == nil {
		return
	}
	setFlags(w.t, user, d, from, uint32(m.UID), imap.StoreFlagsAdd, imap.FlagFlagged)
}

// phone moves something where the user does not read. A sweep comes before he does
// anything: what he deletes meanwhile would come back by what was moved.
func (w *walk) phone() {
	reader, sweep := w.hows()
	w.pass(sweep)
	w.pass(reader)
	w.move(w.unread())
	if w.rnd.IntN(2) == 0 {
		w.kill([]string{reader, sweep}[w.rnd.IntN(2)])
	}
	if w.rnd.IntN(2) == 0 {
		w.pass(reader)
	}
	w.pass(sweep)
}

func (w *walk) pass(how string) {
	job, o := way(w.job, how)
	r, err := w.c.Pass(w.t.Context(), job, o)
	w.say("pass %s: copied %d adopted %d deleted %d moved %d %+v", how, r.Copied, r.Adopted, r.Deleted, r.Moved, r.Problems)
	if err != nil {
		w.t.Fatalf("%s: %v", how, err)
	}
}

func (w *walk) kill(how string) {
	points := backfill.CrashPoints()
	point, nth := points[w.rnd.IntN(len(points))], 1+w.rnd.IntN(2)
	killed := killedOn(w.t, how, w.src.IMAPAddr, w.dst.IMAPAddr, user, w.ledger.path, point, nth)
	w.say("pass %s in a process of its own, killed at %s %d: %v", how, point, nth, killed)
}

// settle makes passes until nothing is left to do.
func (w *walk) settle() {
	reader, sweep := w.hows()
	for range 6 {
		clean := true
		for _, how := range []string{sweep, reader} {
			job, o := way(w.job, how)
			o.Final = true
			r, err := w.c.Pass(w.t.Context(), job, o)
			w.say("final pass %s: copied %d adopted %d deleted %d moved %d %+v", how, r.Copied, r.Adopted, r.Deleted, r.Moved, r.Problems)
			if err != nil {
				w.t.Fatalf("%s: %v", how, err)
			}
			clean = clean && r.Clean()
			if how == reader {
				w.left = len(problems(r, backfill.ClassDeletions)) > 0
			}
		}
		if clean {
			return
		}
	}
	w.t.Error("the passes do not come to an end")
}

func (w *walk) check(when string) {
	for _, d := range []*realtest.Dovecot{w.read(), w.unread()} {
		got := map[string]int{}
		for _, f := range d.Folders(w.t, user) {
			for _, m := range d.Messages(w.t, user, f) {
				got[subjectOf(m)]++
			}
		}
		if d == w.unread() && w.left && covers(got, w.model) {
			w.model = got // told of, and there again when he reads that side
		}
		if diff := cmp.Diff(w.model, got); diff != "" {
			w.t.Errorf("%s, %s (read: %v) does not hold what it should (- want, + got):\n%s", when, w.name(d), d == w.read(), diff)
		}
	}
}

// covers tells whether a holds all that b holds.
func covers(a, b map[string]int) bool {
	for k, n := range b {
		if a[k] < n {
			return false
		}
	}
	return true
}
