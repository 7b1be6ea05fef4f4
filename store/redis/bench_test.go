package redis_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/router"
	"crossfade/store/redis"
)

func benchStore(b *testing.B) (*redis.Store, *goredis.Client) {
	b.Helper()
	url := server(b)
	srv, err := redis.Dial(url)
	if err != nil {
		b.Fatal(err)
	}
	s, err := redis.Open(b.Context(), srv, redis.Options{Node: "a"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	opt, err := goredis.ParseURL(url)
	if err != nil {
		b.Fatal(err)
	}
	raw := goredis.NewClient(opt)
	b.Cleanup(func() { raw.Close() })
	return s, raw
}

// used is Redis' memory in octets.
func used(b *testing.B, raw *goredis.Client) int64 {
	b.Helper()
	info, err := raw.Info(b.Context(), "memory").Result()
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "\nused_memory:")
	v, _, _ := strings.Cut(rest, "\r")
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func many(name string, whole int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return whole
}

// BenchmarkUsers imports USERS (100000) users, prints the time and Redis'
// memory of each, and then reads states at random.
func BenchmarkUsers(b *testing.B) {
	s, raw := benchStore(b)
	n := many("USERS", 100_000)
	users := make([]router.User, n)
	for i := range users {
		users[i] = router.User{Address: fmt.Sprintf("firstname.lastname%07d@example.org", i), Kind: router.KindMailbox, State: router.StateOld, Wave: "wave-07"}
	}
	rand.Shuffle(n, func(i, j int) { users[i], users[j] = users[j], users[i] })
	before, start := used(b, raw), time.Now()
	if _, _, err := s.ImportUsers(b.Context(), users, router.Change{By: "bench", Reason: "import"}); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	perUser := float64(used(b, raw)-before) / float64(n)
	const reads = 20_000
	times := make([]time.Duration, reads)
	for i := range times {
		at := time.Now()
		if _, err := s.User(b.Context(), users[rand.IntN(n)].Address); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(at)
	}
	slices.Sort(times)
	b.ReportMetric(took.Seconds(), "s/import")
	b.ReportMetric(perUser, "B/user")
	b.ReportMetric(float64(times[reads/2].Microseconds()), "µs-read-p50")
	b.ReportMetric(float64(times[reads*99/100].Microseconds()), "µs-read-p99")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkQueue queues MESSAGES (100000) messages of 4 KiB from 50 sessions
// and prints Redis' memory of each.
func BenchmarkQueue(b *testing.B) {
	s, raw := benchStore(b)
	n := int64(many("MESSAGES", 100_000))
	before, start := used(b, raw), time.Now()
	var left atomic.Int64
	left.Store(n)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := s.Put(context.Background(), benchEnvelope(), strings.NewReader(benchBody())); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	b.ReportMetric(float64(n)/took.Seconds(), "put/s")
	b.ReportMetric(float64(used(b, raw)-before)/float64(n), "B/message")
	b.ReportMetric(0, "ns/op")
}

func benchEnvelope() *mail.Envelope {
	user := fmt.Sprintf("firstname.lastname%05d@example.org", rand.IntN(10_000))
	a, err := mail.ParseAddress(user)
	if err != nil {
		panic(err)
	}
	from, err := mail.ParseAddress("somebody@sender.example.com")
	if err != nil {
		panic(err)
	}
	return &mail.Envelope{ID: mail.NewID(), From: from, Received: time.Now(), MessageID: "<" + string(mail.NewID()) + "@sender.example.com>",
		Recipients: []mail.Recipient{{Addr: a, User: a.Key()}}}
}

var words = strings.Fields("the quick brown fox jumps over a lazy dog while mail waits for nobody and every word counts as text in a message")

// benchBody is 4 KiB of text, about half of which is entropy.
func benchBody() string {
	var t strings.Builder
	t.WriteString("Subject: x\r\n\r\n")
	for t.Len() < 4096 {
		fmt.Fprintf(&t, "%s %x ", words[rand.IntN(len(words))], rand.Uint32())
		if t.Len()%80 < 10 {
			t.WriteString("\r\n")
		}
	}
	return t.String()[:4096]
}
