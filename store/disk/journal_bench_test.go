package disk

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
)

// life takes messages of 4 KiB through their lives, 50 at a time: put, claimed,
// allowed to be sent, settled.
func life(b *testing.B, s *Store, messages int) {
	b.Helper()
	ctx := context.Background()
	body := bytes.Repeat([]byte("0123456789abcde\n"), 256)
	const workers = 50
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range messages / workers {
				e := envelope(b, "a@example.org")
				e.MessageID = "<" + string(e.ID) + "@example.com>"
				if err := s.Put(ctx, e, bytes.NewReader(body)); err != nil {
					b.Error(err)
					return
				}
				l, err := s.Claim(ctx, mail.Old, 100)
				if err == nil {
					err = s.Renew(ctx, l, true)
				}
				if err == nil {
					err = s.Settle(ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done, Reply: "250 2.0.0 Ok: queued as 4bFzQK2Nl8z1J"}})
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkJournalCost measures what the journal costs: rounds with it and without it in
// turn, on two stores in one run, so that both have the same neighbours. With it counts
// all: the lines, the outbox, and its way into files, compressed and synced. The ratios
// are medians over pairs of rounds; spread is how far the middle half of the rounds
// without a journal lies apart, which tells how noisy the machine is.
//
//	go test -run '^$' -bench JournalCost -benchtime 20x ./store/disk
func BenchmarkJournalCost(b *testing.B) {
	const messages = 2000
	with := open(b, b.TempDir(), Options{ClaimWindow: 1 << 20})
	without := open(b, b.TempDir(), Options{ClaimWindow: 1 << 20, noJournal: true})
	shelf, err := journal.OpenDir(filepath.Join(b.TempDir(), "journal"))
	if err != nil {
		b.Fatal(err)
	}
	defer shelf.Close()
	j := &journal.Journal{Outbox: with, Shelf: shelf}
	if err := j.Begin(b.Context()); err != nil {
		b.Fatal(err)
	}
	round := func(s *Store, drain bool) (wall, used float64) {
		began, from := time.Now(), cpu()
		life(b, s, messages)
		if drain {
			if _, err := j.Drain(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(began).Seconds(), (cpu() - from).Seconds()
	}
	round(with, true) // both are warm
	round(without, false)
	var walls, cpus, plain, costs []float64
	for i := 0; b.Loop(); i++ {
		var w1, c1, w0, c0 float64
		if i%2 == 0 { // neither always comes first
			w1, c1 = round(with, true)
			w0, c0 = round(without, false)
		} else {
			w0, c0 = round(without, false)
			w1, c1 = round(with, true)
		}
		walls, cpus, plain = append(walls, w1/w0), append(cpus, c1/c0), append(plain, w0)
		costs = append(costs, (c1-c0)/messages*1e6)
	}
	slices.Sort(plain)
	n := len(plain)
	b.ReportMetric(middle(walls), "time-ratio")
	b.ReportMetric(middle(cpus), "cpu-ratio")
	b.ReportMetric(middle(costs), "us-cpu/msg")
	b.ReportMetric(messages/plain[n/2], "without-msg/s")
	b.ReportMetric((plain[n*3/4]-plain[n/4])/plain[n/2], "spread")
}

// middle gives the median.
func middle(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
