package backfill

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"crossfade/backfill/imapconn"
)

// post is an IMAP server inside the process for mailboxes with an INBOX, which
// keeps count of its connections. All its fields are guarded by mu.
type post struct {
	mu     sync.Mutex
	boxes  map[string]int // messages, by user
	idlers map[string]*postConn
	open   int
	most   int
	logins int
	asked  map[string]int // logins and STATUS, by user
	down   bool           // connections fail
	dead   bool           // nothing is answered any more
	limit  int            // connections at one time, when positive
	refuse string         // the answer to a connection above the limit: a greeting, or with "NO" to the login
	noIdle bool
	conns  map[*postConn]bool
}

type postConn struct {
	net.Conn
	mu   sync.Mutex // of writing
	user string
}

func newPost() *post {
	return &post{boxes: map[string]int{}, idlers: map[string]*postConn{}, asked: map[string]int{}, conns: map[*postConn]bool{}}
}

func (p *post) dial(context.Context, string, string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return nil, &net.OpError{Op: "dial", Err: io.EOF}
	}
	ours, theirs := net.Pipe()
	c := &postConn{Conn: theirs}
	p.open++
	p.most = max(p.most, p.open)
	p.conns[c] = true
	full := p.limit > 0 && p.open > p.limit
	go p.serve(c, full)
	return ours, nil
}

func (c *postConn) say(format string, a ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintf(c, format, a...) // the client may be gone
}

func (p *post) serve(c *postConn, full bool) {
	leave := sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open--
	})
	defer func() {
		c.Close()
		leave()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
		if p.idlers[c.user] == c {
			delete(p.idlers, c.user)
		}
	}()
	if full && !strings.HasPrefix(p.refuse, "NO") {
		leave()
		c.say("* BYE %s\r\n", p.refuse)
		return
	}
	idle := " IDLE"
	if p.noIdle {
		idle = ""
	}
	c.say("* OK [CAPABILITY IMAP4rev1%s] ready\r\n", idle)
	for br := bufio.NewReader(c); ; {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		tag, cmd, _ := strings.Cut(strings.TrimSpace(line), " ")
		if p.isDead() {
			continue
		}
		if full {
			leave()
			c.say("%s %s\r\n", tag, p.refuse)
			return
		}
		if cmd == "LOGOUT" {
			leave() // before the client can know, and come back
		}
		p.answer(c, br, tag, cmd)
		if cmd == "LOGOUT" {
			return
		}
	}
}

func (p *post) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *post) answer(c *postConn, br *bufio.Reader, tag, cmd string) {
	verb, rest, _ := strings.Cut(cmd, " ")
	p.mu.Lock()
	n := p.boxes[c.user]
	p.mu.Unlock()
	switch verb {
	case "LOGIN":
		p.mu.Lock()
		c.user = strings.Trim(strings.Fields(rest)[0], `"`)
		p.logins++
		p.mu.Unlock()
		if c.user == "stranger" {
			c.say("%s NO [AUTHENTICATIONFAILED] who is that\r\n", tag)
			return
		}
		c.say("%s OK [CAPABILITY IMAP4rev1 IDLE] in\r\n", tag)
		return
	case "EXAMINE":
		c.say("* %d EXISTS\r\n* OK [UIDVALIDITY 1] ok\r\n* OK [UIDNEXT %d] ok\r\n", n, n+1)
	case "STATUS":
		p.mu.Lock()
		p.asked[c.user]++
		p.mu.Unlock()
		c.say("* STATUS INBOX (MESSAGES %d UIDNEXT %d UIDVALIDITY 1)\r\n", n, n+1)
	case "IDLE":
		c.say("+ idling\r\n")
		p.mu.Lock()
		p.idlers[c.user] = c
		p.mu.Unlock()
		_, _ = br.ReadString('\n')
		if p.isDead() {
			return
		}
		p.mu.Lock()
		delete(p.idlers, c.user)
		p.mu.Unlock()
	}
	c.say("%s OK done\r\n", tag)
}

// deliver puts a message into an INBOX.
func (p *post) deliver(user string) {
	p.mu.Lock()
	p.boxes[user]++
	n, c := p.boxes[user], p.idlers[user]
	p.mu.Unlock()
	if c != nil {
		c.say("* %d EXISTS\r\n", n)
	}
}

// restart ends all connections, and takes none for a while.
func (p *post) restart(away time.Duration, bye string) {
	p.mu.Lock()
	p.down = true
	var list []*postConn
	for c := range p.conns {
		list = append(list, c)
	}
	p.mu.Unlock()
	for _, c := range list {
		if bye != "" {
			c.say("* BYE %s\r\n", bye)
		}
		c.Close()
	}
	time.Sleep(away)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// number reads, or with set changes, one of the counters.
func (p *post) number(n *int, set ...int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(set) > 0 {
		*n = set[0]
	}
	return *n
}

func (p *post) idling() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idlers)
}

// ears counts what is told of each user.
type ears struct {
	mu   sync.Mutex
	told map[string]int
	last map[string]time.Time
}

func (e *ears) of(user string) func(string) {
	return func(string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.told[user]++
		e.last[user] = time.Now()
	}
}

func (e *ears) count(user string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.told[user]
}

// tailOf runs a tail on p in the bubble.
func tailOf(t *testing.T, p *post, cfg TailConfig) (*Tail, *ears) {
	t.Helper()
	cfg.Dialer.NetDial = p.dial
	tail := NewTail(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tail.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
	})
	return tail, &ears{told: map[string]int{}, last: map[string]time.Time{}}
}

func account(user string) imapconn.Account {
	return imapconn.Account{Server: imapconn.Server{Address: "old:143", Mode: imapconn.TLSNone}, Login: imapconn.Login{User: user, Password: "x"}}
}

func user(i int) string { return fmt.Sprintf("u%d@example.org", i) }

func TestTailTellsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPost()
		tail, e := tailOf(t, p, TailConfig{})
		stop := tail.Watch(account(user(1)), "INBOX", e.of(user(1)))
		time.Sleep(time.Second)
		first := e.count(user(1))
		for i := range 100 {
			time.Sleep(7 * time.Minute) // over many renewals
			p.deliver(user(1))
			synctest.Wait()
			if got := e.count(user(1)); got != first+i+1 {
				t.Fatalf("%d changes told, want %d", got-first, i+1)
			}
		}
		if p.number(&p.logins) != 1 {
			t.Errorf("%d logins, want 1 that lasts", p.number(&p.logins))
		}
		stop()
		time.Sleep(time.Second)
		p.deliver(user(1))
		synctest.Wait()
		if got := e.count(user(1)); got != first+100 || p.number(&p.open) != 0 {
			t.Errorf("after the end of the watch %d changes were told and %d connections are open", got-first-100, p.number(&p.open))
		}
	})
}

// Many mailboxes cost few connections, and each is looked into in time.
func TestTailOfThousands(t *testing.T) {
	const n = 5000
	synctest.Test(t, func(t *testing.T) {
		p := newPost()
		tail, e := tailOf(t, p, TailConfig{Standing: 50, Polls: 4})
		for i := range n {
			tail.Watch(account(user(i)), "INBOX", e.of(user(i)))
		}
		time.Sleep(2 * time.Minute)
		st := tail.Stats()[0]
		if most := p.number(&p.most); most > 54 || st.Standing != 50 || st.Watched != n {
			t.Errorf("%d connections at most, %+v: want 54 and 50 standing", most, st)
		}
		asked, polled := 0, ""
		p.mu.Lock()
		for i := range n {
			if p.asked[user(i)] > 0 {
				asked++
				polled = user(i)
			}
		}
		p.mu.Unlock()
		if asked != n-50 {
			t.Errorf("%d mailboxes were polled within two minutes, want %d", asked, n-50)
		}
		before := e.count(polled)
		p.deliver(polled)
		time.Sleep(time.Minute + 5*time.Second)
		if n := e.count(polled) - before; n != 1 {
			t.Errorf("a message in a polled mailbox was told %d times within a minute, want once", n)
		}
		// He is the most alive one now, so the next message is told at once.
		p.deliver(polled)
		synctest.Wait()
		if e.count(polled) != before+2 {
			t.Error("the mailbox that changed last has no standing connection")
		}
	})
	if size := unsafe.Sizeof(watching{}); size > 512 {
		t.Errorf("a watched folder takes %d octets, the documentation says half a KiB", size)
	}
}

func TestTailSurvivesTheServer(t *testing.T) {
	for name, bye := range map[string]string{"closed": "", "BYE": "[UNAVAILABLE] shutting down"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPost()
				tail, e := tailOf(t, p, TailConfig{Standing: 5})
				for i := range 20 {
					tail.Watch(account(user(i)), "INBOX", e.of(user(i)))
				}
				time.Sleep(2 * time.Minute)
				p.number(&p.logins, 0)
				p.restart(10*time.Minute, bye)
				before := e.count(user(19))
				p.deliver(user(19)) // while nobody is connected
				if n := p.number(&p.logins); n != 0 {
					t.Errorf("%d logins at a server that was away", n)
				}
				time.Sleep(6 * time.Minute)
				if p.idling() != 5 {
					t.Errorf("%d of 5 connections are back", p.idling())
				}
				if e.count(user(19)) == before {
					t.Error("a message that came while nobody was connected was not told")
				}
			})
		})
	}
}

// While a server is away few try to reach it, whatever is watched there.
func TestTailLeavesADeadServerAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPost()
		p.down = true
		var dials atomic.Int64
		tail := NewTail(TailConfig{Dialer: imapconn.Dialer{NetDial: func(ctx context.Context, a, b string) (net.Conn, error) {
			dials.Add(1)
			return p.dial(ctx, a, b)
		}}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tail.Run(ctx) }()
		for i := range 1000 {
			tail.Watch(account(user(i)), "INBOX", func(string) {})
		}
		time.Sleep(time.Hour)
		if n := dials.Load(); n > 50+130 {
			t.Errorf("%d connections were tried in an hour", n)
		}
		cancel()
		<-done
	})
}

func TestTailNoticesADeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPost()
		tail, e := tailOf(t, p, TailConfig{})
		tail.Watch(account(user(1)), "INBOX", e.of(user(1)))
		time.Sleep(20 * time.Minute)
		before := e.count(user(1))
		p.mu.Lock()
		p.dead = true // a NAT has forgotten us
		p.boxes[user(1)]++
		p.mu.Unlock()
		time.Sleep(10 * time.Minute)
		p.mu.Lock()
		p.dead = false
		p.mu.Unlock()
		// A try that began before may wait for its answer first, and then for the
		// next one's time.
		time.Sleep(3 * time.Minute)
		if p.idling() != 1 || e.count(user(1)) == before {
			t.Errorf("%d connections, %d changes told", p.idling(), e.count(user(1))-before)
		}
	})
}

func TestTailTakesNoForAnAnswer(t *testing.T) {
	for _, words := range []string{"Too many connections from your host", "NO [LIMIT] Maximum number of connections exceeded", "NO [INUSE] enough",
		"[THROTTLED] Request is throttled. Suggested Backoff Time: 30000 milliseconds"} {
		t.Run(words, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPost()
				p.limit, p.refuse = 10, words
				var log strings.Builder
				tail, e := tailOf(t, p, TailConfig{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
				for i := range 30 {
					tail.Watch(account(user(i)), "INBOX", e.of(user(i)))
				}
				time.Sleep(8 * time.Minute)
				st := tail.Stats()[0]
				if st.Bound > 10 || st.Bound < 5 || st.Standing != st.Bound {
					t.Errorf("with a limit of 10 connections: %+v", st)
				}
				if n := strings.Count(log.String(), "fewer connections"); n != 1 {
					t.Errorf("it was said %d times, want once:\n%s", n, log.String())
				}
				patience := 3 * time.Minute
				if strings.Contains(words, "Backoff") {
					patience = 10 * time.Minute // it wants half a minute each time
				}
				for i := range 30 {
					before := e.count(user(i))
					p.deliver(user(i))
					time.Sleep(patience)
					if e.count(user(i)) == before {
						t.Errorf("a message for %s was not told", user(i))
					}
				}
				p.number(&p.limit, 0)
				time.Sleep(3 * time.Hour)
				if st := tail.Stats()[0]; st.Standing != 30 {
					t.Errorf("hours after the limit went: %+v", st)
				}
			})
		})
	}
}

// One mailbox that does not open costs the others nothing.
func TestTailWithAWrongPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPost()
		tail, e := tailOf(t, p, TailConfig{Standing: 2})
		for _, u := range []string{user(1), user(2), "stranger"} {
			tail.Watch(account(u), "INBOX", e.of(u))
		}
		time.Sleep(50 * time.Second) // not at a renewal
		if p.idling() != 2 {
			t.Errorf("%d of 2 have a connection", p.idling())
		}
		before := p.number(&p.logins)
		time.Sleep(time.Hour)
		if n := p.number(&p.logins) - before; n > 30 {
			t.Errorf("the wrong password was tried %d times in an hour", n)
		}
	})
}

func TestTailRunsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPost()
		tail := NewTail(TailConfig{Standing: 3, Dialer: imapconn.Dialer{NetDial: p.dial}})
		var stops []func()
		for i := range 6 {
			stops = append(stops, tail.Watch(account(user(i)), "INBOX", func(string) {}))
		}
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- tail.Run(ctx) }()
			time.Sleep(2 * time.Minute)
			if st := tail.Stats(); len(st) != 1 || st[0].Standing != 3 {
				t.Errorf("%+v", st)
			}
			cancel()
			<-done
			synctest.Wait()
			if n := p.number(&p.open); n != 0 {
				t.Errorf("%d connections are open after the end", n)
			}
		}
		for _, stop := range stops {
			stop()
			stop()
		}
	})
}
