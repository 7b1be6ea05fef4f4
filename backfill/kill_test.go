package backfill_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"go.uber.org/goleak"
)

const childEnv = "BACKFILL_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child(strings.Split(os.Getenv(childEnv), "|")))
	}
	// The tests wait for servers to start and to stop more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// child is one pass in a process of its own, which kills itself: at the nth
// call of a crash point, or after some microseconds when the point is "".
func child(args []string) int {
	nth, err := strconv.Atoi(args[4])
	if err != nil {
		return 2
	}
	die := func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	c := &backfill.Copier{Ledger: &fileLedger{path: args[2]}, BatchMessages: 7, Settle: 100 * time.Millisecond}
	if args[3] == "" {
		time.AfterFunc(time.Duration(nth)*time.Microsecond, die)
	} else {
		c.CrashPoint = func(name string) {
			if name != args[3] {
				return
			}
			if nth--; nth == 0 {
				die()
			}
		}
	}
	name := args[5]
	job := backfill.Job{User: name, Host: "mx.example.org", Source: account(args[0], name, "secret"), Dest: account(args[1], name, "secret")}
	job, o := way(job, args[6])
	if _, err := c.Pass(context.Background(), job, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// way is how passes are made in each direction, with a user who reads old and one
// who reads new ("settled").
func way(job backfill.Job, how string) (backfill.Job, backfill.Options) {
	job.Settled = strings.HasPrefix(how, "settled")
	o := backfill.Options{Back: strings.HasSuffix(how, "back")}
	if o.Back == job.Settled {
		o.Deletions, o.Restore = true, true
	}
	return job, o
}

// killed runs a child and tells whether it was killed, and not done before.
func killed(t *testing.T, src, dst, name, ledger, point string, nth int) bool {
	t.Helper()
	return killedOn(t, "forth", src, dst, name, ledger, point, nth)
}

func killedOn(t *testing.T, how, src, dst, name, ledger, point string, nth int) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{src, dst, ledger, point, strconv.Itoa(nth), name, how}, "|"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("child at %q %d: %v\n%s", point, nth, err, out.Bytes())
	}
	return false
}

// fragile are messages that Dovecot alters when they are appended: NUL, and one
// CR before each line end and at the end, each time.
func fragile() []mailtest.StoredMessage {
	m := letter(900, 50)
	nul, bare, end := m, m, m
	nul.Body = []byte("Subject: nul\r\n\r\na\x00b\r\n")
	bare.Body = []byte("Subject: bare\r\n\r\na\rb\r\r\r\nc\r\n")
	end.Body = []byte("Subject: end\r\n\r\nends in CR\r\r")
	return []mailtest.StoredMessage{nul, bare, end}
}

// crashMailbox fills the source for the kill tests.
func crashMailbox(t *testing.T, src *realtest.Dovecot, name string) {
	put(t, src, name, "INBOX", append(append(fragile(), letter(3, 300), letter(3, 300)), letters(0, 16, 300)...)...)
	put(t, src, name, "INBOX.Archiv.2020", letters(50, 60, 300)...)
}

var wireSize = regexp.MustCompile(`RFC822\.SIZE \d+`)

// TestKilledAnywhere kills the process at every named point, the first time it
// comes there and the second, and goes on where it ended. Mail is delivered to
// the destination meanwhile. The destination has all extensions, none that
// tells UIDs, and neither LITERAL+ nor MULTIAPPEND.
func TestKilledAnywhere(t *testing.T) {
	for what, caps := range map[string]string{"all": "", "sizes that lie": "", "no MULTIAPPEND": "IMAP4rev1 LITERAL+ UIDPLUS CONDSTORE NAMESPACE",
		"no UIDPLUS": "IMAP4rev1 MULTIAPPEND LITERAL+", "none": "IMAP4rev1"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.DotINBOX, MailFsync: "never"})
			dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never", Capability: caps})
			addr := dst.IMAPAddr
			if what == "sizes that lie" {
				// As on servers that estimate them. Nothing but the journal can
				// find what was appended now.
				addr = newProxy(t, addr, func(_ *proxy, b []byte) []byte { return wireSize.ReplaceAll(b, []byte("RFC822.SIZE 7")) }).addr
			}
			points := slices.DeleteFunc(backfill.CrashPoints(), func(p string) bool { return p == "after-wrap" || p == "after-expunge" }) // TestWrapKilled, TestDeletionKilled
			if what != "all" {
				points = []string{"after-recover", "after-append"}
			}
			for i, point := range points {
				name := fmt.Sprintf("user%d@example.org", i)
				crashMailbox(t, src, name)
				want := holds(t, src, name, true)
				l := newLedger(t)
				steps := []string{point, point}
				if point == "after-recover" {
					steps = []string{"after-append", point, "after-append", point}
				}
				var extra []mailtest.StoredMessage
				for j, step := range steps {
					if !killed(t, src.IMAPAddr, addr, name, l.path, step, j%2+1) && j < 1 {
						t.Errorf("%s was never reached", step)
					}
					m := letter(1000+j, 300)
					extra = append(extra, m)
					put(t, dst, name, "INBOX", m)
				}
				job := jobFor(src, dst, name)
				job.Dest.Server.Address = addr
				finishKilled(t, dst, job, l, want, extra)
			}
		})
	}
}

// TestKilledAtRandom kills the process at random instants.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.DotINBOX, MailFsync: "never"})
	dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
	crashMailbox(t, src, user)
	put(t, src, user, "INBOX.viel", letters(100, 200, 300)...)
	want := holds(t, src, user, true)
	l := newLedger(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var extra []mailtest.StoredMessage
	kills := 0
	for range 24 {
		if killed(t, src.IMAPAddr, dst.IMAPAddr, user, l.path, "", rnd.IntN(60_000)) {
			kills++
		}
		if rnd.IntN(4) == 0 {
			m := letter(1000+len(extra), 300)
			extra = append(extra, m)
			put(t, dst, user, "INBOX", m)
		}
	}
	t.Logf("%d kills", kills)
	finishKilled(t, dst, jobOf(src, dst), l, want, extra)
}

// finishKilled ends the job and compares: all of the source and the mail that
// was delivered, each once.
func finishKilled(t *testing.T, dst *realtest.Dovecot, job backfill.Job, l *fileLedger, want stored, extra []mailtest.StoredMessage) {
	t.Helper()
	c := copier(t, l)
	mustPass(t, c, job, backfill.Options{})
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("the pass after the last is not clean: %+v", r)
	}
	got := holds(t, dst, job.User, true)
	total := want.count() + len(extra)
	if got.count() != total {
		t.Errorf("the destination has %d messages, want %d", got.count(), total)
	}
	// What Dovecot alters differs: it is told by Verify, everything else by us.
	lost := 0
	for folder, lines := range want {
		for _, line := range lines {
			if i := slices.Index(got[folder], line); i >= 0 {
				got[folder] = slices.Delete(got[folder], i, i+1)
			} else {
				lost++
			}
		}
	}
	v, err := c.Verify(t.Context(), job)
	if err != nil || !v.OK() {
		t.Errorf("verify: %+v, %v", v, err)
	}
	if altered := len(v.Problems); lost != altered || got.count() != len(extra)+altered {
		t.Errorf("%d messages of the source are not there as they were, %d are altered, %d are left over besides %d deliveries", lost, altered, got.count(), len(extra))
	}
}
