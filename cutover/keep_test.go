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

// TestCountsSurviveARestart: what was copied, how often it was tried, and when
// it is tried again.
func TestCountsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: time.Second}
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			if n < 3 {
				return backfill.Report{Copied: 100, Bytes: 1000}, errors.New("old: the connection ended")
			}
			return backfill.Report{}, nil
		}
		cfg := Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab, RetryFirst: time.Minute}
		first := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- first.Run(ctx) }()
		start(t, first, alice, false)
		time.Sleep(90 * time.Second) // the second attempt failed, the third comes two minutes later
		before, _ := first.StatusOf(alice)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		c := conduct(t, tab, cop, cfg)
		time.Sleep(time.Second)
		st, _ := c.StatusOf(alice)
		if st.Copied != 200 || st.Bytes != 2000 || st.Attempts != 2 || st.Failures != 2 || st.Err != before.Err || !st.Next.Equal(before.Next) ||
			!st.Started.Equal(before.Started) || st.Phase != PhaseFailed {
			t.Errorf("after a restart: %+v\nbefore: %+v", st, before)
		}
		time.Sleep(30 * time.Second)
		if passes, _ := cop.seen(); len(passes) != 2 {
			t.Errorf("%d passes: the back-off was forgotten", len(passes))
		}
		time.Sleep(time.Hour)
		if st, _ = c.StatusOf(alice); tab.state(alice) != router.StateNew || st.Copied != 300 || st.Attempts != 0 || st.Failures != 3 {
			t.Errorf("%s: %+v", tab.way(alice), st)
		}
	})
}

// TestAskedAfterARestart: an operator's word ends a back-off of an earlier process.
func TestAskedAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			if n == 0 {
				return backfill.Report{}, errors.New("no")
			}
			return backfill.Report{}, nil
		}
		cfg := Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab, RetryFirst: time.Hour}
		first := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- first.Run(ctx) }()
		start(t, first, alice, false)
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c := conduct(t, tab, cop, cfg)
		time.Sleep(time.Minute)
		start(t, c, alice, false)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateNew {
			t.Errorf("the user went %q", tab.way(alice))
		}
	})
}

// TestCountsGrowInAPass: status and metrics are told while a pass runs, and each
// message once.
func TestCountsGrowInAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		half := make(chan struct{})
		var messages int
		var octets int64
		cop := passFunc(func(ctx context.Context, o backfill.Options) (backfill.Report, error) {
			if o.Progress != nil && messages < 10 {
				o.Progress(backfill.Progress{Messages: 10, MessagesDone: 6, Copied: 5, CopiedBytes: 500})
				<-half
				return backfill.Report{Copied: 10, Bytes: 1000}, nil
			}
			return backfill.Report{}, nil
		})
		c := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab, Hooks: Hooks{
			Copying: func(n int, b int64) { messages, octets = messages+n, octets+b }}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		start(t, c, alice, true)
		synctest.Wait()
		if st, _ := c.StatusOf(alice); st.Copied != 5 || st.Bytes != 500 || messages != 5 || octets != 500 {
			t.Errorf("in the pass: %d, %d; %+v", messages, octets, st)
		}
		close(half)
		synctest.Wait()
		if st, _ := c.StatusOf(alice); st.Copied != 10 || st.Bytes != 1000 || messages != 10 || octets != 1000 {
			t.Errorf("after the pass: %d, %d; %+v", messages, octets, st)
		}
		cancel()
		<-done
	})
}

type passFunc func(ctx context.Context, o backfill.Options) (backfill.Report, error)

func (f passFunc) Pass(ctx context.Context, _ backfill.Job, o backfill.Options) (backfill.Report, error) {
	return f(ctx, o)
}

func (f passFunc) Verify(context.Context, backfill.Job) (backfill.Verification, error) {
	return backfill.Verification{}, nil
}

// TestAllowedForADay: what was said of deletions ends, also when no pass ends well.
func TestAllowedForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateReady}), &copier{}
		cop.pass = func(string, int, bool) (backfill.Report, error) { return backfill.Report{}, errors.New("no") }
		c := conduct(t, tab, cop, Config{})
		time.Sleep(time.Second)
		if err := c.Start(t.Context(), Request{User: alice, By: "olga", Sync: true, AllowDeletions: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		o := cop.asked()
		if !o[len(o)-1].AllowDeletions {
			t.Error("it ended before a day was over")
		}
		time.Sleep(3 * time.Hour)
		o = cop.asked()
		if o[len(o)-1].AllowDeletions {
			t.Error("it counts after a day")
		}
	})
}
