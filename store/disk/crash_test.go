package disk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/storetest"
)

// The crash test runs a client, workers and operators against a store in a
// child process that is killed with SIGKILL: by itself at a named point, or by
// the parent at any time. What the child writes to its standard output is in
// the pipe when it dies, so the parent knows what was promised.

const childEnv = "CROSSFADE_DISK_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir, os.Getenv(childEnv+"_POINT"), os.Getenv(childEnv+"_BROKEN") != "")
		return
	}
	os.Exit(m.Run())
}

var outMu sync.Mutex

func say(format string, args ...any) {
	outMu.Lock()
	defer outMu.Unlock()
	fmt.Fprintf(os.Stdout, format+"\n", args...)
}

// crashOptions makes everything that is rare frequent.
func crashOptions() Options {
	return Options{ClaimWindow: 24, MinFree: -1, segmentSize: 96 << 10, checkpointPages: 300, sparse: 1}
}

// child works until it is killed.
func child(dir, point string, broken bool) {
	o := crashOptions()
	o.earlyAck = broken
	o.lateLines = os.Getenv(childEnv+"_LATE") != ""
	var armed atomic.Bool
	var left atomic.Int64
	left.Store(1 + rand.Int64N(6))
	if !strings.HasPrefix(point, "put") && !strings.HasPrefix(point, "settle") {
		left.Store(1) // it is rare
	}
	o.CrashPoint = func(name string) {
		if name != point || !armed.Load() || left.Add(-1) != 0 {
			return
		}
		if broken {
			<-time.After(50 * time.Millisecond) // the client hears the false answer
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	s, err := Open(dir, o)
	if err != nil {
		say("error %v", err)
		os.Exit(3)
	}
	armed.Store(true)
	say("ready")
	ctx := context.Background()
	for i := range 4 {
		go childPut(ctx, s, i)
	}
	if broken {
		select {}
	}
	for _, r := range []mail.Route{mail.Old, mail.Old, mail.New, mail.Out} {
		go childDeliver(ctx, s, r)
	}
	go childOperate(ctx, s)
	go childJournal(ctx, s, dir)
	<-time.After(2 * time.Minute) // the machine may be busy
	say("error the point %s was not reached", point)
	os.Exit(4)
}

func childPut(ctx context.Context, s *Store, i int) {
	for {
		e := &mail.Envelope{ID: mail.NewID(), From: mail.Address{Local: "s", Domain: "example.com"}, Received: time.Now()}
		for range 1 + rand.IntN(3) {
			a := mail.Address{Local: "u" + strconv.Itoa(rand.IntN(8)), Domain: "example.org"}
			e.Recipients = append(e.Recipients, mail.Recipient{Addr: a, User: a.Key()})
		}
		n := rand.IntN(20000)
		if rand.IntN(25) == 0 {
			n = 1<<20 + 100
		}
		say("offer %s %d", e.ID, len(e.Recipients))
		if err := s.Put(ctx, e, bytes.NewReader(pattern(e.ID, n))); err != nil {
			say("error put: %v", err)
			return
		}
		say("ack %s", e.ID)
	}
}

// pattern is a body that can be recognised.
func pattern(id mail.ID, n int) []byte {
	return bytes.Repeat([]byte(id), n/len(id)+1)[:n]
}

func childDeliver(ctx context.Context, s *Store, r mail.Route) {
	for {
		l, err := s.Claim(ctx, r, 10)
		if err == nil && rand.IntN(12) == 0 {
			s.abandon(l)
			continue
		}
		if err == nil {
			err = deliverOnce(ctx, s, l, true)
		}
		if err != nil && !errors.Is(err, queue.ErrLost) {
			say("error deliver: %v", err)
			return
		}
	}
}

// deliverOnce reads the body, sends, settles.
func deliverOnce(ctx context.Context, s *Store, l *queue.Lease, mixed bool) error {
	id := l.Envelope.ID
	if err := readBody(ctx, s, l); err != nil {
		return err
	}
	if err := s.Renew(ctx, l, true); err != nil {
		return err
	}
	var outs []queue.Outcome
	var msgs []queue.NewMessage
	for _, it := range l.Items {
		o := queue.Outcome{N: it.N, Kind: queue.Done}
		switch k := rand.IntN(20); {
		case k < 2 && mixed:
			o.Kind, o.At = queue.Retry, time.Now().Add(time.Duration(rand.IntN(20))*time.Millisecond)
		case k == 3 && mixed && l.Route != mail.Out:
			o.Kind = queue.Fail
			m := queue.NewMessage{Envelope: &mail.Envelope{ID: mail.NewID(), Received: time.Now(), Recipients: []mail.Recipient{{Addr: mail.Address{Local: "s", Domain: "example.com"}}}}}
			m.Body = pattern(m.Envelope.ID, 300)
			msgs = append(msgs, m)
			say("fail %s %d %s", id, it.N, m.Envelope.ID)
		default:
			say("dot %s %d", id, it.N)
		}
		outs = append(outs, o)
	}
	if err := s.Settle(ctx, l, outs, msgs...); err != nil {
		return err
	}
	for _, o := range outs {
		if o.Kind == queue.Done {
			say("settled %s %d", id, o.N)
		}
	}
	return nil
}

func readBody(ctx context.Context, s *Store, l *queue.Lease) error {
	r, err := s.Open(ctx, l.Envelope.ID)
	if errors.Is(err, queue.ErrNotFound) {
		return queue.ErrLost // another lease delivered the rest of it
	}
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(b, pattern(l.Envelope.ID, int(l.Envelope.Size))) {
		err = fmt.Errorf("body of %s is another one", l.Envelope.ID)
	}
	return err
}

// childOperate changes users, holds and releases, saves, carries forward.
func childOperate(ctx context.Context, s *Store) {
	states := []router.State{router.StateOld, router.StateCutover, router.StateNew, router.StateRollback}
	check := func(what string, err error) {
		if err != nil && !errors.Is(err, router.ErrEpoch) {
			say("error %s: %v", what, err)
		}
	}
	for i := 0; ; i++ {
		key := "u" + strconv.Itoa(rand.IntN(8)) + "@example.org"
		u, err := s.User(ctx, key)
		if errors.Is(err, router.ErrNoUser) {
			u, err = router.User{Address: key, Kind: router.KindMailbox}, nil
		}
		check("user", err)
		u.State = states[rand.IntN(len(states))]
		_, _, err = s.SetUser(ctx, u, router.Change{By: "child"})
		check("set", err)
		_, err = s.Apply(ctx, queue.Filter{User: key}, queue.Action{Verb: []queue.Verb{queue.DoHold, queue.DoRelease, queue.DoRetry}[rand.IntN(3)]})
		check("apply", err)
		check("ledger", s.SaveLedger(ctx, key, "INBOX", []byte(key)))
		check("collect", s.Collect())
		if i%4 == 0 {
			_, _, err := s.ImportUsers(ctx, []router.User{{Address: key, Kind: router.KindMailbox, Wave: "w"}}, router.Change{By: "child"})
			check("import", err)
		}
	}
}

// childJournal moves the outbox without pause.
func childJournal(ctx context.Context, s *Store, dir string) {
	j, err := openJournal(s, dir)
	for err == nil {
		_, err = j.Drain(ctx, 0)
		<-time.After(time.Millisecond)
	}
	say("error journal: %v", err)
}

// openJournal opens the journal beside a store.
func openJournal(s *Store, dir string) (*journal.Journal, error) {
	shelf, err := journal.OpenDir(dir + "/journal")
	return &journal.Journal{Outbox: s, Shelf: shelf, CrashPoint: s.crash}, err
}

// checkJournal sees that all that was promised is in the journal.
func checkJournal(t *testing.T, c *storetest.Checker, s *Store, dir string) {
	t.Helper()
	j, err := openJournal(s, dir)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := c.CheckJournal(context.Background(), j)
	if err != nil || len(wrong) > 0 {
		t.Fatalf("the journal: %v, %v", err, wrong)
	}
}

// abandon makes a lease end, as after 60 s of silence.
func (s *Store) abandon(l *queue.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.Opaque.(*lease).until = time.Now().Add(-time.Second)
	s.arm(s.now())
}

// kill runs a child until it dies, at a point or after a while, and takes its
// account.
func kill(t *testing.T, c *storetest.Checker, dir, point string, broken bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+dir, childEnv+"_POINT="+point)
	if broken {
		cmd.Env = append(cmd.Env, childEnv+"_BROKEN=1")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case line == "ready":
			if point == "" {
				wait := time.Duration(rand.IntN(150)) * time.Millisecond
				time.AfterFunc(wait, func() { cmd.Process.Kill() })
			}
		case strings.HasPrefix(line, "error"):
			t.Errorf("child (%s): %s", point, line)
			cmd.Process.Kill()
		default:
			if err := c.Note(line); err != nil {
				t.Log(err) // cut short by the kill
			}
		}
	}
	cmd.Wait()
}

// reopen opens the store after a kill and accounts for what is in doubt.
func reopen(t *testing.T, c *storetest.Checker, dir string) *Store {
	t.Helper()
	s, err := Open(dir, crashOptions())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range s.InDoubt() {
		if d.Sending {
			if err := c.Note(fmt.Sprintf("doubt %s %d", d.ID, d.N)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func check(t *testing.T, c *storetest.Checker, s *Store) storetest.Report {
	t.Helper()
	left, err := storetest.Left(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return c.Check(left)
}

// TestCrash kills the store at every named point and at random, and sees that
// nothing is lost, nothing appears, and every duplicate has its doubt. It kills
// 120 times in CI, 1000 with CROSSFADE_FAULTS=long, CROSSFADE_KILLS=n times
// otherwise, and a few times by default.
func TestCrash(t *testing.T) {
	kills := CrashPoints()
	n := len(kills) + 20
	switch {
	case os.Getenv("CROSSFADE_KILLS") != "":
		n, _ = strconv.Atoi(os.Getenv("CROSSFADE_KILLS"))
	case os.Getenv("CROSSFADE_FAULTS") == "long":
		n = 1000
	case os.Getenv("CI") != "":
		n = 120
	case raceEnabled || testing.Short():
		rand.Shuffle(len(kills), func(i, j int) { kills[i], kills[j] = kills[j], kills[i] })
		kills, n = kills[:10], 16
	}
	for len(kills) < n {
		kills = append(kills, "")
	}
	rand.Shuffle(len(kills), func(i, j int) { kills[i], kills[j] = kills[j], kills[i] })
	var mu sync.Mutex
	var sum storetest.Report
	done := 0
	t.Run("stores", func(t *testing.T) {
		for part := range slices.Chunk(kills, max(8, min(25, n/2))) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				r := crashes(t, part)
				mu.Lock()
				defer mu.Unlock()
				done += len(part)
				sum.Acked, sum.Dots = sum.Acked+r.Acked, sum.Dots+r.Dots
				sum.Lost = append(sum.Lost, r.Lost...)
				sum.Unexpected = append(sum.Unexpected, r.Unexpected...)
				sum.Duplicates = append(sum.Duplicates, r.Duplicates...)
			})
		}
	})
	t.Logf("store/disk: %d kills, %d messages acknowledged, %d final dots: lost %d, unexpected %d, duplicates without a doubt %d",
		done, sum.Acked, sum.Dots, len(sum.Lost), len(sum.Unexpected), len(sum.Duplicates))
	if done < n {
		t.Errorf("%d kills of %d", done, n)
	}
}

// crashes kills a store again and again.
func crashes(t *testing.T, kills []string) storetest.Report {
	dir := t.TempDir()
	c := storetest.NewChecker()
	for i, point := range kills {
		kill(t, c, dir, point, false)
		s := reopen(t, c, dir)
		if i%8 == 7 {
			if r := check(t, c, s); !r.Clean() {
				t.Fatalf("after %q: %+v", point, r)
			}
			checkJournal(t, c, s, dir)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	s := reopen(t, c, dir)
	defer s.Close()
	drain(t, c, s)
	checkJournal(t, c, s, dir)
	r := check(t, c, s)
	if !r.Clean() {
		t.Fatalf("%+v", r)
	}
	if st, _ := s.Stats(context.Background()); st.Messages != 0 || st.Bytes != 0 || len(st.Routes) != 0 {
		t.Fatalf("after the drain: %+v", st)
	}
	if ents, _ := os.ReadDir(dir + "/bodies"); len(ents) > 1 {
		t.Fatalf("%d files of bodies are left", len(ents))
	}
	return r
}

// drain delivers everything, in this process.
func drain(t *testing.T, c *storetest.Checker, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for i := range 8 {
		key := "u" + strconv.Itoa(i) + "@example.org"
		u, err := s.User(ctx, key)
		if errors.Is(err, router.ErrNoUser) {
			u, err = router.User{Address: key, Kind: router.KindMailbox}, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		u.State = router.StateNew
		if _, _, err := s.SetUser(ctx, u, router.Change{By: "drain"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []queue.Verb{queue.DoRelease, queue.DoRetry} {
		if _, err := s.Apply(ctx, queue.Filter{}, queue.Action{Verb: v}); err != nil {
			t.Fatal(err)
		}
	}
	for {
		st, err := s.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Messages == 0 {
			return
		}
		for _, r := range []mail.Route{mail.New, mail.Out} {
			drainRoute(ctx, t, c, s, r)
		}
		if ctx.Err() != nil {
			t.Fatalf("it does not drain: %+v", st)
		}
	}
}

func drainRoute(ctx context.Context, t *testing.T, c *storetest.Checker, s *Store, r mail.Route) {
	t.Helper()
	for {
		short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
		l, err := s.Claim(short, r, 10)
		cancel()
		if err != nil {
			return
		}
		if err := readBody(ctx, s, l); err != nil {
			t.Fatal(err)
		}
		var outs []queue.Outcome
		for _, it := range l.Items {
			outs = append(outs, queue.Outcome{N: it.N, Kind: queue.Done})
			if err := c.Note(fmt.Sprintf("dot %s %d", l.Envelope.ID, it.N)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Settle(ctx, l, outs); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrashBrokenAck proves that the checker sees a store that answers before
// the commit.
func TestCrashBrokenAck(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		c := storetest.NewChecker()
		kill(t, c, dir, "broken.after-ack", true)
		s := reopen(t, c, dir)
		r := check(t, c, s)
		s.Close()
		if len(r.Lost) > 0 {
			return
		}
	}
	t.Fatal("a store that answers before the commit was not found out")
}

// TestCrashBrokenJournal proves that the checker sees a store that writes the
// journal behind the commit.
func TestCrashBrokenJournal(t *testing.T) {
	t.Setenv(childEnv+"_LATE", "1")
	for range 20 { // one that dies before it has answered anything proves nothing
		dir := t.TempDir()
		c := storetest.NewChecker()
		kill(t, c, dir, "", false)
		s := reopen(t, c, dir)
		j, err := openJournal(s, dir)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := c.CheckJournal(context.Background(), j)
		s.Close()
		if err != nil {
			t.Fatal(err)
		}
		if len(wrong) > 0 {
			return
		}
	}
	t.Fatal("a journal that is written behind the commit was not found out")
}
