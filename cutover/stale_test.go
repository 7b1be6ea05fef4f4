package cutover

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// TestUserWhoWasSetNewWhileHeWaited: what he deletes on new must not come back by
// a pass for a user who reads old.
func TestUserWhoWasSetNewWhileHeWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: time.Hour}
		c := conduct(t, tab, cop, Config{Concurrency: 1})
		start(t, c, alice, true)
		time.Sleep(time.Second)
		start(t, c, "bob@example.org", true) // waits for alice's place
		time.Sleep(time.Minute)
		u, err := tab.User(t.Context(), "bob@example.org")
		if err != nil {
			t.Fatal(err)
		}
		u.State = router.StateNew
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateSyncing, To: router.StateNew, Forced: true, By: "admin"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		passes, _ := cop.seen()
		for i, o := range cop.asked() {
			if passes[i] != alice && passes[i] != alice+" final" && (o.Restore || o.Deletions) {
				t.Errorf("%s: %+v", passes[i], o)
			}
		}
	})
}

// TestTakenBackBeforeTheHold: who is told to stop at ready while the last pass
// before his hold runs is not held.
func TestTakenBackBeforeTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, true)
		time.Sleep(90 * time.Second)
		cop.mu.Lock()
		cop.took = 10 * time.Second
		cop.mu.Unlock()
		start(t, c, alice, false)
		time.Sleep(5 * time.Second)
		start(t, c, alice, true)
		time.Sleep(time.Hour)
		if got := tab.way(alice); got != "syncing ready" {
			t.Errorf("his way: %s", got)
		}
	})
}

// TestInsistOutlivesALostConnection: that an operator asked for a pass counts for
// the next one when the first broke off.
func TestInsistOutlivesALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		cop := &copier{pass: func(_ string, n int, _ bool) (backfill.Report, error) {
			if n == 0 {
				return backfill.Report{}, errors.New("the connection was lost")
			}
			return backfill.Report{}, nil
		}}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, true)
		time.Sleep(10 * time.Minute)
		asked := cop.asked()
		if len(asked) < 3 || !asked[0].Insist || !asked[1].Insist || asked[2].Insist {
			t.Errorf("%+v", asked)
		}
	})
}
