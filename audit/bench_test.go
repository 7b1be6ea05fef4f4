package audit

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/audit/seal"
	"crossfade/journal"
)

// manyUsers is the document of a migration of n users.
func manyUsers(tb testing.TB, n int) (*Document, seal.Key) {
	tb.Helper()
	k, err := seal.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	d := &Document{Format: Format, Kind: kindAudit, Issued: time.Now().UTC().Truncate(time.Second), Hostname: "mx.example.org", Run: "x", Journal: journal.Report{First: 1, Last: 9}, Clean: true}
	for i := range n {
		d.Users = append(d.Users, Account{User: fmt.Sprintf("user%06d@example.org", i), State: "done", Accepted: i, Delivered: i, Look: &Look{There: i, Reads: "new"}})
	}
	d.sum()
	if err := d.sign(k); err != nil {
		tb.Fatal(err)
	}
	return d, k
}

// peak gives how much the heap grows while f runs, sampled. The collector works hard
// meanwhile: else half of that is what nobody needs any more.
func peak(f func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(5))
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base, most := m.HeapInuse, uint64(0)
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			runtime.Gosched()
		}
	}()
	f()
	over.Store(true)
	<-done
	return max(most, base) - base
}

// BenchmarkManyUsers makes, signs, writes, reads and checks the document of a whole
// migration, and those of each user: time and memory for each user are to be the same
// for few and for many.
//
//	go test -run '^$' -bench ManyUsers -benchtime 1x ./audit
func BenchmarkManyUsers(b *testing.B) {
	for _, n := range []int{2_000, 20_000} {
		d, k := manyUsers(b, n)
		data, err := d.Encode()
		if err != nil {
			b.Fatal(err)
		}
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"sign", func() error { return d.sign(k) }},
			{"write", func() error { return d.Write(io.Discard) }},
			{"page", func() error { return d.WritePage(io.Discard, "x") }},
			{"check", func() error {
				r, err := seal.Check(data, k.Public())
				if err == nil && !r.OK() {
					err = fmt.Errorf("%v", r.Wrong)
				}
				return err
			}},
			{"each", func() error {
				for i := range d.Users {
					one, err := d.At(i, k)
					if err != nil {
						return err
					}
					if err := errors.Join(one.Write(io.Discard), one.WritePage(io.Discard, "x")); err != nil {
						return err
					}
				}
				return nil
			}},
		} {
			b.Run(fmt.Sprintf("%s/users=%d", step.name, n), func(b *testing.B) {
				var most uint64
				for b.Loop() {
					most = max(most, peak(func() {
						if err := step.do(); err != nil {
							b.Fatal(err)
						}
					}))
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/user")
				b.ReportMetric(float64(most)/(1<<20), "MiB")
				b.ReportMetric(float64(len(data))/(1<<20), "MiB-file")
			})
		}
	}
}
