package queue

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestScheduleNext(t *testing.T) {
	s := DefaultSchedule()
	for attempts, want := range map[int]time.Duration{
		0: time.Minute, 1: time.Minute, 2: 90 * time.Second, 3: 135 * time.Second, 9: time.Duration(25.62890625 * float64(time.Minute)),
		10: 30 * time.Minute, 100: 30 * time.Minute, 1 << 30: 30 * time.Minute,
	} {
		if got := s.Next(attempts, 0.5); got.Round(time.Millisecond) != want.Round(time.Millisecond) {
			t.Errorf("%d attempts: %v, want %v", attempts, got, want)
		}
	}
	if low, high := s.Next(1, 0), s.Next(1, 0.999999); low != 54*time.Second || high < 65*time.Second || high > 66*time.Second {
		t.Errorf("jitter spreads from %v to %v", low, high)
	}
}

// The wait grows with the attempts, and it is never nothing, never endless.
func TestScheduleNextProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := DefaultSchedule()
		n := rapid.IntRange(0, 10000).Draw(t, "attempts")
		j := rapid.Float64Range(0, 0.999999).Draw(t, "jitter")
		wait := s.Next(n, j)
		if wait < s.First*9/10 || wait > s.Max*11/10 {
			t.Fatalf("it waits %v", wait)
		}
		if s.Next(n+1, j) < wait {
			t.Fatal("it grows shorter")
		}
	})
}

func TestScheduleExpired(t *testing.T) {
	s := DefaultSchedule()
	day := 24 * time.Hour
	for _, test := range []struct {
		age      time.Duration
		attempts int
		want     bool
	}{
		{5*day - 1, 100, false}, {5 * day, 5, true}, {50 * day, 5, true},
		{50 * day, 4, false}, // held for long, and greylisted since
		{50 * day, 0, false}, // held all the time: never tried, never expired
		{-day, 9, false},     // a clock that jumped
	} {
		if got := s.Expired(test.age, test.attempts); got != test.want {
			t.Errorf("%v with %d attempts: %v", test.age, test.attempts, got)
		}
	}
	s.Expire = 0
	if s.Expired(1000*day, 1000) {
		t.Error("no limit, and yet it expired")
	}
}

func TestScheduleNotice(t *testing.T) {
	s := DefaultSchedule()
	if s.NoticeDue(4*time.Hour-1, false) || !s.NoticeDue(4*time.Hour, false) || s.NoticeDue(5*time.Hour, true) {
		t.Error("a notice is due once, at 4 hours")
	}
	s.Notice = 0
	if s.NoticeDue(100*time.Hour, false) {
		t.Error("notices are off")
	}
}
