package token

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counting gives tokens that name the user and the number of the call.
type counting struct {
	shared bool
	life   time.Duration
	fail   func(n int) error
	delay  time.Duration
	same   bool // always the same token

	calls, now, most atomic.Int64
}

func (c *counting) PerUser() bool { return !c.shared }

func (c *counting) Fetch(ctx context.Context, user string) (Token, error) {
	n := int(c.calls.Add(1))
	c.most.Store(max(c.most.Load(), c.now.Add(1)))
	defer c.now.Add(-1)
	select {
	case <-time.After(c.delay):
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	if c.fail != nil {
		if err := c.fail(n); err != nil {
			return Token{}, err
		}
	}
	if c.same {
		n = 0
	}
	t := Token{Value: fmt.Sprintf("%s-%d", user, n)}
	if c.life > 0 {
		t.Expires = time.Now().Add(c.life)
	}
	return t, nil
}

func want(t *testing.T, s *Source, user, refused, value string) {
	t.Helper()
	if got, err := s.Token(context.Background(), user, refused); err != nil || got != value {
		t.Errorf("%q and %v, want %q", got, err, value)
	}
}

func TestTokenIsKeptAndRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("side", &counting{life: time.Hour})
		want(t, s, "a", "", "a-1")
		want(t, s, "b", "", "b-2")
		time.Sleep(54 * time.Minute)
		want(t, s, "a", "", "a-1")
		time.Sleep(2 * time.Minute) // four minutes before its end
		want(t, s, "a", "", "a-3")
	})
}

func TestShortTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("side", &counting{life: time.Minute, shared: true})
		want(t, s, "a", "", "-1")
		time.Sleep(44 * time.Second)
		want(t, s, "b", "", "-1")
		time.Sleep(2 * time.Second)
		want(t, s, "a", "", "-2")
		s = New("side", &counting{shared: true}) // nobody knows its end
		want(t, s, "a", "", "-1")
		want(t, s, "a", "", "-2")
	})
}

// TestRefusedToken: one that was kept is replaced, one that was just made is not.
func TestRefusedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counting{life: time.Hour, shared: true}
		s := New("side", c)
		want(t, s, "a", "", "-1")
		for i := range 100 { // of users who may not be opened
			want(t, s, fmt.Sprint(i), "-1", "-1")
		}
		time.Sleep(justMade)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { want(t, s, fmt.Sprint(i), "-1", "-2") })
		}
		wg.Wait()
		if n := c.calls.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
		want(t, s, "late", "-1", "-2") // refused long ago, on a slow connection
	})
}

func TestOneRenewalAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counting{life: time.Hour, delay: time.Second}
		s := New("side", c)
		var wg sync.WaitGroup
		for range 50 {
			for _, user := range []string{"a", "b", "c"} {
				wg.Go(func() {
					if _, err := s.Token(context.Background(), user, ""); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if c.calls.Load() != 3 || c.most.Load() != 3 {
			t.Errorf("%d calls, %d at once", c.calls.Load(), c.most.Load())
		}
	})
}

// TestWhoGivesUpDoesNotFailOthers: the one who asks goes, the next one asks.
func TestWhoGivesUpDoesNotFailOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("side", &counting{life: time.Hour, delay: time.Minute / 2})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Token(ctx, "a", ""); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		waits, stop := context.WithCancel(context.Background())
		wg.Go(func() {
			if _, err := s.Token(waits, "a", ""); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		wg.Go(func() { want(t, s, "a", "", "a-2") })
		synctest.Wait()
		stop()
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

// TestFailuresAreKept: thousands of logins do not ask for what was just denied.
func TestFailuresAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lasting atomic.Bool
		c := &counting{life: time.Hour, shared: true}
		c.fail = func(n int) error {
			if n > 3 {
				return nil
			}
			return &Error{From: "there", Text: "no", Lasting: lasting.Load()}
		}
		s := New("side", c)
		ask := func(calls int64) {
			t.Helper()
			for range 10 {
				if _, err := s.Token(context.Background(), "a", ""); err == nil || !strings.Contains(err.Error(), "side: there: no") {
					t.Fatal(err)
				}
			}
			if c.calls.Load() != calls {
				t.Fatalf("%d calls, want %d", c.calls.Load(), calls)
			}
		}
		ask(1)
		time.Sleep(firstPause)
		ask(2)
		time.Sleep(firstPause)
		ask(2) // the pause has doubled
		lasting.Store(true)
		time.Sleep(firstPause)
		ask(3)
		time.Sleep(justMade - time.Second)
		ask(3)
		time.Sleep(time.Second)
		want(t, s, "a", "", "-4")
	})
}

// TestOldTokenServesWhileItLasts: a renewal that fails is not yet a loss.
func TestOldTokenServesWhileItLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counting{life: time.Hour}
		c.fail = func(n int) error {
			if n > 1 {
				return errors.New("out of order")
			}
			return nil
		}
		s := New("side", c)
		want(t, s, "a", "", "a-1")
		time.Sleep(57 * time.Minute)
		want(t, s, "a", "", "a-1")
		if _, err := s.Token(context.Background(), "a", "a-1"); err == nil {
			t.Error("a refused token is given again")
		}
		time.Sleep(4 * time.Minute)
		if _, err := s.Token(context.Background(), "a", ""); err == nil {
			t.Error("a token is given after its end")
		}
	})
}

func TestEndedTokenFromProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("side", &counting{life: time.Nanosecond, delay: time.Second})
		s.now = func() time.Time { return time.Now().Add(time.Hour) } // our clock is wrong
		if _, err := s.Token(context.Background(), "a", ""); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Error(err)
		}
	})
}

// TestManyUsers: what ended is forgotten.
func TestManyUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("side", &counting{life: time.Hour})
		for i := range 20_000 {
			if _, err := s.Token(context.Background(), fmt.Sprint(i), ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second) // 360 of them are alive at a time
		}
		if n := len(s.kept); n > 1000 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}
