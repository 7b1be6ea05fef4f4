package redis

import (
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// TestCluster: mail with large bodies is put and settled in a Cluster of three
// masters with a replica each, while the one with the metadata is killed.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, 1)
	s := nodeOn(t, c.URL(), "a", func(o *Options) { o.LeaseTime = 5 * time.Second })
	r, err := s.server.Inspect(t.Context())
	if err != nil || len(r.Masters) != 3 {
		t.Fatalf("%v, %+v", err, r)
	}
	for _, m := range r.Masters {
		if m.Replicas != 1 {
			t.Errorf("%s waits for %d replicas", m.Addr, m.Replicas)
		}
	}
	var f traffic
	f.start(t, s)
	f.goesOn(t, 10*time.Second)
	old := c.Owner(s.key("w"))
	old.Kill()
	within(t, 20*time.Second, "another owner of the metadata", func() bool { return c.Owner(s.key("w")) != nil })
	f.goesOn(t, 20*time.Second)
	old.Restart()
	f.goesOn(t, 20*time.Second)
	if f.check(t, c.URL()) > 0 {
		t.Error("acknowledged mail is lost")
	}
}
