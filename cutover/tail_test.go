package cutover

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/router"
)

// watcher tells what a test tells it.
type watcher struct {
	mu      sync.Mutex
	watches map[string][]func(string) // by login
	begun   int
}

func (w *watcher) Watch(acct imapconn.Account, folder string, changed func(string)) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watches == nil {
		w.watches = map[string][]func(string){}
	}
	user := acct.Login.User
	w.watches[user] = append(w.watches[user], changed)
	w.begun++
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.watches[user] = w.watches[user][1:]
	})
}

func (w *watcher) tell(user, folder string) {
	w.mu.Lock()
	all := slices.Clone(w.watches[user])
	w.mu.Unlock()
	for _, changed := range all {
		changed(folder)
	}
}

func (w *watcher) count(user string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.watches[user])
}

// only gives the folders of each pass so far, "*" for a pass over all.
func (c *copier) only() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, o := range c.options {
		name := strings.Join(o.Only, "+")
		if name == "" {
			name = "*"
		}
		out = append(out, name)
	}
	return out
}

func TestSignalIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{took: 50 * time.Millisecond}, &watcher{}
		var lags []time.Duration
		c := conduct(t, tab, cop, Config{Watcher: w, Hooks: Hooks{Lagged: func(d time.Duration) { lags = append(lags, d) }}})
		start(t, c, alice, true)
		time.Sleep(10 * time.Second)
		before := len(cop.only())
		for _, told := range []struct{ folders, want string }{
			{"INBOX", "INBOX"},
			{"INBOX Work Work", "INBOX+Work"},
			{"INBOX \x00", "*"}, // of any folder
			{"a b c d e f g h i", "*"},
			{"INBOX", "INBOX"},
		} {
			// A pass is under way while they are told, so that all of them are for the next.
			w.tell(alice, "first")
			time.Sleep(10 * time.Millisecond)
			for f := range strings.FieldsSeq(told.folders) {
				w.tell(alice, strings.Trim(f, "\x00"))
			}
			time.Sleep(3 * time.Second)
			all := cop.only()
			if got := all[before:]; !slices.Equal(got, []string{"first", told.want}) {
				t.Errorf("%q was told, and these passes were made: %q, want first and %q", told.folders, got, told.want)
			}
			before = len(all)
		}
		synctest.Wait()
		// A pass takes 50 ms; the second begins 200 ms after the first, and its changes came 10 ms into that.
		if len(lags) != 10 || lags[0] != 50*time.Millisecond || lags[1] != 290*time.Millisecond {
			t.Errorf("lags: %v", lags)
		}
		cop.mu.Lock()
		for _, o := range cop.options {
			if len(o.Only) > 0 && (o.Deletions || !o.Restore) {
				t.Errorf("a pass over single folders with %+v", o)
			}
		}
		cop.mu.Unlock()
		// The look at all folders is made every minute all the same.
		time.Sleep(5 * time.Minute)
		if sweeps := strings.Count(strings.Join(cop.only()[before:], ""), "*"); sweeps < 4 || sweeps > 6 {
			t.Errorf("%d passes over all folders in five minutes", sweeps)
		}
	})
}

func TestSignalsWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{took: 300 * time.Millisecond}, &watcher{}
		c := conduct(t, tab, cop, Config{Watcher: w})
		start(t, c, alice, true)
		time.Sleep(10 * time.Second)
		before := len(cop.only())
		for range 300 {
			w.tell(alice, "INBOX")
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(cop.only()) - before; n < 40 || n > 51 {
			t.Errorf("%d passes in half a minute of changes: at most half of the time is for one user", n)
		}
		// The one that comes during a pass is not lost.
		time.Sleep(5 * time.Second)
		before = len(cop.only())
		w.tell(alice, "INBOX")
		time.Sleep(100 * time.Millisecond)
		w.tell(alice, "INBOX")
		time.Sleep(5 * time.Second)
		if n := len(cop.only()) - before; n != 2 {
			t.Errorf("%d passes for a change and one during its pass, want 2", n)
		}
	})
}

// Users who are copied for hours do not keep the others' new mail waiting.
func TestSignalNeedsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{}, &watcher{}
		busy := make(chan struct{})
		cop.pass = func(user string, _ int, _ bool) (backfill.Report, error) {
			if user == "whale@example.org" {
				<-busy
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{Watcher: w, Concurrency: 1, Tail: time.Hour})
		start(t, c, alice, true)
		time.Sleep(time.Second)
		start(t, c, "whale@example.org", true)
		time.Sleep(time.Second)
		before := len(cop.only())
		w.tell(alice, "INBOX")
		time.Sleep(time.Second)
		if got := cop.only()[before:]; len(got) != 1 {
			t.Errorf("while another is copied, a change was followed by the passes %q", got)
		}
		close(busy)
	})
}

func TestWatchEndsWithReady(t *testing.T) {
	leave := map[string]func(t *testing.T, c *Conductor, tab *table){
		"flipped": func(t *testing.T, c *Conductor, _ *table) { start(t, c, alice, false) },
		"cancelled": func(t *testing.T, c *Conductor, _ *table) {
			if err := c.Cancel(t.Context(), alice, "test"); err != nil {
				t.Error(err)
			}
		},
		"set by hand": func(t *testing.T, c *Conductor, tab *table) {
			u, _ := tab.User(t.Context(), alice)
			u.State = router.StateOld
			if _, _, err := tab.SetUser(t.Context(), u, router.Change{To: router.StateOld, By: "operator", Forced: true}); err != nil {
				t.Error(err)
			}
		},
	}
	for name, do := range leave {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tab, w := newTable(), &watcher{}
				c := conduct(t, tab, &copier{}, Config{Watcher: w})
				start(t, c, alice, true)
				time.Sleep(10 * time.Minute)
				if w.count(alice) != 1 || w.begun != 1 {
					t.Fatalf("a ready user is watched %d times, begun %d times", w.count(alice), w.begun)
				}
				do(t, c, tab)
				time.Sleep(2 * time.Minute)
				// Who was flipped is watched for stragglers.
				if st := tab.state(alice); w.count(alice) != 0 && st != router.StateNew {
					t.Errorf("the watch goes on: the user is %s", st)
				}
			})
		})
	}
}

// A signal does not shorten the pause after a failure, and what it said is not
// forgotten.
func TestSignalAndFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{}, &watcher{}
		var broken atomic.Bool
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			if broken.Load() {
				return backfill.Report{}, errors.New("new: over quota")
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{Watcher: w, RetryFirst: 30 * time.Second})
		start(t, c, alice, true)
		time.Sleep(10 * time.Second)
		before := len(cop.only())
		broken.Store(true)
		for range 29 {
			w.tell(alice, "INBOX")
			time.Sleep(time.Second)
		}
		if got := cop.only()[before:]; len(got) != 1 {
			t.Errorf("within the pause after a failure: %q", got)
		}
		broken.Store(false)
		time.Sleep(2 * time.Second)
		if got := cop.only()[before:]; len(got) != 2 || got[1] != "*" {
			t.Errorf("after a failure: %q, want a pass over all", got)
		}
		if st, _ := c.StatusOf(alice); st.Phase != PhaseReady || st.Err != "" {
			t.Errorf("%+v", st)
		}
	})
}

// Of several nodes the one that owns a user watches his mailbox.
func TestOwnerWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(nil)
		w1, w2 := &watcher{}, &watcher{}
		n1 := runNode(t, b, g, "n1", Config{Watcher: w1})
		start(t, n1.Conductor, alice, true)
		time.Sleep(time.Minute)
		runNode(t, b, g, "n2", Config{Watcher: w2})
		time.Sleep(time.Minute)
		if w1.count(alice) != 1 || w2.count(alice) != 0 {
			t.Fatalf("watches: %d and %d", w1.count(alice), w2.count(alice))
		}
		n1.view.set(func(v *view) { v.away = errAway }) // it hears no more
		time.Sleep(2 * time.Minute)
		if w1.count(alice) != 0 || w2.count(alice) != 1 {
			t.Errorf("after one lost him: %d and %d", w1.count(alice), w2.count(alice))
		}
		g.check(t)
	})
}
