package backfill_test

import (
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"
)

// dayLater has all that the ledger says of daily limits be a day and two hours
// old.
func dayLater(t *testing.T, l *fileLedger) {
	t.Helper()
	records, err := l.LoadLedger(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]map[string][][2]int64
	if err := json.Unmarshal(records["daily"], &rec); err != nil {
		t.Fatalf("%v in %q", err, records["daily"])
	}
	for _, hours := range rec["used"] {
		for i := range hours {
			hours[i][0] -= 26
		}
	}
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SaveLedger(t.Context(), user, "daily", data); err != nil {
		t.Fatal(err)
	}
}

// TestPassStopsAtTheDaysLimit: a pass ends where the limit of a side is used up,
// and passes of later days go on, with nothing lost and nothing twice.
func TestPassStopsAtTheDaysLimit(t *testing.T) {
	t.Parallel()
	for side, daily := range map[backfill.Side]backfill.Daily{backfill.SideSource: {Source: 40_000}, backfill.SideDest: {Dest: 40_000}} {
		t.Run(string(side), func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			put(t, src, user, "INBOX", letters(0, 40, 1000)...)
			put(t, src, user, "INBOX.Work", letters(40, 100, 1000)...)
			l := newLedger(t)
			job := jobOf(src, dst)
			days, copied := 0, 0
			for err := error(nil); days == 0 || err != nil; days++ {
				if days > 10 {
					t.Fatal("it does not come to an end")
				}
				var r backfill.Report
				// Another Copier each day: a restart.
				c := &backfill.Copier{Ledger: l, Daily: daily, BatchMessages: 5}
				r, err = c.Pass(t.Context(), job, backfill.Options{})
				copied += r.Copied
				if r.Bytes > 40_000 {
					t.Errorf("%d octets in a day", r.Bytes)
				}
				var limit *backfill.DayLimit
				if err == nil {
					continue
				}
				if !errors.As(err, &limit) || limit.Side != side || time.Until(limit.Until) < 23*time.Hour || time.Until(limit.Until) > 25*time.Hour {
					t.Fatalf("day %d: %v", days, err)
				}
				r, err = c.Pass(t.Context(), job, backfill.Options{})
				if !errors.As(err, &limit) || r.Copied > 10 { // a last batch that is smaller still fits, in each of two lanes
					t.Errorf("the same day: %d copied, %v", r.Copied, err)
				}
				copied += r.Copied
				dayLater(t, l)
			}
			if days < 3 || copied != 100 {
				t.Errorf("%d days, %d copied", days, copied)
			}
			same(t, holds(t, src, user, false), holds(t, dst, user, false))
		})
	}
}

// TestFinalPassIsNotStopped: a user is held during it.
func TestFinalPassIsNotStopped(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 40, 1000)...)
	c := &backfill.Copier{Ledger: newLedger(t), Daily: backfill.Daily{Source: 10_000, Dest: 10_000}, BatchMessages: 5}
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); r.Copied != 40 {
		t.Errorf("%+v", r)
	}
	_, err := c.Pass(t.Context(), jobOf(src, dst), backfill.Options{Prompt: true})
	if err != nil {
		t.Error("a pass with nothing to do ended with", err)
	}
	put(t, src, user, "INBOX", letters(40, 41, 1000)...)
	var limit *backfill.DayLimit
	if _, err = c.Pass(t.Context(), jobOf(src, dst), backfill.Options{Prompt: true}); !errors.As(err, &limit) {
		t.Error("what the final pass used did not count:", err)
	}
}

// TestProvidersOwnDailyLimit: a pass ends at once, and no further one connects
// until an hour is over, but that of an operator.
func TestProvidersOwnDailyLimit(t *testing.T) {
	t.Parallel()
	for what, at := range map[string]struct {
		command string
		side    backfill.Side
	}{"read": {"UID FETCH", backfill.SideSource}, "append": {"APPEND", backfill.SideDest}} {
		for _, ends := range []bool{false, true} {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
				dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
				put(t, src, user, "INBOX", letters(0, 30, 100)...)
				var full atomic.Bool
				full.Store(true)
				answer := func(cmd string) string {
					body := strings.HasPrefix(cmd, "APPEND") || strings.HasPrefix(cmd, "UID FETCH") && strings.Contains(cmd, "BODY")
					if !full.Load() || !body || !strings.HasPrefix(cmd, at.command) {
						return ""
					}
					if ends {
						return "NO [OVERQUOTA] Account exceeded command or bandwidth limits.\r\n* BYE bye"
					}
					return "NO [OVERQUOTA] Account exceeded command or bandwidth limits."
				}
				job := jobOf(src, dst)
				var g *gate
				if at.side == backfill.SideSource {
					g = newGate(t, src.IMAPAddr, answer)
					job.Source.Server.Address = g.addr
				} else {
					g = newGate(t, dst.IMAPAddr, answer)
					job.Dest.Server.Address = g.addr
				}
				c := &backfill.Copier{Ledger: newLedger(t), Settle: time.Millisecond}
				for range 2 {
					began := time.Now()
					r, err := c.Pass(t.Context(), job, backfill.Options{})
					var limit *backfill.DayLimit
					if !errors.As(err, &limit) || limit.Side != at.side || !strings.Contains(limit.Words, "bandwidth") || time.Until(limit.Until) < 59*time.Minute ||
						len(r.Problems) > 0 || time.Since(began) > 5*time.Second {
						t.Fatalf("%v: %+v", err, r)
					}
				}
				conns := g.conns.Load()
				full.Store(false)
				if _, err := c.Pass(t.Context(), job, backfill.Options{}); err == nil || g.conns.Load() != conns {
					t.Errorf("it was asked again: %v", err)
				}
				if r := mustPass(t, c, job, backfill.Options{Insist: true}); r.Copied != 30 {
					t.Errorf("%+v", r)
				}
				mustPass(t, c, job, backfill.Options{})
				same(t, holds(t, src, user, false), holds(t, dst, user, false))
			})
		}
	}
}
