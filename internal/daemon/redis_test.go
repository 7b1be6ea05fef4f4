package daemon

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/internal/redistest"
	"crossfade/router"
)

const anna = "anna@" + faultsDomain

// onRedis points a site to a Redis.
func (s *site) onRedis(url, more string) *site {
	s.t.Helper()
	text := strings.Replace(faultsConfig(s.old, s.new, more), "store: ./data", "store: "+url+"\nnode: test", 1)
	path := filepath.Join(s.dir, "crossfade.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if s.cfg, err = config.Load(path); err != nil {
		s.t.Fatal(err)
	}
	return s
}

// freeAddr gives an address of loopback on which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestRedisGone: Redis is not there at the start, comes, dies while mail comes
// in and goes out, and comes back: nobody has to do anything, and nothing that
// was answered with 250 is lost.
func TestRedisGone(t *testing.T) {
	r := redistest.Start(t)
	r.Kill()
	s := newSite(t, "")
	api := freeAddr(t)
	s.onRedis(r.URL(), "")
	s.cfg.Admin.Listen = api
	up := make(chan error, 1)
	go func() { up <- s.tryStart(nil) }()
	eventually(t, 10*time.Second, "readiness says that Redis is waited for", func() bool {
		res, err := http.Get("http://" + api + "/readyz")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		var ready admin.Readiness
		_ = json.NewDecoder(res.Body).Decode(&ready)
		return res.StatusCode == http.StatusServiceUnavailable && strings.Contains(fmt.Sprint(ready.Reasons), "refused")
	})
	res, err := http.Get("http://" + api + "/healthz")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("waiting for Redis is no reason to be started again: %v, %v", res, err)
	}
	res.Body.Close()
	r.Restart()
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	s.send("before", "a@outside.example", anna)
	s.empty()

	r.Kill()
	eventually(t, 20*time.Second, "it is not ready", func() bool { return len(s.d.ready(t.Context())) > 0 })
	eventually(t, 20*time.Second, "mail is put off", func() bool {
		_, err := sendOne(s.limit(), s.addr, "a@outside.example", []string{anna}, tokenMessage("during", 300))
		return err != nil && (strings.Contains(err.Error(), "451") || strings.Contains(err.Error(), "421"))
	})
	r.Restart()
	eventually(t, 20*time.Second, "mail is taken again", func() bool {
		_, err := sendOne(s.limit(), s.addr, "a@outside.example", []string{anna}, tokenMessage("after", 300))
		return err == nil
	})
	s.empty()
	seen := map[string]int{}
	for _, m := range append(s.old.Messages(), s.new.Messages()...) {
		for _, token := range []string{"before", "after"} {
			if strings.Contains(string(m.Body), token) {
				seen[token]++
			}
		}
	}
	if seen["before"] != 1 || seen["after"] != 1 {
		t.Errorf("delivered: %v, want each once\n%s", seen, s.log.String())
	}
}

// TestRedisRefused: a Redis that would lose mail is refused at once, with the
// line to change; so `check` says.
func TestRedisRefused(t *testing.T) {
	r := redistest.Start(t)
	for cmd, want := range map[string]string{
		"appendfsync everysec":         "appendfsync always",
		"maxmemory-policy allkeys-lru": "noeviction",
	} {
		f := strings.Fields(cmd)
		was := r.Must("CONFIG", "GET", f[0])
		r.Must("CONFIG", "SET", f[0], f[1])
		s := newSite(t, "").onRedis(r.URL(), "")
		err := s.tryStart(nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %s the start said: %v", cmd, err)
		}
		found := ""
		for _, x := range Check(t.Context(), s.cfg, "") {
			if strings.HasPrefix(x.What, "store") && !x.OK {
				found += x.Text
			}
		}
		if !strings.Contains(found, want) {
			t.Errorf("with %s check said: %q", cmd, found)
		}
		r.Must("CONFIG", "SET", f[0], was.([]any)[1])
	}
}

// TestRedisNodes: a change of a user's state made over one node is seen by the
// next delivery of the other, and mail that one took in the other delivers.
func TestRedisNodes(t *testing.T) {
	r := redistest.Start(t)
	a := newSite(t, "").onRedis(r.URL(), "")
	a.cfg.Node = "a"
	a.start()
	b := &site{t: t, dir: t.TempDir(), old: a.old, new: a.new, log: &lockedBuffer{}}
	b.onRedis(r.URL(), "")
	b.cfg.Node = "b"
	b.start()
	b.send("one", "x@outside.example", anna)
	a.empty()
	b.set(anna, router.StateNew)
	a.send("two", "x@outside.example", anna)
	b.empty()
	if a.old.Count() != 1 || a.new.Count() != 1 {
		t.Errorf("old has %d, new has %d messages, want one each", a.old.Count(), a.new.Count())
	}
	if got, err := a.client.User(t.Context(), anna); err != nil || got.State != router.StateNew {
		t.Errorf("a knows %+v, %v", got, err)
	}
}
