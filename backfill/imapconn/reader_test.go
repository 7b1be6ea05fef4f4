package imapconn

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// upTo gives 1..n.
func upTo(n uint32) []uint32 {
	var out []uint32
	for i := uint32(1); i <= n; i++ {
		out = append(out, i)
	}
	return out
}

// spoil answers the FETCH of one message in its own way, limit times at most,
// and the messages before it as usual.
func spoil(f *fake, uid uint32, limit int, with func(c *fakeConn, seq int, m fakeMsg)) {
	times := 0
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		rest, ok := strings.CutPrefix(cmd, "UID FETCH ")
		set, items, _ := strings.Cut(rest, " ")
		f.mu.Lock()
		hit := ok && inSet(set, uid) && times < limit
		if hit {
			times++
		}
		f.mu.Unlock()
		if !hit {
			return false
		}
		for i, m := range f.msgs {
			switch {
			case m.uid == uid:
				with(c, i+1, m)
			case inSet(set, m.uid):
				c.fetch(i+1, m, items)
			}
		}
		c.say("%s OK done\r\n", tag)
		return true
	}
}

func cutShort(c *fakeConn, seq int, m fakeMsg) {
	c.say("* %d FETCH (UID %d FLAGS () BODY[] {%d}\r\n%s", seq, m.uid, len(m.body), m.body[:len(m.body)/2])
	c.Close()
}

func TestReaderAsksAgain(t *testing.T) {
	tests := map[string]func(c *fakeConn, seq int, m fakeMsg){
		"literal cut short": cutShort,
		"goodbye": func(c *fakeConn, _ int, _ fakeMsg) {
			c.say("* BYE restarting\r\n")
			c.Close()
		},
		"left out":         func(*fakeConn, int, fakeMsg) {},
		"without its body": func(c *fakeConn, seq int, m fakeMsg) { c.say("* %d FETCH (UID %d FLAGS ())\r\n", seq, m.uid) },
		"body is NIL":      func(c *fakeConn, seq int, m fakeMsg) { c.say("* %d FETCH (UID %d BODY[] NIL)\r\n", seq, m.uid) },
		"garbage":          func(c *fakeConn, _ int, _ fakeMsg) { c.say("* XYZZY (((\r\n") },
		"flags come before": func(c *fakeConn, seq int, m fakeMsg) {
			c.say("* %d FETCH (UID %d FLAGS (\\Seen))\r\n", seq, m.uid)
			c.fetch(seq, m, "BODY.PEEK[]")
		},
	}
	for name, with := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, upTo(12)...)
			spoil(f, 5, 2, with)
			c, failures, err := fetchAll(t, f, upTo(12)...)
			if err != nil || len(failures) != 0 || len(c.got) != 12 {
				t.Errorf("%d messages, failures %v, error %v", len(c.got), failures, err)
			}
		})
	}
}

func TestReaderIsolatesTheBadMessage(t *testing.T) {
	for name, with := range map[string]func(c *fakeConn, seq int, m fakeMsg){
		"literal cut short": cutShort,
		"garbage":           func(c *fakeConn, _ int, _ fakeMsg) { c.say("* 5 FETCH (UID 5 BODY[] what)\r\n") },
		"silence":           func(*fakeConn, int, fakeMsg) {},
		"goodbye": func(c *fakeConn, _ int, _ fakeMsg) {
			c.say("* BYE that one kills me\r\n")
			c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, upTo(12)...)
			spoil(f, 5, 1<<30, with)
			c, failures, err := fetchAll(t, f, upTo(12)...)
			if err != nil || len(failures) != 1 || failures[0].UID != 5 || failures[0].Gone || len(c.got) != 11 {
				t.Fatalf("%d messages, failures %v, error %v", len(c.got), failures, err)
			}
			if name == "goodbye" && !strings.Contains(failures[0].Err.Error(), "that one kills me") {
				t.Errorf("the server's words are lost: %v", failures[0].Err)
			}
			if (name == "silence") != errors.Is(failures[0].Err, ErrOmitted) {
				t.Errorf("%v", failures[0].Err)
			}
		})
	}
}

func TestReaderDoesWithoutWhatCannotBeRead(t *testing.T) {
	f := newFake(t, upTo(8)...)
	f.msgs[2].flags = `\Seen bad]keyword`
	f.msgs[5].date = "01-Feb-03 04:05:06 +0100"
	c, failures, err := fetchAll(t, f, upTo(8)...)
	if err != nil || len(failures) != 0 || len(c.got) != 8 {
		t.Fatalf("%d messages, failures %v, error %v", len(c.got), failures, err)
	}
	if c.metas[3].Flags != nil || c.metas[3].Date.IsZero() || c.metas[6].Flags == nil || !c.metas[6].Date.IsZero() {
		t.Errorf("%+v, %+v", c.metas[3], c.metas[6])
	}
}

func TestReaderTellsGoneFromPhantom(t *testing.T) {
	f := newFake(t, 1, 2, 4)
	f.phantoms = []uint32{9}
	_, failures, err := fetchAll(t, f, 1, 2, 3, 4, 9)
	if err != nil || len(failures) != 2 || failures[0].UID != 3 || !failures[0].Gone || failures[1].UID != 9 || failures[1].Gone {
		t.Errorf("failures %v, error %v", failures, err)
	}
}

func TestReaderGivesUpOnAServerThatIsBroken(t *testing.T) {
	f := newFake(t, upTo(60)...)
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if !strings.HasPrefix(cmd, "UID FETCH") {
			return false
		}
		c.say("%s OK nothing\r\n", tag)
		return true
	}
	if _, _, err := fetchAll(t, f, upTo(60)...); err == nil {
		t.Error("60 messages cannot be read, and it is the messages")
	}
}

func TestReaderShortList(t *testing.T) {
	f := newFake(t, upTo(5)...)
	f.exists = 6
	r := NewReader(t.Context(), &Dialer{}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	if l, _, err := r.ListAll(Items{Size: true}); !errors.Is(err, ErrShort) {
		t.Errorf("%v, %v", l, err)
	}
}

func TestReaderListSpoiltByOneMessage(t *testing.T) {
	f := newFake(t, upTo(9)...)
	f.msgs[3].flags = `odd]`
	r := NewReader(t.Context(), &Dialer{}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	l, _, err := r.ListAll(Items{Size: true, Flags: true})
	if err != nil || len(l) != 9 || l[3].Flags != nil || l[4].Flags == nil {
		t.Errorf("%v, %v", l, err)
	}
}

func TestReaderUIDValidityChanges(t *testing.T) {
	f := newFake(t, upTo(3)...)
	spoil(f, 2, 1<<30, func(c *fakeConn, seq int, m fakeMsg) {
		f.validity++
		cutShort(c, seq, m)
	})
	if _, _, err := fetchAll(t, f, upTo(3)...); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
}

// TestReaderStopsInsideALiteral: go-imap's own Close hangs there.
func TestReaderStopsInsideALiteral(t *testing.T) {
	f := newFake(t, 1, 2)
	f.msgs[0].body = strings.Repeat("x", 1<<20)
	r := NewReader(t.Context(), &Dialer{}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	c := newCollector(t)
	c.fail = errStop
	if _, err := r.Fetch(upTo(2), bodies, c); !errors.Is(err, errStop) {
		t.Error(err)
	}
}

func TestReaderSilentServer(t *testing.T) {
	f := newFake(t, 1)
	f.hook = func(_ *fakeConn, _, cmd string) bool { return strings.HasPrefix(cmd, "UID FETCH") }
	r := NewReader(t.Context(), &Dialer{Idle: 50 * time.Millisecond}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	failures, err := r.Fetch(upTo(1), bodies, newCollector(t))
	if err == nil && len(failures) != 1 {
		t.Errorf("failures %v, error %v", failures, err)
	}
}

func TestReaderContextEnds(t *testing.T) {
	f := newFake(t, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	f.hook = func(_ *fakeConn, _, cmd string) bool {
		if strings.HasPrefix(cmd, "UID FETCH") {
			cancel(errStop)
			return true
		}
		return false
	}
	r := NewReader(ctx, &Dialer{}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Fetch(upTo(1), bodies, newCollector(t)); !errors.Is(err, errStop) {
		t.Error(err)
	}
}

// TestReaderOddName: go-imap would write another name than the server has.
func TestReaderOddName(t *testing.T) {
	f := newFake(t, 1)
	var asked string
	f.hook = func(_ *fakeConn, _, cmd string) bool {
		if strings.HasPrefix(cmd, "EXAMINE") {
			asked = cmd
		}
		return false
	}
	for _, wire := range []string{"A & B", "Gr\xc3\xbcn", "caf\xe9", "&AOk-t&AOk-"} {
		r := NewReader(t.Context(), &Dialer{}, f.account(), nil)
		name, _ := decodeOrWire(wire)
		if _, err := r.Select(Folder{Name: name, Wire: wire}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(asked, wire) {
			t.Errorf("%q: the server was asked for %q", wire, asked)
		}
		c := newCollector(t)
		if _, err := r.Fetch(upTo(1), bodies, c); err != nil || len(c.got) != 1 {
			t.Errorf("%q: %v", wire, err)
		}
		r.Close()
	}
}

func TestReaderManyRanges(t *testing.T) {
	var odd []uint32
	for i := uint32(1); i < 200; i += 2 {
		odd = append(odd, i)
	}
	f := newFake(t, odd...)
	c, failures, err := fetchAll(t, f, odd...)
	if err != nil || len(failures) != 0 || len(c.got) != len(odd) {
		t.Error(fmt.Sprint(len(c.got), failures, err))
	}
}

// TestReaderOddKeywordInFlags: go-imap cannot open such a folder.
func TestReaderOddKeywordInFlags(t *testing.T) {
	f := newFake(t, upTo(3)...)
	f.hook = func(c *fakeConn, _, cmd string) bool {
		if strings.HasPrefix(cmd, "EXAMINE") {
			c.say("* FLAGS (\\Seen odd] \\)\r\n* OK [HIGHESTMODSEQ oops\r\n")
		}
		return false
	}
	c, failures, err := fetchAll(t, f, upTo(3)...)
	if err != nil || len(failures) != 0 || len(c.got) != 3 {
		t.Error(len(c.got), failures, err)
	}
}

// A body that nobody asked for once ended the process, and a part of a message
// was taken for the message.
func TestReaderTakesOnlyWhatItAskedFor(t *testing.T) {
	f := newFake(t, 1, 2)
	spoil(f, 2, 1, func(c *fakeConn, seq int, m fakeMsg) {
		c.say("* %d FETCH (UID 2 FLAGS () RFC822.SIZE %d BODY[] {3}\r\nabc BODY[TEXT] {3}\r\nabc)\r\n", seq, len(m.body))
	})
	r := NewReader(t.Context(), &Dialer{}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	if metas, err := r.ListThese([]uint32{1, 2}, Items{Flags: true, Size: true}); err != nil || len(metas) != 2 {
		t.Errorf("%+v, %v", metas, err)
	}
	for _, section := range []string{"BODY[TEXT]", "BODY[1]", "BODY[]<0>", "BODY[HEADER]"} {
		f := newFake(t, 1)
		spoil(f, 1, 1, func(c *fakeConn, seq int, _ fakeMsg) {
			c.say("* %d FETCH (UID 1 %s {3}\r\nabc)\r\n", seq, section)
		})
		c, failures, err := fetchAll(t, f, 1)
		if err != nil || len(failures) > 0 || c.got[1] != f.msgs[0].body {
			t.Errorf("%s: %q, %v, %v", section, c.got[1], failures, err)
		}
	}
}
