package redis

import (
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// TestSentinel: mail is put and settled while the master changes. Nothing that
// was acknowledged is lost, and the store finds the new master by itself.
func TestSentinel(t *testing.T) {
	for name, fault := range map[string]func(t *testing.T, sen *redistest.Sentinels, m *redistest.Server){
		"failover": func(t *testing.T, sen *redistest.Sentinels, m *redistest.Server) {
			if err := sen.Failover(); err != nil {
				t.Fatal(err)
			}
			movesFrom(t, sen, m)
		},
		"kill": func(t *testing.T, sen *redistest.Sentinels, m *redistest.Server) {
			m.Kill()
			movesFrom(t, sen, m)
			m.Restart() // it can be promoted: without it no write is safe
		},
		"hang": func(t *testing.T, sen *redistest.Sentinels, m *redistest.Server) {
			m.Stop()
			movesFrom(t, sen, m)
			m.Cont()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := redistest.Start(t)
			m.StartReplicas(2)
			sen := m.StartSentinels("mymaster", 3, 2)
			s := nodeOn(t, sen.URL(), "a", func(o *Options) { o.LeaseTime = 5 * time.Second })
			var f traffic
			f.start(t, s)
			f.goesOn(t, 10*time.Second)
			fault(t, sen, m)
			f.goesOn(t, 25*time.Second)
			if f.check(t, sen.URL()) > 0 {
				t.Error("acknowledged mail is lost")
			}
		})
	}
}

func movesFrom(t *testing.T, sen *redistest.Sentinels, m *redistest.Server) {
	t.Helper()
	within(t, 20*time.Second, "another master", func() bool { a := sen.Master(); return a != "" && a != m.Addr })
}
