package redis_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"crossfade/internal/redistest"
	"crossfade/store/redis"
	"crossfade/store/storetest"
)

// page is docs/redis.md.
func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// aclLine gives the rules behind a user's name in the page.
func aclLine(t *testing.T, user string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^ACL SETUSER ` + user + ` ((?:.*\\\n)*.*)$`).FindStringSubmatch(page(t))
	if m == nil {
		t.Fatalf("docs/redis.md has no ACL line for %s", user)
	}
	return strings.ReplaceAll(m[1], "\\\n", " ")
}

// TestACL runs the conformance suite as the user of the line that the page
// prints, word for word.
func TestACL(t *testing.T) {
	t.Parallel()
	rules := aclLine(t, "crossfade")
	storetest.Run(t, func(t *testing.T) storetest.Factory {
		srv := redistest.Start(t)
		srv.User("crossfade", rules)
		return open(srv.URL(), redis.DialOptions{Username: "crossfade", Password: "PASSWORD"})
	})
}

// TestACLCommands: each command that a script names is in the line.
func TestACLCommands(t *testing.T) {
	rules := aclLine(t, "crossfade") + " "
	files, err := os.ReadDir("lua")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`call\('([A-Z]+)'`)
	for _, f := range files {
		b, err := os.ReadFile("lua/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(b), -1) {
			if !strings.Contains(rules, "+"+strings.ToLower(m[1])+" ") {
				t.Errorf("lua/%s uses %s, which is not in the ACL line of docs/redis.md", f.Name(), m[1])
			}
		}
	}
}

// TestACLOfSentinel: the line for the sentinels is enough.
func TestACLOfSentinel(t *testing.T) {
	t.Parallel()
	m := redistest.Start(t)
	m.StartReplicas(1)
	sen := m.StartSentinels("mymaster", 1, 1)
	sen.Nodes[0].User("crossfade-sentinel", aclLine(t, "crossfade-sentinel"))
	sen.Nodes[0].User("default", "nopass -@all +ping")
	srv, err := redis.Dial(sen.URL(), redis.DialOptions{SentinelUsername: "crossfade-sentinel", SentinelPassword: "PASSWORD"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(context.Background(), srv, redis.Options{Node: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	putOne(t, s)
}

// open gives a factory of stores at a URL.
func open(url string, o redis.DialOptions) storetest.Factory {
	return func(t testing.TB, c storetest.Config) storetest.Store {
		srv, err := redis.Dial(url, o)
		if err != nil {
			t.Fatal(err)
		}
		s, err := redis.Open(context.Background(), srv, redis.Options{Node: "a", LeaseTime: c.Lease})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// queues gives each store on one Redis a queue of its own.
var queues atomic.Int64
