package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// TestFaultsAtOnce: nodes die and stand still, Redis dies and stands still,
// connections break and replies are lost, one after the other and into each other.
func TestFaultsAtOnce(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	proxy := redistest.NewProxy(t, srv.Addr)
	const lease = 3 * time.Second
	r := newRig(t, place{URL: proxy.URL(), Lease: lease}, busyLoad)
	r.load.Flip = [2]int{0, 3}
	r.startAll(3)
	away := func(what string, f func()) {
		began := time.Now()
		f()
		r.acc.fault("", what, began)
	}
	runs := times(25, 300)
	done := map[string]int{}
	for range runs {
		rest(t.Context(), time.Duration(rand.IntN(200))*time.Millisecond)
		slot, what := rand.IntN(3), ""
		switch n := rand.IntN(100); {
		case n < 35:
			what = "node killed"
			r.kill(slot)
			r.start(slot)
		case n < 45:
			what = "node frozen"
			r.freeze(context.Background(), slot, time.Duration(rand.Int64N(int64(lease*3/2))))
		case n < 55:
			what = "Redis killed"
			away("Redis away", func() {
				srv.Kill()
				rest(t.Context(), time.Duration(rand.IntN(300))*time.Millisecond)
				srv.Restart()
			})
		case n < 60:
			what = "Redis frozen"
			away("Redis away", func() {
				srv.Stop()
				rest(t.Context(), time.Duration(rand.IntN(500))*time.Millisecond)
				srv.Cont()
			})
		case n < 80:
			what = "connections cut"
			away("connections cut", proxy.Cut)
		default:
			what = "reply lost"
			proxy.DropAt(1 + rand.IntN(5))
		}
		done[what]++
	}
	rest(t.Context(), 500*time.Millisecond)
	r.stopAll()
	t.Log(fmt.Sprint(done))
	result(t, "all of these at once", "redis", runs, r.finish(60*time.Second))
}
