package redis_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"crossfade/internal/redistest"
	"crossfade/router"
	"crossfade/store/redis"
)

// TestLocale: Lua in Redis compares strings by the locale of the server. Users
// whose chunk was split in that order instead of the order of octets were not
// found any more.
func TestLocale(t *testing.T) {
	localedef, err := exec.LookPath("localedef")
	if err != nil {
		t.Skip("localedef is not installed: the order of users under a locale is NOT tested")
	}
	dir := t.TempDir()
	if out, err := exec.Command(localedef, "-i", "en_US", "-f", "UTF-8", filepath.Join(dir, "en_US.UTF-8")).CombinedOutput(); err != nil {
		if _, serr := os.Stat(filepath.Join(dir, "en_US.UTF-8")); serr != nil {
			t.Skipf("no locale can be made: %v %s: the order of users under a locale is NOT tested", err, out)
		}
	}
	t.Setenv("LOCPATH", dir)
	t.Setenv("LC_ALL", "en_US.UTF-8")
	srv := redistest.Start(t)
	if got := fmt.Sprint(srv.Must("EVAL", "local k = {'ab', 'a.c', 'B'} table.sort(k) return k", 0)); got != "[ab a.c B]" {
		t.Skipf("the server does not sort by the locale: %s", got)
	}
	server, err := redis.Dial(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(context.Background(), server, redis.Options{Node: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var list []router.User
	for i := range 500 {
		for _, p := range []string{"a.%d", "a%d", "B%d", "a-%d"} {
			list = append(list, router.User{Address: fmt.Sprintf(p, i) + "@example.org", Kind: router.KindMailbox})
		}
	}
	if _, _, err := s.ImportUsers(context.Background(), list, router.Change{By: "import"}); err != nil {
		t.Fatal(err)
	}
	for _, u := range list {
		if _, err := s.User(context.Background(), u.Address); err != nil {
			t.Fatal(err)
		}
	}
}
