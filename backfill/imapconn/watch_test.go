package imapconn

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// quick are the times of a watch in these tests.
var quick = Watching{Renew: 100 * time.Millisecond, Answer: 2 * time.Second, Poll: 20 * time.Millisecond}

// watched is a Watch at work.
type watched struct {
	t      *testing.T
	s      *Session
	told   chan string
	ended  chan error
	cancel context.CancelFunc
}

func startWatch(t *testing.T, acct Account, o Watching) *watched {
	t.Helper()
	s, err := (&Dialer{Idle: 5 * time.Second, Buffer: 4096}).Open(t.Context(), acct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	sel, err := s.Examine("INBOX")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	w := &watched{t: t, s: s, told: make(chan string, 1000), ended: make(chan error, 1), cancel: cancel}
	go func() { w.ended <- s.Watch(ctx, "INBOX", sel.Exists, o, func(f string) { w.told <- f }) }()
	return w
}

// want waits until a folder is told of; what else is told before is passed over.
func (w *watched) want(folder string) {
	w.t.Helper()
	late := time.After(5 * time.Second)
	for {
		select {
		case f := <-w.told:
			if f == folder {
				return
			}
		case err := <-w.ended:
			w.t.Fatalf("the watch ended: %v", err)
		case <-late:
			w.t.Fatalf("no change of %q was told", folder)
		}
	}
}

func (w *watched) wantEnd(words string) {
	w.t.Helper()
	select {
	case err := <-w.ended:
		if err == nil || !strings.Contains(err.Error(), words) {
			w.t.Fatalf("the watch ended with %v, want %q", err, words)
		}
	case <-time.After(5 * time.Second):
		w.t.Fatalf("the watch goes on, want an end with %q", words)
	}
}

// wantStop ends the watch, and checks that the session can be used on.
func (w *watched) wantStop() {
	w.t.Helper()
	w.cancel()
	select {
	case err := <-w.ended:
		if err != nil {
			w.t.Fatalf("the watch was ended, and failed: %v", err)
		}
	case <-time.After(5 * time.Second):
		w.t.Fatal("the watch does not end")
	}
	if err := w.s.run(newCommand("NOOP"), nil); err != nil {
		w.t.Fatalf("after the watch: %v", err)
	}
}

func TestWatchOnDovecot(t *testing.T) {
	for name, o := range map[string]realtest.DovecotOptions{
		"notify": {},
		"idle":   {Capability: "IMAP4rev1 LITERAL+ UIDPLUS IDLE SASL-IR"},
		"bare":   {Capability: "IMAP4rev1"},
	} {
		t.Run(name, func(t *testing.T) {
			d := realtest.StartDovecot(t, o)
			put := func(folder string) {
				d.Append(t, "anna", folder, mailtest.StoredMessage{Body: []byte("Subject: x\r\n\r\nx\r\n")})
			}
			put("INBOX")
			other := d.Login(t, "anna")
			if err := other.Create("Work", nil).Wait(); err != nil {
				t.Fatal(err)
			}
			acct := Account{Server: Server{Address: d.IMAPAddr, Mode: TLSNone}, Login: Login{User: "anna", Password: "secret"}}
			renew := quick
			renew.Renew = time.Minute // what is told is told at once, not at the renewal
			w := startWatch(t, acct, renew)
			put("INBOX")
			w.want("INBOX")
			if name == "notify" {
				put("Work")
				w.want("Work")
			}
			if _, err := other.Select("INBOX", nil).Wait(); err != nil {
				t.Fatal(err)
			}
			w.wantStop()
		})
	}
}

func idler(f *fake) *fake {
	f.caps += " IDLE"
	return f
}

// onIdle has do called with the tag when IDLE has begun; DONE is answered.
func onIdle(f *fake, do func(c *fakeConn, n int)) {
	n := 0
	var idling string
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		switch {
		case cmd == "IDLE":
			n++
			idling = tag
			c.say("+ idling\r\n")
			do(c, n)
			return true
		case tag == "DONE":
			c.say("%s OK done\r\n", idling)
			return true
		}
		return false
	}
}

func TestWatchIsToldByIdle(t *testing.T) {
	for what, line := range map[string]string{
		"a new message":       "* 2 EXISTS\r\n* 1 RECENT\r\n",
		"an expunge":          "* 1 EXPUNGE\r\n",
		"a flag":              "* 1 FETCH (FLAGS (\\Seen))\r\n",
		"after other data":    "* OK Still here\r\n+ still\r\n* XODD {3}\r\nabc what\r\n* 2 EXISTS\r\n",
		"in two pieces":       "* 2 EXI",
		"vanished (RFC 7162)": "* VANISHED 300:310\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			f := idler(newFake(t, 7))
			onIdle(f, func(c *fakeConn, n int) {
				c.say("%s", line)
				if !strings.HasSuffix(line, "\n") {
					c.say("STS\r\n")
				}
			})
			w := startWatch(t, f.account(), Watching{Renew: time.Minute})
			w.want("INBOX")
			w.wantStop()
		})
	}
}

// A repeated EXISTS is how some servers keep the connection alive: nothing has
// changed, and a pass for it would be one a minute for nothing.
func TestWatchIgnoresWhatIsNoChange(t *testing.T) {
	f := idler(newFake(t, 7))
	again := make(chan int, 100)
	onIdle(f, func(c *fakeConn, n int) {
		c.say("* 1 EXISTS\r\n* 0 RECENT\r\n* OK Still here\r\n")
		again <- n
	})
	w := startWatch(t, f.account(), quick)
	for n := range again {
		if n == 3 {
			break
		}
	}
	w.wantStop()
	select {
	case f := <-w.told:
		t.Errorf("a change of %q was told", f)
	default:
	}
}

func TestWatchWithoutIdlePolls(t *testing.T) {
	for name, set := range map[string]func(f *fake){
		"not offered": func(*fake) {},
		"refused": func(f *fake) {
			f.caps += " IDLE"
			f.hook = refuse("IDLE", "NO [CANNOT] not here")
		},
		"ended at once": func(f *fake) {
			f.caps += " IDLE"
			f.hook = func(c *fakeConn, tag, cmd string) bool {
				if cmd == "IDLE" {
					c.say("+ idling\r\n%s OK that was it\r\n", tag)
				}
				return cmd == "IDLE"
			}
		},
		"lies": func(f *fake) {
			f.caps += " IDLE"
			onIdle(f, func(*fakeConn, int) {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 7)
			set(f)
			inner, exists := f.hook, 1
			f.hook = func(c *fakeConn, tag, cmd string) bool {
				if cmd == "NOOP" {
					exists++
					c.say("* %d EXISTS\r\n", exists)
				}
				return inner != nil && inner(c, tag, cmd)
			}
			w := startWatch(t, f.account(), quick)
			for range 5 {
				w.want("INBOX")
			}
			w.wantStop()
			idles := 0
			for _, c := range f.seen() {
				if c == "IDLE" {
					idles++
				}
			}
			if idles > 2 {
				t.Errorf("IDLE was sent %d times to a server that has none", idles)
			}
		})
	}
}

func refuse(cmd, answer string) func(*fakeConn, string, string) bool {
	return func(c *fakeConn, tag, got string) bool {
		if got == cmd {
			c.say("%s %s\r\n", tag, answer)
		}
		return got == cmd
	}
}

func TestWatchEndsWithTheConnection(t *testing.T) {
	t.Run("BYE", func(t *testing.T) {
		f := idler(newFake(t, 7))
		onIdle(f, func(c *fakeConn, _ int) { c.say("* BYE [UNAVAILABLE] too many connections, come back\r\n") })
		w := startWatch(t, f.account(), Watching{Renew: time.Minute})
		w.wantEnd("too many connections")
	})
	t.Run("BYE at the renewal is throttling", func(t *testing.T) {
		f := idler(newFake(t, 7))
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if cmd == "IDLE" {
				c.say("+ idling\r\n")
			} else if tag == "DONE" {
				c.say("* BYE [THROTTLED] slow down\r\n")
			}
			return cmd == "IDLE" || tag == "DONE"
		}
		w := startWatch(t, f.account(), quick)
		err := <-w.ended
		if _, ok := Throttled(err); !ok {
			t.Errorf("the watch ended with %v, which does not count as throttling", err)
		}
	})
	t.Run("half open", func(t *testing.T) {
		f := idler(newFake(t, 7))
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if cmd == "IDLE" {
				c.say("+ idling\r\n")
			}
			return cmd == "IDLE" || tag == "DONE" // DONE is never answered
		}
		o := quick
		o.Answer = 100 * time.Millisecond
		w := startWatch(t, f.account(), o)
		w.wantEnd("does not answer DONE")
	})
	t.Run("closed", func(t *testing.T) {
		f := idler(newFake(t, 7))
		onIdle(f, func(c *fakeConn, _ int) { c.Close() })
		w := startWatch(t, f.account(), Watching{Renew: time.Minute})
		w.wantEnd("EOF")
	})
}

func TestWatchByNotify(t *testing.T) {
	f := newFake(t, 7)
	f.caps += " IDLE NOTIFY"
	sets := make(chan bool, 10)
	onIdle(f, func(c *fakeConn, n int) {
		if n == 1 {
			c.say("* STATUS Work (MESSAGES 3 UIDNEXT 9)\r\n* STATUS {4}\r\nM&AP\r\n")
			c.say("* STATUS inbox (MESSAGES 3)\r\n* LIST () \".\" New\r\n* OK [NOTIFICATIONOVERFLOW] too much\r\n")
		}
	})
	inner := f.hook
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if strings.HasPrefix(cmd, "NOTIFY SET") {
			sets <- true
		}
		return inner(c, tag, cmd)
	}
	w := startWatch(t, f.account(), quick)
	for _, folder := range []string{"Work", "INBOX", "", ""} {
		w.want(folder)
	}
	for range 2 {
		select {
		case <-sets:
		case <-time.After(5 * time.Second):
			t.Fatal("NOTIFY SET was not sent again after the overflow")
		}
	}
	w.wantStop()
}

func TestWatchWithoutNotifyRight(t *testing.T) {
	f := newFake(t, 7)
	f.caps += " IDLE NOTIFY"
	onIdle(f, func(c *fakeConn, _ int) { c.say("* 9 EXISTS\r\n") })
	inner := f.hook
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if strings.HasPrefix(cmd, "NOTIFY") {
			c.say("%s NO [BADEVENT (MessageNew)] none of these\r\n", tag)
			return true
		}
		return inner(c, tag, cmd)
	}
	w := startWatch(t, f.account(), Watching{Renew: time.Minute})
	w.want("INBOX")
	w.wantStop()
}

// A greeting that is a goodbye counts as throttling where its words say so.
func TestGoodbyeAsGreeting(t *testing.T) {
	f := newFake(t)
	f.greeting = "* BYE [ALERT] Too many connections from your host\r\n"
	_, err := (&Dialer{}).Open(t.Context(), f.account())
	if _, ok := Throttled(err); !ok {
		t.Errorf("not known as throttling: %v", err)
	}
	var login *LoginError
	if errors.As(err, &login) {
		t.Error("it counts as a refused login")
	}
}
