package redis_test

import (
	"fmt"
	"os"
	"testing"

	"crossfade/internal/redistest"
	"crossfade/store/redis"
	"crossfade/store/storetest"
)

// TestClusterSuite runs the conformance suite on a Cluster of three masters, each
// store of it with a queue of its own.
func TestClusterSuite(t *testing.T) {
	if os.Getenv("CROSSFADE_FAULTS") != "long" {
		t.Skip("set CROSSFADE_FAULTS=long: TestCluster is the short form")
	}
	t.Parallel()
	c := redistest.StartCluster(t, 3, 0)
	storetest.Run(t, func(t *testing.T) storetest.Factory {
		return open(c.URL(), redis.DialOptions{Queue: fmt.Sprint("q", queues.Add(1))})
	})
}

// TestSentinelSuite runs it on a master with two replicas, which each write waits
// for.
func TestSentinelSuite(t *testing.T) {
	if os.Getenv("CROSSFADE_FAULTS") != "long" {
		t.Skip("set CROSSFADE_FAULTS=long: TestSentinel is the short form")
	}
	t.Parallel()
	m := redistest.Start(t)
	m.StartReplicas(2)
	sen := m.StartSentinels("mymaster", 3, 2)
	storetest.Run(t, func(t *testing.T) storetest.Factory {
		return open(sen.URL(), redis.DialOptions{Queue: fmt.Sprint("q", queues.Add(1))})
	})
}
