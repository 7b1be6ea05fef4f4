package faults

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// TestFaultsFailover: one master with two replicas under three sentinels. The
// sentinels are told to change the master, and the master is killed.
func TestFaultsFailover(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	all := append([]*redistest.Server{master}, master.StartReplicas(2)...)
	sent := master.StartSentinels("cx", 3, 2)
	for _, test := range []struct {
		name string
		hit  func(master *redistest.Server)
	}{
		{"SENTINEL FAILOVER, two replicas", func(m *redistest.Server) {
			within(t, 60*time.Second, "the sentinels change the master", func() bool { // they give up when no replica is good just then
				_ = sent.Failover()
				rest(context.Background(), 2*time.Second)
				return sent.Master() != m.Addr
			})
		}},
		{"kill -9 of the master, two replicas, three sentinels", func(m *redistest.Server) { m.Kill() }},
	} {
		r := newRig(t, place{URL: sent.URL(), Lease: 30 * time.Second}, busyLoad)
		r.load.Flip = [2]int{0, 2}
		r.startAll(2)
		runs := times(1, 8)
		for range runs {
			acked := r.acc.count(evAck)
			within(t, 40*time.Second, "mail is taken", func() bool { return r.acc.count(evAck) > acked+50 })
			rest(context.Background(), time.Duration(rand.IntN(300))*time.Millisecond)
			was := sent.Master()
			m := all[slices.IndexFunc(all, func(s *redistest.Server) bool { return s.Addr == was })]
			began := time.Now()
			test.hit(m)
			within(t, 30*time.Second, "another master", func() bool { return sent.Master() != was })
			if m.Info("role") == "" { // killed: it comes back, with what it had
				rest(context.Background(), time.Duration(rand.IntN(1000))*time.Millisecond)
				m.Restart()
			}
			acked = r.acc.count(evAck)
			within(t, 60*time.Second, "mail is taken by the new master", func() bool { return r.acc.count(evAck) > acked })
			r.acc.fault("", "failover", began)
			t.Logf("%s: mail was taken again after %s", test.name, time.Since(began).Round(time.Millisecond))
		}
		r.stopAll()
		result(t, test.name, "redis", runs, r.finish(60*time.Second))
	}
}

// forced fails over by hand: the master loses its replicas, goes on taking mail
// for a while, and dies; one of them takes over. honest false has the nodes
// believe that WAIT was answered well.
func forced(t *testing.T, honest bool) *verdict {
	master := redistest.Start(t)
	replicas := master.StartReplicas(2)
	proxy := redistest.NewProxy(t, master.Addr)
	if !honest {
		proxy.Hook(func(cmd []string, reply []byte) ([]byte, bool) {
			if strings.EqualFold(cmd[0], "WAIT") {
				return []byte(":2\r\n"), true
			}
			return reply, true
		})
	}
	lease := 30 * time.Second
	if !honest {
		lease = 8 * time.Second // the drain waits for those that are lost
	}
	r := newRig(t, place{URL: proxy.URL(), Lease: lease}, busyLoad)
	r.load.Flip = [2]int{0, 2}
	r.startAll(2)
	within(t, 20*time.Second, "mail is taken", func() bool { return r.acc.count(evAck) > 100 })
	for _, s := range replicas {
		s.Stop() // as a network does that lets nothing through: the master does not know yet
	}
	began, acked := time.Now(), r.acc.count(evAck)
	if honest {
		rest(context.Background(), 3*time.Second)
	} else {
		within(t, 20*time.Second, "mail is taken without replicas", func() bool { return r.acc.count(evAck) > acked+10 })
	}
	master.Kill()
	for _, s := range replicas {
		s.Restart() // what the kernel kept for it meanwhile is gone
	}
	replicas[0].Must("REPLICAOF", "NO", "ONE")
	host, port, _ := strings.Cut(replicas[0].Addr, ":")
	replicas[1].Must("REPLICAOF", host, port)
	proxy.Backend(replicas[0].Addr)
	proxy.Cut()
	acked = r.acc.count(evAck)
	within(t, 60*time.Second, "mail is taken by the new master", func() bool { return r.acc.count(evAck) > acked })
	r.acc.fault("", "failover", began)
	r.stopAll()
	return r.finish(60 * time.Second)
}

// TestFaultsMasterCutOff: a master that lost its replicas promises nothing.
func TestFaultsMasterCutOff(t *testing.T) {
	t.Parallel()
	result(t, "the master is cut off from its replicas, then dies", "redis", 1, forced(t, true))
}

// TestFaultsNoWait is the same with WAIT left out: it has to be seen.
func TestFaultsNoWait(t *testing.T) {
	t.Parallel()
	v := forced(t, false)
	caught(t, "WAIT left out", "redis", 1, v, v.Lost)
}
