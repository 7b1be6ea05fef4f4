package backfill_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"
)

// gate stands in front of a real server and answers single commands itself.
type gate struct {
	addr string
	// answer sees a command with its literals and gives what goes back instead of
	// the server's answer, without the tag; "" lets the command through, drop
	// and loseAnswer end the connection.
	answer func(cmd string) string
	conns  atomic.Int64

	mu   sync.Mutex
	live map[net.Conn]bool
	wg   sync.WaitGroup
}

const (
	drop = "\x00"
	// loseAnswer lets the command through and ends the connection at once.
	loseAnswer = "\x01"
	// instead, with a command behind it, sends the server that one: its answer comes
	// in turn, when commands are sent without waiting.
	instead = "\x02"
)

func newGate(t *testing.T, server string, answer func(cmd string) string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String(), answer: answer, live: map[net.Conn]bool{}}
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server)
			if err != nil {
				c.Close()
				continue
			}
			g.conns.Add(1)
			g.mu.Lock()
			g.live[c], g.live[s] = true, true
			g.mu.Unlock()
			g.wg.Go(func() { defer c.Close(); defer s.Close(); _, _ = io.Copy(c, s) })
			g.wg.Go(func() { defer c.Close(); defer s.Close(); g.serve(c, s) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.mu.Lock()
		for c := range g.live {
			c.Close()
		}
		g.mu.Unlock()
		g.wg.Wait()
	})
	return g
}

var literalAtEnd = regexp.MustCompile(`\{(\d+)\+\}\r\n$`)

// serve hands on whole commands; the client has to send literals without waiting.
func (g *gate) serve(c, s net.Conn) {
	br := bufio.NewReader(c)
	for {
		var cmd strings.Builder
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			cmd.WriteString(line)
			m := literalAtEnd.FindStringSubmatch(line)
			if m == nil {
				break
			}
			n, _ := strconv.Atoi(m[1])
			if _, err := io.CopyN(&cmd, br, int64(n)); err != nil {
				return
			}
		}
		tag, rest, _ := strings.Cut(cmd.String(), " ")
		switch answer := g.answer(rest); {
		case strings.HasPrefix(answer, instead):
			cmd.Reset()
			fmt.Fprintf(&cmd, "%s %s\r\n", tag, answer[len(instead):])
		case answer == drop:
			return
		case answer == loseAnswer:
			_, _ = io.WriteString(s, cmd.String())
			return
		case answer != "":
			if _, err := fmt.Fprintf(c, "%s %s\r\n", tag, answer); err != nil {
				return
			}
			continue
		}
		if _, err := io.WriteString(s, cmd.String()); err != nil {
			return
		}
	}
}

// appendCaps are servers with and without MULTIAPPEND.
var appendCaps = map[string]string{"MULTIAPPEND": "", "single": "IMAP4rev1 LITERAL+ UIDPLUS", "single, no UIDPLUS": "IMAP4rev1 LITERAL+"}

// TestMessageThatEndsTheConnection: a server that drops the connection at one
// message, instead of refusing it, once kept all that came behind it away.
func TestMessageThatEndsTheConnection(t *testing.T) {
	t.Parallel()
	for what, caps := range appendCaps {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			put(t, src, user, "INBOX", letters(0, 20, 100)...)
			poison := strings.TrimSpace(strings.SplitN(string(letter(7, 100).Body), "\n", 2)[0])
			g := newGate(t, dst.IMAPAddr, func(cmd string) string {
				if strings.HasPrefix(cmd, "APPEND") && strings.Contains(cmd, poison+"\r") {
					return drop
				}
				return ""
			})
			c := copier(t, newLedger(t))
			c.Settle = 300 * time.Millisecond // on a busy machine the server writes on for a while
			job := jobOf(src, dst)
			job.Dest.Server.Address = g.addr
			r := mustPass(t, c, job, backfill.Options{})
			if r.Copied != 19 || len(problems(r, backfill.ClassWrapped)) != 1 {
				t.Errorf("%+v", r)
			}
			if r := mustPass(t, c, job, backfill.Options{}); !r.Clean() {
				t.Errorf("%+v", r)
			}
			if n := holds(t, dst, user, false).count(); n != 20 {
				t.Errorf("%d messages, want 19 and one as an attachment", n)
			}
			g2 := jobOf(src, dst)
			if r := mustPass(t, c, g2, backfill.Options{RetryRefused: true}); r.Copied != 1 {
				t.Errorf("%+v", r)
			}
			got := holds(t, dst, user, false)
			delete(got, "Needs attention")
			same(t, holds(t, src, user, false), got)
		})
	}
}

// TestAnswerLost: the server takes a batch and the connection ends before its
// answer comes. The pass goes on by itself and appends nothing twice.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	for what, caps := range appendCaps {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			put(t, src, user, "INBOX", append(letters(0, 20, 100), letter(3, 100), letter(3, 100))...)
			var n atomic.Int64
			g := newGate(t, dst.IMAPAddr, func(cmd string) string {
				if strings.HasPrefix(cmd, "APPEND") && n.Add(1)%2 == 1 && n.Load() < 6 {
					return loseAnswer
				}
				return ""
			})
			c := copier(t, newLedger(t))
			c.BatchMessages, c.Settle = 8, time.Second
			job := jobOf(src, dst)
			job.Dest.Server.Address = g.addr
			if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 22 || len(r.Problems) > 0 {
				t.Errorf("%+v", r)
			}
			same(t, holds(t, src, user, false), holds(t, dst, user, false))
			if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestDestinationThrottles: the batch is offered again after the time that the
// server wants, and nothing is there twice.
func TestDestinationThrottles(t *testing.T) {
	t.Parallel()
	for what, caps := range appendCaps {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			put(t, src, user, "INBOX", letters(0, 20, 100)...)
			var n atomic.Int64
			g := newGate(t, dst.IMAPAddr, func(cmd string) string {
				if strings.HasPrefix(cmd, "APPEND") && n.Add(1)%3 == 2 {
					return "NO Request is throttled. Suggested Backoff Time: 20 milliseconds"
				}
				return ""
			})
			c := copier(t, newLedger(t))
			c.BatchMessages = 6
			job := jobOf(src, dst)
			job.Dest.Server.Address = g.addr
			if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 20 || len(r.Problems) > 0 || r.Throttled < 20*time.Millisecond {
				t.Errorf("%+v", r)
			}
			same(t, holds(t, src, user, false), holds(t, dst, user, false))
		})
	}
}

// TestPatienceEnds: a server that throttles for longer than the pass wants to
// wait ends the pass, and the next one goes on.
func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	var over atomic.Bool
	g := newGate(t, dst.IMAPAddr, func(cmd string) string {
		if strings.HasPrefix(cmd, "APPEND") && !over.Load() {
			return "NO [LIMIT] APPEND Rate limit hit, try again in 30 minutes"
		}
		return ""
	})
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Dest.Server.Address = g.addr
	if _, err := c.Pass(t.Context(), job, backfill.Options{}); err == nil || !strings.Contains(err.Error(), "30m") {
		t.Errorf("error %v", err)
	}
	over.Store(true)
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 5 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
}

// TestSourceThrottles: what a throttled source does not hand out is not
// unreadable; it once counted as that after three refusals.
func TestSourceThrottles(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 30, 100)...)
	var n, logins atomic.Int64
	g := newGate(t, src.IMAPAddr, func(cmd string) string {
		body := strings.Contains(cmd, "BODY.PEEK[]")
		switch {
		case body && n.Add(1)%8 == 0:
			return drop
		case body && n.Load()%8 < 7:
			return "NO [THROTTLED] Request is throttled. Suggested Backoff Time: 1 milliseconds"
		case strings.HasPrefix(cmd, "AUTHENTICATE") && logins.Add(1)%2 == 0:
			return "NO [LIMIT] Too many simultaneous connections, wait 2 ms"
		}
		return ""
	})
	c := copier(t, newLedger(t))
	c.BatchMessages = 6
	job := jobOf(src, dst)
	job.Source.Server.Address = g.addr
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 30 || len(r.Problems) > 0 || r.Throttled == 0 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, false), holds(t, dst, user, false))
}

// TestManyFoldersAtOnce: several lanes, also where the server takes no further
// connection, and in less memory than one batch has.
func TestManyFoldersAtOnce(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for i := range 6 {
		put(t, src, user, fmt.Sprintf("INBOX.f%d", i), letters(20*i, 20*i+20, 4000)...)
	}
	want := holds(t, src, user, false)
	for i, most := range []int64{1 << 30, 1} {
		name := fmt.Sprintf("dest%d@example.org", i)
		var logins atomic.Int64
		g := newGate(t, dst.IMAPAddr, func(cmd string) string {
			if strings.HasPrefix(cmd, "AUTHENTICATE") && logins.Add(1) > most {
				return "NO Maximum number of connections from user+IP exceeded"
			}
			return ""
		})
		c := copier(t, newLedger(t))
		c.BatchMessages, c.MemoryBytes, c.Connections = 5, 7000, 2
		job := jobOf(src, dst)
		job.Dest.Login.User, job.Dest.Server.Address = name, g.addr
		if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 120 || len(r.Problems) > 0 || r.Folders != 7 {
			t.Errorf("%+v", r)
		}
		if logins.Load() < 2 {
			t.Errorf("%d connections to the destination: the folders were copied one after the other", logins.Load())
		}
		same(t, want, holds(t, dst, name, false))
		if most == 1 {
			continue // and no further login
		}
		if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
			t.Errorf("%+v", r)
		}
	}
}

// TestFolderThatEndsTheConnection: a server that crashes when a folder is opened
// is connected to again, once for each folder.
func TestFolderThatEndsTheConnection(t *testing.T) {
	t.Parallel()
	src, dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{})), realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	put(t, src, user, "Papers", letters(5, 9, 100)...)
	var n atomic.Int64
	g := newGate(t, dst.IMAPAddr, func(cmd string) string {
		if strings.HasPrefix(cmd, "SELECT") && strings.Contains(cmd, "Papers") && n.Add(1) == 1 {
			return drop
		}
		return ""
	})
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = g.addr
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 9 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	if n.Load() < 2 {
		t.Errorf("the folder was opened %d times", n.Load())
	}
	same(t, holds(t, src, user, false), holds(t, dst, user, false))
	n.Store(0)
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}
