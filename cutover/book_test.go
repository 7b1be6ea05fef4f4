package cutover

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// breakLedger makes reading and writing of the ledger fail, or work again.
func (t *table) breakLedger(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ledgerErr = func(string) error { return err }
}

// TestKilledBehindTheFlip: who was to be mirrored is, although the process died between the flip and the note of it.
func TestKilledBehindTheFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		ctx, kill := context.WithCancel(t.Context())
		tab.fail = func(u router.User) error {
			if u.State == router.StateNew {
				kill()
				tab.ledgerErr = func(string) error { return errors.New("this process is dead") }
			}
			return nil
		}
		killed := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab})
		if err := killed.Start(t.Context(), Request{User: alice, By: "test", Mirror: true}); err != nil {
			t.Fatal(err)
		}
		if err := killed.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if tab.state(alice) != router.StateNew {
			t.Fatalf("the user is %s", tab.state(alice))
		}
		tab.fail = nil
		tab.breakLedger(nil)
		c := conduct(t, tab, cop, Config{})
		time.Sleep(5 * time.Minute)
		if s, _ := c.StatusOf(alice); s.Sweep == nil || !s.Sweep.Mirror || s.Sweep.Mirrored.IsZero() || len(cop.backs()) == 0 {
			t.Errorf("he is not mirrored: %+v, %d passes back", s.Sweep, len(cop.backs()))
		}
		if _, asked, err := c.loadRequest(t.Context(), alice); asked || err != nil {
			t.Errorf("the request stays on record: %t, %v", asked, err)
		}
	})
}

// TestBookThatCannotBeRead: what was found goes on from what is on record, and what is found meanwhile is not lost.
func TestBookThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable(router.User{Address: alice, State: router.StateNew})
		before := New(Config{Table: tab, Requests: tab, Mailboxes: mailboxes{}})
		m := newMove(before, tab.users[alice], Request{})
		m.strays(t.Context(), false, 3, []string{"a.example", "a.example", "b.example"})
		count := func() int {
			found, err := TallyOf(t.Context(), tab, alice)
			if err != nil {
				t.Fatal(err)
			}
			return found.Old.Count
		}
		// A process that cannot read, or cannot write, when it finds something.
		m = newMove(New(Config{Table: tab, Copier: &copier{}, Requests: tab, Mailboxes: mailboxes{}}), tab.users[alice], Request{})
		tab.breakLedger(errors.New("away"))
		m.strays(t.Context(), false, 2, []string{"c.example"})
		m.strays(t.Context(), false, 1, nil)
		tab.breakLedger(nil)
		if n := count(); n != 3 {
			t.Fatalf("%d on record: it was begun anew", n)
		}
		if _, err := m.step(t.Context()); err != nil {
			t.Error(err)
		}
		if n := count(); n != 6 {
			t.Errorf("%d found, want 6", n)
		}
		tab.breakLedger(errors.New("away"))
		m.strays(t.Context(), false, 1, nil)
		tab.breakLedger(nil)
		m.giveUp(true)
		if n := count(); n != 7 {
			t.Errorf("%d found, want 7", n)
		}
	})
}

// TestBookThatCannotBeReadInASweep is that with a conductor at work.
func TestBookThatCannotBeReadInASweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			if n == 10 {
				tab.breakLedger(errors.New("away"))
				time.AfterFunc(3*time.Second, func() { tab.breakLedger(nil) })
			}
			return backfill.Report{Copied: 1}, nil
		}
		conduct(t, tab, cop, Config{})
		time.Sleep(time.Hour)
		passes := len(cop.forth())
		found, err := TallyOf(t.Context(), tab, alice)
		if err != nil || found.Old.Count < passes-2 || passes < 20 {
			t.Errorf("%d found in %d looks, %v", found.Old.Count, passes, err)
		}
	})
}
