package backfill_test

import (
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

// counter stands before a server and takes down the commands that it is sent.
type counter struct {
	addr string
	mu   sync.Mutex
	seen []string
	wg   sync.WaitGroup
}

var commandLine = regexp.MustCompile(`(?m)^[CT]\d+ ((?:UID )?[A-Z]+)`)

func newCounter(t *testing.T, to string) *counter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{addr: l.Addr().String()}
	c.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			c.wg.Go(func() { defer in.Close(); _, _ = io.Copy(in, out) })
			c.wg.Go(func() { defer out.Close(); _, _ = io.Copy(io.MultiWriter(c, out), in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.wg.Wait()
	})
	return c
}

// Write takes what a client sends; the engines write a command at a time.
func (c *counter) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range commandLine.FindAllSubmatch(b, -1) {
		if string(m[1]) == "LOGOUT" {
			continue // nobody waits for it, so it may be seen after the pass
		}
		c.seen = append(c.seen, string(m[1]))
	}
	return len(b), nil
}

// take gives the commands since it was called last.
func (c *counter) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = nil
	return seen
}

// A pass for one folder asks for nothing but that folder.
func TestPassOverOneFolder(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for _, f := range []string{"INBOX", "INBOX.Work", "INBOX.Lists.go"} {
		put(t, src, user, f, letters(0, 3, 100)...)
	}
	srcSide, dstSide := newCounter(t, src.IMAPAddr), newCounter(t, dst.IMAPAddr)
	job := jobFor(src, dst, user)
	job.Source.Server.Address, job.Dest.Server.Address = srcSide.addr, dstSide.addr
	c := copier(t, newLedger(t))
	inbox := backfill.Options{Only: []string{"INBOX"}}

	// Not known yet: the folder is looked for, and the others are left alone.
	if r := mustPass(t, c, job, inbox); r.Copied != 3 || r.Folders != 1 {
		t.Fatalf("first pass over the INBOX: %+v", r)
	}
	if got := folders(holds(t, dst, user, false)); !cmp.Equal(got, []string{"INBOX"}) {
		t.Fatalf("folders on the destination: %q", got)
	}
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 6 || r.Folders != 3 {
		t.Fatalf("first pass over all: %+v", r)
	}
	srcSide.take()
	dstSide.take()

	if r := mustPass(t, c, job, inbox); !r.Clean() || r.Folders != 1 {
		t.Fatalf("nothing was new: %+v", r)
	}
	login := srcSide.take()
	if want := []string{"LOGIN", "STATUS"}; len(login) != 2 || !cmp.Equal(login[1:], want[1:]) {
		t.Errorf("nothing to do: the source was asked %q, want %q", login, want)
	}
	if got := dstSide.take(); len(got) != 2 {
		t.Errorf("nothing to do: the destination was asked %q", got)
	}

	put(t, src, user, "INBOX", letter(10, 100))
	put(t, src, user, "INBOX.Work", letter(11, 100))
	srcSide.take()
	if r := mustPass(t, c, job, inbox); r.Copied != 1 || r.Folders != 1 {
		t.Fatalf("one new message in each of two folders: %+v", r)
	}
	asked, given := srcSide.take(), dstSide.take()
	t.Logf("one message: the source was asked %q, the destination %q", asked, given)
	if len(asked) > 6 || len(given) > 9 {
		t.Errorf("one message took %d commands to the source (%q) and %d to the destination (%q)", len(asked), asked, len(given), given)
	}
	for _, cmd := range append(asked, given...) {
		if strings.HasPrefix(cmd, "L") && !strings.HasPrefix(cmd, "LOG") || cmd == "NAMESPACE" {
			t.Errorf("the folders were listed: %s", cmd)
		}
	}
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 1 {
		t.Errorf("the pass over all after it: %+v", r)
	}
	full := srcSide.take()
	t.Logf("a pass over all with one message: the source was asked %q, the destination %q", full, dstSide.take())
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}
