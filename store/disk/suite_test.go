package disk_test

import (
	"testing"

	"go.uber.org/goleak"

	"crossfade/store/disk"
	"crossfade/store/storetest"
)

func TestStore(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	storetest.Run(t, func(t *testing.T) storetest.Factory {
		dir := t.TempDir()
		return func(t testing.TB, c storetest.Config) storetest.Store {
			s, err := disk.Open(dir, disk.Options{LeaseTime: c.Lease, ClaimWindow: c.Window, MinFree: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}
