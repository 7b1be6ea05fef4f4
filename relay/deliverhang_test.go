package relay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// hangingFinder hangs for some mailboxes, and knows a side that has none.
type hangingFinder struct {
	fakeFinder
	without mail.Route
}

func (f *hangingFinder) Searchable(side mail.Route) error {
	if side == f.without {
		return ErrUnsearchable
	}
	return nil
}

func hang(ctx context.Context) (Found, error) {
	<-ctx.Done()
	return Found{}, context.Cause(ctx)
}

func withLooks(f Finder, wait, look time.Duration) func(*DelivererConfig, map[mail.Route]*BackendConfig) {
	return func(c *DelivererConfig, _ map[mail.Route]*BackendConfig) {
		c.Finder, c.DoubtWait, c.lookTime = f, wait, look
	}
}

// TestHangingIMAP: a side whose IMAP hangs takes few looks, and those who have waited for long enough are sent again
// without each waiting for one; the other side's, and those of a side without IMAP, wait for nothing.
func TestHangingIMAP(t *testing.T) {
	outNoLeaks(t)
	f := &hangingFinder{}
	f.says = func(ctx context.Context, _ int, s Search) (Found, error) {
		if s.Side == mail.New {
			return hang(ctx)
		}
		return Found{Copies: 1}, nil
	}
	const look = 500 * time.Millisecond
	s := newOutSite(t, withLooks(f, time.Hour, look))
	var old, late []mail.ID
	for i := range 100 {
		late = append(late, doubtful(s.q, mail.New, mail.New, 2*time.Hour, fmt.Sprintf("u%d@b.test", i)))
	}
	for i := range 20 {
		old = append(old, doubtful(s.q, mail.Old, mail.Old, time.Minute, fmt.Sprintf("o%d@b.test", i)))
	}
	began := time.Now()
	hurried := func(ids []mail.ID) bool {
		for _, id := range ids {
			s.q.hurry(id)
		}
		return !slices.ContainsFunc(ids, func(id mail.ID) bool {
			s.q.mu.Lock()
			defer s.q.mu.Unlock()
			return s.q.msgs[id].rcpts[0].kind != queue.Done
		})
	}
	inPoll(t, "those on old", func() bool { return hurried(old) })
	inPoll(t, "those who waited for long enough", func() bool { return hurried(late) })
	if took := time.Since(began); took > 10*look {
		t.Errorf("100 looks at mailboxes that hang took %s, %d at a time for %s each would be %s", took, doubtPlaces, look, 100*look/doubtPlaces)
	}
	asked := slices.DeleteFunc(f.searches(), func(s Search) bool { return s.Side == mail.Old })
	if len(asked) > 3*doubtPlaces {
		t.Errorf("%d looks at a side that hangs", len(asked))
	}
}

// TestHangingMailbox: one mailbox that hangs keeps nobody else's waiting, and its own mail is kept in doubt.
func TestHangingMailbox(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(ctx context.Context, _ int, s Search) (Found, error) {
		if s.User == "stuck@b.test" {
			return hang(ctx)
		}
		return Found{Copies: 1}, nil
	}}
	s := newOutSite(t, withLooks(f, time.Hour, 300*time.Millisecond))
	var stuck []mail.ID
	for range 20 {
		stuck = append(stuck, doubtful(s.q, mail.New, mail.New, time.Minute, "stuck@b.test"))
	}
	inPoll(t, "all places are taken", func() bool { return len(f.searches()) >= doubtPlaces })
	for i := range 20 {
		id := doubtful(s.q, mail.New, mail.New, time.Minute, fmt.Sprintf("u%d@b.test", i))
		inPoll(t, "a mailbox that answers", func() bool {
			s.q.hurry(id)
			for _, id := range stuck {
				s.q.hurry(id)
			}
			s.q.mu.Lock()
			defer s.q.mu.Unlock()
			return s.q.msgs[id].rcpts[0].kind == queue.Done
		})
	}
	for _, id := range stuck {
		rs := s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].last != "" })
		if rs[0].item.Doubt.IsZero() || rs[0].kind == queue.Done {
			t.Errorf("%+v", rs[0])
		}
	}
	if n := s.sinks[mail.New].Count(); n != 0 {
		t.Errorf("%d were sent again", n)
	}
}

// TestHangThatEnds: when the side answers again it is asked again.
func TestHangThatEnds(t *testing.T) {
	now := time.Now()
	g := newLookGates(func() time.Time { return now })
	look := func(user string) Search { return Search{Side: mail.New, User: user} }
	for _, user := range []string{"a", "b"} {
		if err := g.enter(look(user)); err != nil {
			t.Fatal(err)
		}
		g.leave(look(user), true)
	}
	if err := g.enter(look("c")); err == nil || !strings.Contains(err.Error(), "mailboxes on new have no end") || !g.resting(look("c")) {
		t.Errorf("after two that hang: %v", err)
	}
	if g.resting(Search{Side: mail.Old, User: "a"}) {
		t.Error("the other side rests")
	}
	now = now.Add(firstQuiet)
	if err := g.enter(look("c")); err != nil {
		t.Errorf("after the rest: %v", err)
	}
	if err := g.enter(look("d")); err == nil {
		t.Error("two at once try a side that hung")
	}
	g.leave(look("c"), true)
	if now = now.Add(firstQuiet); !g.resting(look("d")) {
		t.Error("the second rest is no longer than the first")
	}
	now = now.Add(firstQuiet)
	if err := g.enter(look("d")); err != nil {
		t.Error(err)
	}
	g.leave(look("d"), false)
	if g.resting(look("e")) {
		t.Error("it answered, and rests")
	}
}

// TestNoIMAPWaitsForNoPlace: on a side without IMAP nothing is looked for, whatever takes the places.
func TestNoIMAPWaitsForNoPlace(t *testing.T) {
	outNoLeaks(t)
	f := &hangingFinder{}
	var gone atomic.Bool // IMAP is taken out of the configuration
	f.says = func(ctx context.Context, _ int, _ Search) (Found, error) { return hang(ctx) }
	s := newOutSite(t, withLooks(searchableFunc{f, func(mail.Route) error {
		if gone.Load() {
			return ErrUnsearchable
		}
		return nil
	}}, time.Hour, time.Minute))
	for i := range doubtPlaces {
		doubtful(s.q, mail.New, mail.New, 0, fmt.Sprintf("u%d@b.test", i))
	}
	inPoll(t, "all places are taken", func() bool { return len(f.searches()) == doubtPlaces })
	gone.Store(true)
	id := doubtful(s.q, mail.New, mail.New, 0, "last@b.test")
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done })
}

type searchableFunc struct {
	Finder
	searchable func(mail.Route) error
}

func (s searchableFunc) Searchable(side mail.Route) error { return s.searchable(side) }
