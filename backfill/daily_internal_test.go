package backfill

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
)

// today opens the count of a pass, as another process or node would.
func today(t *testing.T, l Ledger, d Daily, o Options, verifies bool) *day {
	t.Helper()
	b, err := openBook(t.Context(), l, "u")
	if err != nil {
		t.Fatal(err)
	}
	p := &pass{c: &Copier{Daily: d}, ctx: t.Context(), book: b, o: o, log: slog.New(slog.DiscardHandler)}
	p.openDay(verifies)
	return p.day
}

func limitOf(t *testing.T, err error) *DayLimit {
	t.Helper()
	var limit *DayLimit
	if !errors.As(err, &limit) {
		t.Fatalf("%v is no DayLimit", err)
	}
	return limit
}

func TestDayTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(30 * time.Minute)
		l, limits := &mailtest.Ledger{}, Daily{Source: 1000}
		began := time.Now()
		d := today(t, l, limits, Options{}, false)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(d.take(SideSource, 300))
		must(d.take(SideDest, 1<<40)) // no limit
		time.Sleep(2 * time.Hour)
		must(d.take(SideSource, 600))
		must(d.end(true))

		// Another process goes on counting, and a twentieth is left for those who are ready.
		d = today(t, l, limits, Options{}, false)
		limit := limitOf(t, d.take(SideSource, 100))
		if want := began.Add(24*time.Hour + 30*time.Minute); !limit.Until.Equal(want) || limit.Side != SideSource || limit.Limit != 1000 {
			t.Errorf("%+v, want until %v", limit, want)
		}
		must(today(t, l, limits, Options{Prompt: true}, false).take(SideSource, 100))
		final := today(t, l, limits, Options{Final: true}, false)
		must(final.take(SideSource, 5000)) // counts, and is not stopped
		if limit = limitOf(t, today(t, l, limits, Options{Prompt: true}, false).take(SideSource, 1)); limit.Until.Sub(began) < 26*time.Hour {
			t.Errorf("what a final pass used did not count: %+v", limit)
		}
		// A verification counts under a name of its own, and for everybody.
		time.Sleep(time.Until(limit.Until))
		must(today(t, l, limits, Options{}, true).count(SideSource, 900))
		limitOf(t, today(t, l, limits, Options{}, false).take(SideSource, 100))

		// A message that is larger than the limit goes alone, once a day.
		time.Sleep(26 * time.Hour)
		d = today(t, l, limits, Options{}, false)
		must(d.take(SideSource, 5000))
		limitOf(t, d.take(SideSource, 1))
		time.Sleep(26 * time.Hour)
		must(d.take(SideSource, 5000))
		if n := len(d.rec.Used[SideSource]); n != 1 {
			t.Errorf("%d hours are on record", n)
		}
	})
}

// TestDayIsWrittenSeldom: a hundredth of the limit may be used between two writes.
func TestDayIsWrittenSeldom(t *testing.T) {
	l := &mailtest.Ledger{}
	d := today(t, l, Daily{Source: 1_000_000}, Options{}, false)
	for range 900 {
		if err := d.take(SideSource, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if l.Writes() < 80 || l.Writes() > 90 {
		t.Errorf("%d writes", l.Writes())
	}
	// Without limits nothing is.
	l = &mailtest.Ledger{}
	d = today(t, l, Daily{}, Options{}, false)
	if err := errors.Join(d.take(SideSource, 1<<40), d.count(SideDest, 1<<40), d.end(true)); err != nil || l.Writes() != 0 {
		t.Errorf("%v, %d writes", err, l.Writes())
	}
}

// TestServersOwnLimit: it is left alone for an hour, then for longer, over
// restarts too, until a pass goes through.
func TestServersOwnLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &mailtest.Ledger{}
		words := &imapconn.Error{Command: "UID FETCH", Status: "NO", Code: "OVERQUOTA", Text: "Account exceeded command or bandwidth limits."}
		for _, want := range []time.Duration{1, 2, 4, 8, 12, 12} {
			p := &pass{day: today(t, l, Daily{}, Options{}, false)}
			err := p.endDay(inside("destination", words))
			limit := limitOf(t, err)
			if got := time.Until(limit.Until).Round(time.Minute); got != want*time.Hour || limit.Side != SideDest || limit.Words == "" {
				t.Errorf("%v: %+v", got, limit)
			}
			if again := limitOf(t, today(t, l, Daily{}, Options{}, false).barred()); !again.Until.Equal(limit.Until) || again.Words != limit.Words {
				t.Errorf("the next process knows %+v", again)
			}
			time.Sleep(want * time.Hour)
			if err := today(t, l, Daily{}, Options{}, false).barred(); err != nil {
				t.Error(err)
			}
		}
		p := &pass{day: today(t, l, Daily{}, Options{}, false)}
		if err := p.endDay(nil); err != nil {
			t.Error(err)
		}
		p = &pass{day: today(t, l, Daily{}, Options{}, false)}
		if limit := limitOf(t, p.endDay(words)); time.Until(limit.Until).Round(time.Minute) != time.Hour {
			t.Errorf("it was not forgotten: %+v", limit)
		}
	})
}

func TestWaits(t *testing.T) {
	now := time.Unix(1000*3600, 0)
	hour := time.Hour
	for name, tt := range map[string]struct {
		octets, limit int64
		speed         float64
		hours         []hourUse
		want          time.Duration
	}{
		"it fits":                      {100, 100, 0, nil, 0},
		"a day more":                   {200, 100, 0, nil, 25 * hour},
		"ten days":                     {1000, 100, 0, nil, 9 * 25 * hour},
		"used up, an hour ago":         {100, 100, 0, []hourUse{{999, 100}}, 24 * hour},
		"half free":                    {100, 100, 0, []hourUse{{990, 50}}, 15 * hour},
		"slower than the limit":        {1e6, 1e5, 1e5 / (26 * 3600.0), nil, 0},
		"more is used than is allowed": {100, 100, 0, []hourUse{{990, 500}, {995, 50}}, 20 * hour},
		"for ever":                     {1 << 60, 1, 0, nil, longestLook},
	} {
		if got := waits(now, tt.octets, tt.limit, tt.speed, tt.hours); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	g := Progress{Messages: 100, MessagesDone: 50, MessagesPerSecond: 5, LimitWaits: hour}
	if left, ok := g.Left(); !ok || left != hour+10*time.Second {
		t.Errorf("%v, %v", left, ok)
	}
}
