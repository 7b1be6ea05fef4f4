//go:build unix

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/redis"
)

// BenchmarkLife takes MESSAGES (20000) messages of SESSIONS (10) senders through
// their whole life, as NODES (1) relays do: look the recipient up, put, claim,
// renew, settle. It prints what a message costs in CPU of Redis and of this
// process, and how often Redis ran a script and read from a connection; these
// vary less with the load of the machine than the rate.
func BenchmarkLife(b *testing.B) {
	s, raw := benchStore(b)
	nodes := []*redis.Store{s}
	for i := 1; i < many("NODES", 1); i++ {
		srv, err := redis.Dial("redis://" + raw.Options().Addr + "/0")
		if err != nil {
			b.Fatal(err)
		}
		more, err := redis.Open(b.Context(), srv, redis.Options{Node: fmt.Sprint("n", i)})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { more.Close() })
		nodes = append(nodes, more)
	}
	var users []router.User
	for i := range 10_000 {
		users = append(users, router.User{Address: fmt.Sprintf("firstname.lastname%05d@example.org", i), Kind: router.KindMailbox, State: router.StateOld})
	}
	if _, _, err := s.ImportUsers(b.Context(), users, router.Change{By: "bench", Reason: "import"}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	l := &life{b: b, ctx: ctx, cancel: cancel, n: int64(many("MESSAGES", 20_000))}
	l.left.Store(l.n)
	for range 200 {
		l.bodies = append(l.bodies, benchBody())
	}
	was, mine, start := look(b, raw), ownCPU(b), time.Now()
	var all sync.WaitGroup
	for i := range many("SESSIONS", 10) {
		all.Go(func() { l.send(nodes[i%len(nodes)]) })
	}
	for i := range 20 * len(nodes) {
		all.Go(func() { l.deliver(nodes[i%len(nodes)]) })
	}
	all.Wait()
	took, now, n := time.Since(start), look(b, raw), float64(l.n)
	b.ReportMetric(n/took.Seconds(), "messages/s")
	b.ReportMetric((now.cpu-was.cpu)*1e6/n, "µs-redis")
	b.ReportMetric((ownCPU(b)-mine)*1e6/n, "µs-here")
	b.ReportMetric((now.reads-was.reads)/n, "reads")
	b.ReportMetric((now.calls-was.calls)/n, "scripts")
	b.ReportMetric(0, "ns/op")
}

// life is what senders and workers of BenchmarkLife share.
type life struct {
	b             *testing.B
	ctx           context.Context
	cancel        func()
	n             int64
	left, settled atomic.Int64
	bodies        []string
}

func (l *life) send(s *redis.Store) {
	for i := l.left.Add(-1); i >= 0; i = l.left.Add(-1) {
		env := benchEnvelope()
		_, err := s.User(l.ctx, env.Recipients[0].User)
		if err = errors.Join(err, s.Put(l.ctx, env, strings.NewReader(l.bodies[int(i)%len(l.bodies)]))); err != nil {
			l.b.Error(err)
			return
		}
	}
}

func (l *life) deliver(s *redis.Store) {
	for {
		lease, err := s.Claim(l.ctx, mail.Old, 100)
		if err != nil {
			return // all are settled
		}
		body, err := s.Open(context.Background(), lease.Envelope.ID)
		if err == nil {
			_, err = io.Copy(io.Discard, body)
			body.Close()
		}
		err = errors.Join(err, s.Renew(context.Background(), lease, true),
			s.Settle(context.Background(), lease, []queue.Outcome{{N: 0, Kind: queue.Done, Reply: "250 2.0.0 ok"}}))
		if err != nil {
			l.b.Error(err)
		}
		if l.settled.Add(1) == l.n {
			l.cancel()
		}
	}
}

// load is what Redis says that it has done.
type load struct{ cpu, reads, calls float64 }

func look(b *testing.B, raw *goredis.Client) (l load) {
	b.Helper()
	info, err := raw.Info(context.Background(), "cpu", "stats", "commandstats").Result()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		v, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "used_cpu_sys", "used_cpu_user":
			l.cpu += v
		case "total_reads_processed":
			l.reads = v
		case "cmdstat_evalsha":
			calls, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			l.calls, _ = strconv.ParseFloat(calls, 64)
		}
	}
	return l
}

// ownCPU is what this process used, in seconds; the work of the senders and the
// workers of the benchmark included.
func ownCPU(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
