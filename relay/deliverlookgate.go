package relay

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"crossfade/mail"
)

// The figures of a side whose mailboxes hang.
const (
	lookTime   = 30 * time.Second // one look; an older doubt gets more, up to four times that
	hungLooks  = 2                // mailboxes in a row that hang: the side is left alone
	firstQuiet = 10 * time.Second // for how long at first
	mostQuiet  = 2 * time.Minute
	asidePlace = 32 // looks of a side that is left alone, which ask nobody
)

// lookGates keep looks from mail servers that take a connection and then say nothing:
// each would take its place for as long as it may. A mailbox that hangs is left alone
// for a while, and so is a side on which several in a row did; then one look is made,
// to see. They stand beside what a Finder itself knows of servers that cannot be
// reached.
type lookGates struct {
	now func() time.Time

	mu    sync.Mutex
	sides map[mail.Route]*lookGate
	boxes map[lookBox]*lookGate // of those that hang
}

type lookBox struct {
	side mail.Route
	user string
}

// lookGate is that of one side or one mailbox.
type lookGate struct {
	hung   int
	by     string // whose look hung last
	until  time.Time
	quiet  time.Duration
	trying bool
}

func newLookGates(now func() time.Time) *lookGates {
	return &lookGates{now: now, sides: map[mail.Route]*lookGate{mail.Old: {}, mail.New: {}}, boxes: map[lookBox]*lookGate{}}
}

var errHangs = errors.New("the mail server hangs")

// enter tells whether a look may begin; the error says why not. After nil, leave has
// to be called.
func (g *lookGates) enter(s Search) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	side, box := g.sides[s.Side], g.boxes[boxOf(s)]
	now := g.now()
	switch {
	case side.shut(hungLooks, now):
		return fmt.Errorf("%w: looks into mailboxes on %s have no end, they are asked again at %s UTC", errHangs, s.Side, side.until.UTC().Format(time.TimeOnly))
	case box != nil && box.shut(1, now):
		return fmt.Errorf("%w: a look into this mailbox on %s had no end, it is asked again at %s UTC", errHangs, s.Side, box.until.UTC().Format(time.TimeOnly))
	}
	side.trying = side.hung >= hungLooks
	if box != nil {
		box.trying = true
	}
	return nil
}

// resting tells whether a look would not begin now.
func (g *lookGates) resting(s Search) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	box := g.boxes[boxOf(s)]
	return g.sides[s.Side].shut(hungLooks, g.now()) || box != nil && box.shut(1, g.now())
}

// leave says how a look ended: by its time, or in any other way.
func (g *lookGates) leave(s Search, hung bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	side, key := g.sides[s.Side], boxOf(s)
	side.trying = false
	if !hung {
		*side = lookGate{}
		delete(g.boxes, key)
		return
	}
	box := g.boxes[key]
	if box == nil {
		box = &lookGate{}
		g.boxes[key] = box
	}
	box.trying, box.by = false, ""
	box.hang(key.user, 1, g.now())
	if side.by != key.user || side.hung >= hungLooks { // one mailbox says nothing of the others
		side.hang(key.user, hungLooks, g.now())
	}
}

func boxOf(s Search) lookBox {
	if s.User == "" {
		return lookBox{s.Side, s.Rcpt.Key()}
	}
	return lookBox{s.Side, s.User}
}

func (g *lookGate) shut(most int, now time.Time) bool {
	return g.hung >= most && (g.trying || now.Before(g.until))
}

func (g *lookGate) hang(by string, most int, now time.Time) {
	g.by = by
	if g.hung++; g.hung >= most {
		g.quiet = min(max(2*g.quiet, firstQuiet), mostQuiet)
		g.until = now.Add(g.quiet)
	}
}
