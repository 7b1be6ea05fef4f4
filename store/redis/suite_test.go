package redis_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"crossfade/internal/redistest"
	"crossfade/store/redis"
	"crossfade/store/storetest"
)

// server starts a redis-server of its own.
func server(t testing.TB, args ...string) string {
	t.Helper()
	return redistest.Start(t, args...).URL()
}

func TestStore(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	storetest.Run(t, func(t *testing.T) storetest.Factory {
		url := server(t)
		return func(t testing.TB, c storetest.Config) storetest.Store {
			srv, err := redis.Dial(url)
			if err != nil {
				t.Fatal(err)
			}
			s, err := redis.Open(context.Background(), srv, redis.Options{Node: "a", LeaseTime: c.Lease})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}
