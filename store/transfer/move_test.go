package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dumpOf(t testing.TB, p place) string {
	t.Helper()
	ctx := context.Background()
	s, err := p.source(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var b bytes.Buffer
	if err := transfer.Dump(ctx, s, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func sameDump(t testing.TB, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("line %d:\n%s\nis\n%s", i, a[i], b[i])
		}
	}
	t.Fatalf("%d lines, want %d", len(b), len(a))
}

func copyStore(t testing.TB, from, to place) transfer.Report {
	t.Helper()
	ctx := context.Background()
	src, err := from.source(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	sink, err := to.sink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := transfer.Copy(ctx, src, sink, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// make fills a new store at p and closes it.
func fill(t testing.TB, p place) {
	t.Helper()
	s := p.open(t)
	w := &world{t, context.Background(), s}
	w.rich()
	w.ok(s.Close())
}

// TestRoundTrip: a rich store goes disk, disk, Redis, Redis, disk and is the
// same at each stop, and works at the end.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	way := []place{diskAt(filepath.Join(dir, "a")), diskAt(filepath.Join(dir, "b")), redisAt(redistest.Start(t).URL()),
		redisAt(redistest.Start(t).URL()), diskAt(filepath.Join(dir, "c"))}
	fill(t, way[0])
	want := dumpOf(t, way[0])
	for i := 1; i < len(way); i++ {
		rep := copyStore(t, way[i-1], way[i])
		if rep.Messages < 15 || rep.Users < 450 || rep.Ledger != 4 {
			t.Fatalf("copied %+v", rep)
		}
		sameDump(t, want, dumpOf(t, way[i]))
		sameDump(t, want, dumpOf(t, way[i-1]))
		if i > 1 {
			a, err := way[i].audit(context.Background(), false)
			if err != nil || a.Left != 0 {
				t.Fatalf("audit of stop %d: %v %+v", i, err, a)
			}
		}
	}
	for _, p := range []place{way[2], way[4]} {
		t.Run("works on "+p.name, func(t *testing.T) { works(t, p) })
	}
}

// TestFromRedis: a store that was born in Redis goes to disk and back.
func TestFromRedis(t *testing.T) {
	a, b, c := redisAt(redistest.Start(t).URL()), diskAt(filepath.Join(t.TempDir(), "b")), redisAt(redistest.Start(t).URL())
	fill(t, a)
	want := dumpOf(t, a)
	copyStore(t, a, b)
	sameDump(t, want, dumpOf(t, b))
	copyStore(t, b, c)
	sameDump(t, want, dumpOf(t, c))
	works(t, b)
	works(t, c)
}

// works drains a copied store as relays would, and looks that all goes where it
// belongs.
func works(t *testing.T, p place) {
	s := p.open(t)
	defer s.Close()
	w := &world{t, context.Background(), s}
	if n, err := s.Busy(w.ctx, "both@example.org"); err != nil || n != 1 {
		t.Fatalf("%d copies are waiting (%v), want 1: the other one is held", n, err)
	}
	if h, err := s.History(w.ctx, "gone@example.org", 0); err != nil || len(h) != 3 {
		t.Fatalf("history of a deleted user: %v %v", h, err)
	}
	st, err := s.Stats(w.ctx)
	w.ok(err)
	order := w.order(mail.New)
	if !slices.IsSorted(order) {
		t.Fatalf("claimed for new in the order %v", order)
	}
	w.state("held@example.org", router.StateNew)
	l := w.claim(mail.New)
	if got := l.Envelope.Recipients[l.Items[0].N].User; got != "held@example.org" {
		t.Fatalf("claimed %s, want the mail that was held", got)
	}
	w.ok(s.Settle(w.ctx, l, []queue.Outcome{{N: l.Items[0].N, Kind: queue.Done}}))
	for _, v := range []queue.Verb{queue.DoRelease, queue.DoRetry} {
		_, err = s.Apply(w.ctx, queue.Filter{}, queue.Action{Verb: v})
		w.ok(err)
	}
	w.drain()
	st2, err := s.Stats(w.ctx)
	w.ok(err)
	if st2.Messages != 0 || st2.Bytes != 0 {
		t.Fatalf("after the drain %+v, before %+v", st2, st)
	}
	e := w.put([]byte("new mail"), "user001@example.org")
	w.settle(e.ID, mail.Old, queue.Outcome{Kind: queue.Done})
}

// order delivers what is due over a route and gives its ids, in order.
func (w *world) order(r mail.Route) (ids []mail.ID) {
	w.Helper()
	for {
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		l, err := w.s.Claim(ctx, r, 100)
		cancel()
		if err != nil {
			return ids
		}
		ids = append(ids, l.Envelope.ID)
		body, err := w.s.Open(w.ctx, l.Envelope.ID)
		w.ok(err)
		var b bytes.Buffer
		_, err = b.ReadFrom(body)
		w.ok(errors.Join(err, body.Close()))
		if int64(b.Len()) != l.Envelope.Size {
			w.Fatalf("the body of %s has %d octets of %d", l.Envelope.ID, b.Len(), l.Envelope.Size)
		}
		var all []queue.Outcome
		for _, it := range l.Items {
			all = append(all, queue.Outcome{N: it.N, Kind: queue.Done})
		}
		w.ok(w.s.Settle(w.ctx, l, all))
	}
}

// drain delivers everything that is due, and what becomes due by that.
func (w *world) drain() {
	w.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		for _, r := range []mail.Route{mail.Old, mail.New, mail.Out} {
			w.order(r)
		}
		if st, err := w.s.Stats(w.ctx); err != nil || st.Messages == 0 || time.Now().After(end) {
			w.ok(err)
			return
		}
	}
}

// failing is a sink whose k-th step fails.
type failing struct {
	transfer.Sink
	left int
	stop func()
}

var errInjected = errors.New("injected")

func (f *failing) step() error {
	if f.left--; f.left == 0 {
		if f.stop != nil {
			f.stop()
			return nil
		}
		return errInjected
	}
	return nil
}

func (f *failing) Account(ctx context.Context, a *transfer.Account) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Sink.Account(ctx, a)
}

func (f *failing) Message(ctx context.Context, m *transfer.Message) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Sink.Message(ctx, m)
}

func (f *failing) Flush(ctx context.Context) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Sink.Flush(ctx)
}

func (f *failing) Commit(ctx context.Context) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Sink.Commit(ctx)
}

// small fills a store with a little of everything.
func small(t testing.TB, p place) {
	s := p.open(t)
	w := &world{t, context.Background(), s}
	w.state("a@example.org", router.StateOld)
	w.state("b@example.org", router.StateCutover)
	w.ok(s.SaveLedger(w.ctx, "a@example.org", "INBOX", []byte("x")))
	w.put([]byte("one"), "a@example.org")
	w.put(noise(300<<10), "b@example.org")
	w.put([]byte("three"), "out@example.com")
	w.ok(s.Close())
}

// TestStopAnywhere: an error and an end of the context at each step leave an
// empty target, and the source as it was; then the copy can be made.
func TestStopAnywhere(t *testing.T) {
	url := redistest.Start(t).URL()
	dir := t.TempDir()
	from := diskAt(filepath.Join(dir, "from"))
	small(t, from)
	want := dumpOf(t, from)
	for _, to := range []place{diskAt(filepath.Join(dir, "to")), redisAt(url)} {
		t.Run(to.name, func(t *testing.T) {
			for k := 1; ; k++ {
				err := stopAt(t, from, to, k, false)
				if err == nil {
					t.Logf("%d steps", k-1)
					break
				}
				if !errors.Is(err, errInjected) {
					t.Fatalf("step %d: %v", k, err)
				}
				if err := stopAt(t, from, to, k, true); !errors.Is(err, context.Canceled) && k < 7 {
					t.Fatalf("step %d: %v", k, err)
				} else if err == nil {
					break // the end came too late: it is copied
				}
			}
			sameDump(t, want, dumpOf(t, to))
			sameDump(t, want, dumpOf(t, from))
		})
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"+".partial"))
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
}

func stopAt(t *testing.T, from, to place, k int, cancel bool) error {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	src, err := from.source(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	sink, err := to.sink(ctx)
	if err != nil {
		t.Fatalf("step %d: the target is not empty again: %v", k, err)
	}
	f := &failing{Sink: sink, left: k}
	if cancel {
		f.stop = stop
	}
	_, err = transfer.Copy(ctx, src, f, nil)
	return err
}

// TestKilled: a copy that nobody cleaned up after is named and kept out, and
// can be discarded.
func TestKilled(t *testing.T) {
	ctx := context.Background()
	url := redistest.Start(t).URL()
	dir := t.TempDir()
	from := diskAt(filepath.Join(dir, "from"))
	small(t, from)
	for _, to := range []place{diskAt(filepath.Join(dir, "to")), redisAt(url)} {
		t.Run(to.name, func(t *testing.T) {
			for k := 1; k <= 7; k++ {
				dead := killed(t, to, from, k, dir, url)
				if _, err := to.sink(ctx); !errors.Is(err, transfer.ErrPartial) {
					t.Fatalf("step %d: a second copy: %v", k, err)
				}
				if found, err := to.discard(ctx); err != nil || !found {
					t.Fatalf("step %d: discard: %v %v", k, found, err)
				}
				if found, err := to.discard(ctx); err != nil || found {
					t.Fatalf("step %d: discard again: %v %v", k, found, err)
				}
				if err := dead.Discard(); err != nil { // finds nothing of its own, and closes
					t.Fatal(err)
				}
			}
			copyStore(t, from, to)
			sameDump(t, dumpOf(t, from), dumpOf(t, to))
		})
	}
}

// abandon is a sink that dies: nothing is cleaned up.
type abandon struct{ failing }

func (a *abandon) Discard() error { return nil }

func killed(t *testing.T, to, from place, k int, dir, url string) transfer.Sink {
	t.Helper()
	ctx := context.Background()
	src, err := from.source(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	sink, err := to.sink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = transfer.Copy(ctx, src, &abandon{failing{Sink: sink, left: k}}, nil)
	if !errors.Is(err, errInjected) {
		t.Fatalf("step %d: %v", k, err)
	}
	// What the process held is let go of, and what it wrote stays.
	if to.name == "redis" {
		if _, err := redisOpens(url); !errors.Is(err, transfer.ErrPartial) || !strings.Contains(fmt.Sprint(err), "--discard-partial") {
			t.Fatalf("step %d: a node opens a half-written store: %v", k, err)
		}
		return sink
	}
	tmp := filepath.Join(dir, "to.partial")
	if err := os.Rename(tmp, tmp+"x"); err != nil {
		t.Fatal(err)
	}
	if err := sink.Discard(); err != nil { // closes; finds nothing to remove
		t.Fatal(err)
	}
	if err := os.Rename(tmp+"x", tmp); err != nil {
		t.Fatal(err)
	}
	return sink
}
