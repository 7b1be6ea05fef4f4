package transfer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/disk"
	"crossfade/store/redis"
	"crossfade/store/transfer"
)

// TestInUse: a store that somebody has open is neither read nor written.
func TestInUse(t *testing.T) {
	ctx := context.Background()
	url := redistest.Start(t).URL()
	dir := t.TempDir()
	for _, p := range []place{diskAt(filepath.Join(dir, "a")), redisAt(url)} {
		t.Run(p.name, func(t *testing.T) {
			s := p.open(t)
			if _, err := p.source(ctx); !errors.Is(err, transfer.ErrInUse) {
				t.Fatalf("read: %v", err)
			}
			if _, err := p.sink(ctx); !errors.Is(err, transfer.ErrInUse) && !errors.Is(err, transfer.ErrNotEmpty) {
				t.Fatalf("write: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			src, err := p.source(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := src.Close(); err != nil {
				t.Fatal(err)
			}
			if p.name != "redis" {
				return
			}
			sink, err := p.sink(ctx) // a node that came and left did no harm
			if err != nil {
				t.Fatal(err)
			}
			if err := sink.Discard(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// crash makes a message that was leased twice, and crashed once before.
func crash(t *testing.T, p place) (*world, mail.ID) {
	t.Helper()
	w := &world{t, context.Background(), p.open(t)}
	w.state("a@example.org", router.StateOld)
	id := w.put([]byte("in flight"), "a@example.org").ID
	l := w.claim(mail.Old)
	w.ok(w.s.Renew(w.ctx, l, true))
	return w, id
}

// inFlight looks that the only recipient is queued again with a crash counted.
func inFlight(t *testing.T, p place) {
	t.Helper()
	src, err := p.source(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for m, err := range src.Messages(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Rows) != 1 || !m.Rows[0].InFlight || m.Rows[0].Crashes != 1 || m.Rows[0].Place != transfer.Waiting {
			t.Fatalf("rows %+v", m.Rows)
		}
		return
	}
	t.Fatal("the message is not there")
}

// TestCrashedDisk: the files of a process that was killed are copied with what
// was under way as queued, exactly as its own next start would have it.
func TestCrashedDisk(t *testing.T) {
	dir := t.TempDir()
	live, dead := diskAt(filepath.Join(dir, "live")), diskAt(filepath.Join(dir, "dead"))
	w, id := crash(t, live)
	w.ok(os.CopyFS(filepath.Join(dir, "dead"), os.DirFS(filepath.Join(dir, "live"))))
	inFlight(t, dead)
	to := redisAt(redistest.Start(t).URL())
	if rep := copyStore(t, dead, to); rep.InFlight != 1 || rep.Recipients != 1 {
		t.Fatalf("report %+v", rep)
	}
	again(t, to, id)
	s, err := disk.Open(filepath.Join(dir, "dead"), disk.Options{MinFree: -1})
	w.ok(err)
	defer s.Close()
	if d := s.InDoubt(); len(d) != 1 || !d[0].Sending {
		t.Fatalf("the copy took the doubt from its source: %+v", d)
	}
}

func again(t *testing.T, p place, id mail.ID) {
	t.Helper()
	w := &world{t, context.Background(), p.open(t)}
	defer w.s.Close()
	if l := w.claim(mail.Old); l.Envelope.ID != id || l.Items[0].Crashes != 1 {
		t.Fatalf("claimed %+v", l)
	}
}

// TestCrashedNode: what a node that died had claimed keeps a copy out until
// the lease is over, and is copied as queued then.
func TestCrashedNode(t *testing.T) {
	srv := redistest.Start(t)
	p := redisAt(srv.URL())
	server, err := redis.Dial(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(context.Background(), server, redis.Options{Node: "dies", LeaseTime: 1500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, context.Background(), s}
	w.state("a@example.org", router.StateOld)
	id := w.put([]byte("in flight"), "a@example.org").ID
	w.claim(mail.Old)
	saved := map[string]any{}
	for _, k := range srv.Must("KEYS", "*").([]any) {
		saved[k.(string)] = srv.Must("DUMP", k)
	}
	w.ok(s.Close())
	srv.Must("FLUSHALL")
	for k, v := range saved {
		srv.Must("RESTORE", k, 0, v)
	}
	if _, err := p.source(w.ctx); !errors.Is(err, transfer.ErrInUse) {
		t.Fatalf("copy from a node that lives: %v", err)
	}
	srv.Must("DEL", "cx:{q}:n") // it has not been heard of for long
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	refused := 0
	for {
		src, err := p.source(w.ctx)
		if err == nil {
			w.ok(src.Close())
			break
		}
		if !errors.Is(err, transfer.ErrInUse) || !strings.Contains(err.Error(), "1 deliveries") {
			t.Fatal(err)
		}
		refused++
		<-tick.C
	}
	if refused == 0 {
		t.Fatal("a lease that runs kept nobody out")
	}
	inFlight(t, p)
	to := diskAt(filepath.Join(t.TempDir(), "to"))
	if rep := copyStore(t, p, to); rep.InFlight != 1 {
		t.Fatalf("report %+v", rep)
	}
	again(t, to, id)
}

// TestLostReplies loses each reply of Redis in turn while a store is copied to
// it: the copy is whole, or nothing is there.
func TestLostReplies(t *testing.T) {
	ctx := context.Background()
	srv := redistest.Start(t)
	proxy := redistest.NewProxy(t, strings.TrimSuffix(strings.TrimPrefix(srv.URL(), "redis://"), "/0"))
	from, to, direct := diskAt(filepath.Join(t.TempDir(), "from")), redisAt(proxy.URL()), redisAt(srv.URL())
	small(t, from)
	want := dumpOf(t, from)
	whole := 0
	for k := 1; ; k++ {
		srv.Must("FLUSHALL")
		proxy.Count(nil)
		dropped := proxy.DropAt(k)
		src, err := from.source(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sink, err := to.sink(ctx)
		if err == nil {
			_, err = transfer.Copy(ctx, src, sink, nil)
		}
		if cerr := src.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil {
			whole++
			sameDump(t, want, dumpOf(t, direct))
		} else if sink, serr := direct.sink(ctx); serr != nil {
			t.Fatalf("reply %d: the copy failed (%v) and left something: %v", k, err, serr)
		} else if serr := sink.Discard(); serr != nil {
			t.Fatal(serr)
		}
		select {
		case <-dropped:
		default:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d replies, the copy was whole in spite of %d lost ones", k-1, whole-1)
			if whole < k/2 {
				t.Errorf("only %d of %d copies went on after a lost reply", whole, k)
			}
			return
		}
	}
}

// TestCluster: bodies lie on other servers than the rest.
func TestCluster(t *testing.T) {
	c := redistest.StartCluster(t, 3, 0)
	dir := t.TempDir()
	from, via, to := diskAt(filepath.Join(dir, "from")), redisAt(c.URL()), diskAt(filepath.Join(dir, "to"))
	fill(t, from)
	copyStore(t, from, via)
	if a := auditOf(t, via, false); a.Left != 0 {
		t.Fatalf("audit: %+v", a)
	}
	for _, n := range c.Nodes() {
		n.Must("DBSIZE")
	}
	copyStore(t, via, to)
	sameDump(t, dumpOf(t, from), dumpOf(t, to))
	killedOnCluster(t, from, redisAt(c.URL()), c)
}

// killedOnCluster: what is discarded is discarded on every server.
func killedOnCluster(t *testing.T, from, to place, c *redistest.Cluster) {
	t.Helper()
	ctx := context.Background()
	for _, n := range c.Nodes() {
		n.Must("FLUSHALL")
	}
	src, err := from.source(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	sink, err := to.sink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Discard()
	if _, err := transfer.Copy(ctx, src, &abandonAtCommit{sink}, nil); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	if found, err := to.discard(ctx); err != nil || !found {
		t.Fatal(found, err)
	}
	for _, n := range c.Nodes() {
		for _, k := range n.Must("KEYS", "*").([]any) {
			if k != "cx:{q}:v" && k != "cx:{q}:w" {
				t.Errorf("left behind: %v", k)
			}
		}
	}
}

type abandonAtCommit struct{ transfer.Sink }

func (a *abandonAtCommit) Commit(context.Context) error { return errInjected }
func (a *abandonAtCommit) Discard() error               { return nil }

// TestParkedByCrashes: the third crash in a row parks, in a copy too.
func TestParkedByCrashes(t *testing.T) {
	r := transfer.Row{Crashes: queue.MaxCrashes - 1, Reply: "451 before"}
	if r.CountCrash(); r.Place != transfer.Parked || !strings.Contains(r.Reply, "451 before") || !r.InFlight {
		t.Fatalf("row %+v", r)
	}
}
