package backfill

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestRateChangesAtOnce: who waits for a slow rate goes on at the new one.
func TestRateChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewShared(0, Rate{Bytes: 1000}, Rate{})
		began := time.Now()
		done := make(chan time.Duration, 1)
		go func() {
			if err := s.src.take(context.Background(), 1, 1_000_000); err != nil {
				t.Error(err)
			}
			done <- time.Since(began)
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		s.SetRates(Rate{Bytes: 100_000}, Rate{Messages: 2})
		if took := <-done; took < 15*time.Second || took > 25*time.Second {
			t.Errorf("1 MB at 1 kB/s for 10 s, then at 100 kB/s took %v", took)
		}
		began = time.Now()
		if err := s.dst.take(context.Background(), 10, 1<<40); err != nil || time.Since(began) != 4*time.Second {
			t.Errorf("10 messages at 2 in a second: %v, %v", time.Since(began), err)
		}
		s.SetRates(Rate{}, Rate{})
		began = time.Now()
		if err := s.src.take(context.Background(), 1, 1<<50); err != nil || time.Since(began) != 0 {
			t.Errorf("without a bound: %v, %v", time.Since(began), err)
		}
	})
}
