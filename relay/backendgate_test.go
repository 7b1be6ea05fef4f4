package relay

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/mail"
	"crossfade/relay/smtpclient"
)

func gateFor(max int) *backendGate {
	return newBackendGate(BackendConfig{Name: mail.Old, Target: smtpclient.Target{Address: "h:25"}, MaxConns: max}.filled())
}

func mustEnter(t *testing.T, g *backendGate) *gateSlot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	s, err := g.enter(context.WithoutCancel(ctx))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// full tells whether the gate has no slot just now.
func full(g *backendGate) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	s, err := g.enter(ctx)
	if err == nil {
		g.leave(s)
	}
	return err != nil
}

func TestGateGrowsAndShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gateFor(8)
		var slots []*gateSlot
		for range firstLimit {
			slots = append(slots, mustEnter(t, g))
		}
		if !full(g) {
			t.Fatal("more slots than the first limit")
		}
		rounds := 0
		for ; g.status().Limit < 8; rounds++ {
			g.begin(slots[0])
			g.finish(slots[0], gateReport{ok: true})
		}
		if rounds != 5+6+7 {
			t.Errorf("the limit was reached after %d deliveries", rounds)
		}
		for len(slots) < 8 {
			slots = append(slots, mustEnter(t, g))
		}
		g.begin(slots[0])
		g.begin(slots[1])
		g.finish(slots[0], gateReport{err: errors.New("cut")})
		g.finish(slots[1], gateReport{ok: true}) // not in a row
		g.begin(slots[1])
		g.finish(slots[1], gateReport{err: errors.New("cut")})
		withdrawn := 0
		for _, s := range slots {
			if s.ctx.Err() != nil {
				withdrawn++
			}
		}
		if st := g.status(); st.Limit != 6 || withdrawn != 2 || st.State != BackendUp || st.LastError != "cut" || st.InFlight != 0 {
			t.Errorf("%+v, %d slots withdrawn", st, withdrawn)
		}
	})
}

func TestGateBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gateFor(3)
		a, b := mustEnter(t, g), mustEnter(t, g)
		for range 5 {
			g.begin(a)
			g.finish(a, gateReport{err: errors.New("refused")})
		}
		st := g.status()
		if st.State != BackendDown || st.Failures != 5 || !st.NextProbe.Equal(time.Now().Add(time.Second)) || b.ctx.Err() == nil {
			t.Fatalf("%+v, waiting slot %v", st, b.ctx.Err())
		}
		if g.begin(b) {
			t.Error("a delivery began on a backend that is down")
		}
		g.leave(a)
		g.leave(b)
		for _, wait := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
			g.probed(errors.New("still refused"))
			if at := g.status().NextProbe; !at.Equal(time.Now().Add(wait * time.Second)) {
				t.Errorf("next probe in %s, want %d s", time.Until(at), wait)
			}
		}
		if !full(g) {
			t.Error("slots of a backend that is down")
		}
		g.probed(nil)
		c := mustEnter(t, g)
		if !full(g) {
			t.Error("more than one delivery to a backend that is tried")
		}
		g.begin(c)
		if stay := g.finish(c, gateReport{err: errors.New("421")}); stay || g.status().State != BackendDown {
			t.Errorf("stay %v, %+v", stay, g.status())
		}
		g.leave(c)
		g.probed(nil)
		c = mustEnter(t, g)
		g.begin(c)
		if stay := g.finish(c, gateReport{ok: true}); !stay || g.status().State != BackendUp || g.status().Limit != 3 {
			t.Errorf("stay %v, %+v", stay, g.status())
		}
	})
}

func TestGatePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gateFor(3)
		waiting, sending := mustEnter(t, g), mustEnter(t, g)
		g.begin(sending)
		g.pause("upgrade", "ada")
		if waiting.ctx.Err() == nil || sending.ctx.Err() != nil {
			t.Error("a pause ends what waits, not what is being sent")
		}
		if g.finish(sending, gateReport{ok: true}) {
			t.Error("a slot stays through a pause")
		}
		g.leave(sending)
		g.leave(waiting)
		entered := make(chan *gateSlot)
		go func() {
			s, _ := g.enter(t.Context())
			entered <- s
		}()
		synctest.Wait()
		select {
		case <-entered:
			t.Fatal("entered a paused gate")
		default:
		}
		g.resume()
		if s := <-entered; s == nil || g.status().State != BackendUp || g.status().Reason != "" {
			t.Errorf("%+v", g.status())
		}
	})
}

func TestGateEnterEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := gateFor(1).enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v: a worker that was told to end took a slot", err)
	}
}
