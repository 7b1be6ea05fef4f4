package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

const (
	// fewFailed users are no share of a wave, however small it is.
	fewFailed = 3
	// mostFailing is how many names a wave keeps of those whose last attempt failed.
	mostFailing = 1000
)

// counted makes an attempt at a flip, and lets the user's wave know how it ended.
func (m *move) counted(ctx context.Context, u router.User, attempt func() error) error {
	err := attempt()
	if u.Wave == "" || m.c.cfg.StopAfter <= 0 && m.c.cfg.StopShare <= 0 {
		return err
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	var counting error
	switch {
	case err == nil && m.snapshot().State == router.StateNew:
		counting = m.c.succeeded(wctx, u.Wave, m.user)
	case err != nil && ctx.Err() == nil && m.isFailure(err):
		counting = m.c.failedIn(wctx, u.Wave, m.user, err)
	}
	if counting != nil {
		m.c.cfg.Log.Warn("cutover: how an attempt ended is missing in the count of its wave", "wave", u.Wave, "user", m.user, "err", counting)
	}
	return err
}

// isFailure tells whether an error says something about how a wave goes.
func (m *move) isFailure(err error) bool {
	var limit *backfill.DayLimit
	for _, other := range []error{errPaused, errPaced, errYield, errLost, errArrived, router.ErrEpoch, router.ErrNoUser} {
		if errors.Is(err, other) {
			return false
		}
	}
	return !errors.As(err, &limit) && m.check() == nil
}

func (c *Conductor) succeeded(ctx context.Context, wave, user string) error {
	w := c.wave(wave)
	if w.Row == 0 && !slices.Contains(w.Failing, user) {
		return nil
	}
	return c.changeWave(ctx, wave, func(w *waveRecord) {
		w.Row = 0
		w.Failing = slices.DeleteFunc(slices.Clone(w.Failing), func(x string) bool { return x == user })
	})
}

// failedIn counts a failed attempt, and stops the wave when there were too many.
func (c *Conductor) failedIn(ctx context.Context, wave, user string, cause error) error {
	var now waveRecord
	err := c.changeWave(ctx, wave, func(w *waveRecord) {
		w.Row++
		if !slices.Contains(w.Failing, user) && len(w.Failing) < mostFailing {
			w.Failing = append(slices.Clone(w.Failing), user)
		}
		now = *w
	})
	if err != nil {
		return err
	}
	why, err := c.tooMany(ctx, wave, now)
	if err != nil || why == "" {
		return err
	}
	if _, stopped := c.stoppedBy(wave); stopped {
		return nil
	}
	p := Pause{Wave: wave, Flips: true, By: Itself, Since: time.Now().UTC().Truncate(time.Second),
		Reason: fmt.Sprintf("%s; the last one, of %s: %v", why, user, cause)}
	if err := c.savePause(ctx, p); err != nil {
		return err
	}
	c.cfg.Log.Error("cutover: a wave stops by itself; mend the cause, then: crossfade cutover resume --wave "+wave, "wave", wave, "reason", p.Reason)
	if c.cfg.Hooks.Stopped != nil {
		c.cfg.Hooks.Stopped(p)
	}
	return c.readOrders(ctx)
}

// tooMany says why a wave is to stop; empty: it goes on.
func (c *Conductor) tooMany(ctx context.Context, wave string, w waveRecord) (string, error) {
	if n := c.cfg.StopAfter; n > 0 && w.Row >= n {
		return fmt.Sprintf("%d attempts at a flip failed in a row", w.Row), nil
	}
	failing := len(w.Failing)
	if c.cfg.StopShare <= 0 || failing < fewFailed {
		return "", nil
	}
	members := 0
	if err := c.members(ctx, wave, func(router.User) { members++ }); err != nil {
		return "", err
	}
	if float64(failing) < c.cfg.StopShare*float64(members) {
		return "", nil
	}
	return fmt.Sprintf("the last attempts at a flip failed for %d of %d users", failing, members), nil
}
