package redis_test

import (
	"context"
	"fmt"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/router"
	"crossfade/store/redis"
)

// TestImportAgreesWithSet: a bulk import decides in Lua what SetUser is told
// by Go: where a user's mail goes, and whether the other side gets a copy.
func TestImportAgreesWithSet(t *testing.T) {
	url := server(t)
	srv, err := redis.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(t.Context(), srv, redis.Options{Node: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	opt, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	raw := goredis.NewClient(opt)
	defer raw.Close()
	states := []router.State{router.StateOld, router.StateSyncing, router.StateReady, router.StateCutover, router.StateNew, router.StateDone, router.StateRollback}
	for _, st := range states {
		for _, d := range []router.Deliver{router.DeliverOne, router.DeliverBoth} {
			a := fmt.Sprintf("set-%s-%s@example.org", st, d)
			b := fmt.Sprintf("imp-%s-%s@example.org", st, d)
			u := router.User{Address: a, Kind: router.KindMailbox, State: st, Deliver: d}
			if _, _, err := s.SetUser(t.Context(), u, router.Change{}); err != nil {
				t.Fatal(err)
			}
			u.Address = b
			if _, _, err := s.ImportUsers(t.Context(), []router.User{u}, router.Change{}); err != nil {
				t.Fatal(err)
			}
			if x, y := stored(t, raw, a), stored(t, raw, b); x != y {
				t.Errorf("%s, deliver %q: set gave %s, import %s", st, d, x, y)
			}
		}
	}
}

// stored gives way and copies of a user's row.
func stored(t *testing.T, c *goredis.Client, key string) string {
	t.Helper()
	const src = `local u = cmsgpack.unpack(redis.call('HGET', 'cx:{q}:U:-', KEYS[1])); return u[3] .. ' ' .. u[4] .. ' ' .. u[6] .. ' ' .. u[7]`
	v, err := c.Eval(context.Background(), src, []string{key}).Text()
	if err != nil {
		t.Fatal(err)
	}
	return v
}
