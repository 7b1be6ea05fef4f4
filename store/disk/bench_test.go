package disk

import (
	"bytes"
	"context"
	"syscall"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

func cpu() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func report(b *testing.B, start time.Duration) {
	b.ReportMetric(float64((cpu()-start).Microseconds())/float64(b.N), "us-cpu/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

func BenchmarkPut(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	body := bytes.Repeat([]byte("0123456789abcde\n"), 256)
	b.ResetTimer()
	start := cpu()
	for b.Loop() {
		if err := s.Put(context.Background(), envelope(b, "a@example.org"), bytes.NewReader(body)); err != nil {
			b.Fatal(err)
		}
	}
	report(b, start)
}

func BenchmarkPutParallel50(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	body := bytes.Repeat([]byte("0123456789abcde\n"), 256)
	b.SetParallelism(25)
	b.ResetTimer()
	start := cpu()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Put(context.Background(), envelope(b, "a@example.org"), bytes.NewReader(body)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	report(b, start)
}

func BenchmarkClaimSettle(b *testing.B) {
	s := open(b, b.TempDir(), Options{ClaimWindow: 1 << 20})
	ctx := context.Background()
	body := bytes.Repeat([]byte("0123456789abcde\n"), 256)
	b.SetParallelism(25)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Put(ctx, envelope(b, "a@example.org"), bytes.NewReader(body)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ResetTimer()
	start := cpu()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l, err := s.Claim(ctx, mail.Old, 100)
			if err == nil {
				err = s.Renew(ctx, l, true)
			}
			if err == nil {
				err = s.Settle(ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done, Reply: "250 ok"}})
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	report(b, start)
}
