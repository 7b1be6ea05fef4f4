package attack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/relay"
	"crossfade/relay/limit"
	"crossfade/router"
)

// pipes is a listener whose connections are pipes: the server reads just the
// pieces that the client writes.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (p *pipes) dial() *talk {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return &talk{conn: ours}
}

// stored is a message in the queue.
type stored struct {
	env  mail.Envelope
	body []byte
}

// subject is the id in the subject of a message.
func subject(body []byte) string {
	header, _, _ := bytes.Cut(body, []byte("\r\n\r\n"))
	_, rest, ok := bytes.Cut(header, []byte("\r\nSubject: "))
	if !ok {
		return ""
	}
	s, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return strings.TrimSuffix(string(s), ".")
}

// store is a queue that keeps everything, by subject.
type store struct {
	mu   sync.Mutex
	kept map[string][]stored
	n    int
}

func (q *store) Put(_ context.Context, env *mail.Envelope, body io.Reader) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.kept[subject(b)] = append(q.kept[subject(b)], stored{*env, b})
	q.n++
	return nil
}

func (q *store) Room(int64) error { return nil }

// take gives what was stored since the last time.
func (q *store) take() map[string][]stored {
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := q.kept
	q.kept = map[string][]stored{}
	return kept
}

// emptyTable has no users: all of our domains go to old.
type emptyTable struct{ router.Table }

func (emptyTable) User(context.Context, string) (router.User, error) {
	return router.User{}, router.ErrNoUser
}

// startUs starts a server of the relay on a listener.
func startUs(t *testing.T, l net.Listener, change func(c *relay.ServerConfig)) *store {
	t.Helper()
	r, err := router.New(router.Config{Hostname: "mx.example.org", Domains: []string{"example.org"}, Subaddress: "+", Unknown: router.PolicyOld}, emptyTable{})
	if err != nil {
		t.Fatal(err)
	}
	q := &store{kept: map[string][]stored{}}
	c := relay.ServerConfig{Hostname: "mx.example.org", Router: r, Queue: q, Guard: limit.New(limit.Settings{})}
	if change != nil {
		change(&c)
	}
	srv, err := relay.NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return q
}

// fence is put between our header and a message that begins with a blank, which
// would go on in our header.
const fence = "X-Crossfade-Note: the message began with a continuation line\r\n"

// belowOurs is a message without the header that the relay put on top of it.
func belowOurs(b []byte) ([]byte, error) {
	at := bytes.Index(b, []byte("(Crossfade)"))
	if at < 0 {
		return nil, fmt.Errorf("no header of ours in %.200q", b)
	}
	for {
		nl := bytes.IndexByte(b[at:], '\n')
		if nl < 0 {
			return nil, fmt.Errorf("our header does not end: %.200q", b)
		}
		at += nl + 1
		if at == len(b) || b[at] != '\t' && b[at] != ' ' {
			return bytes.TrimPrefix(b[at:], []byte(fence)), nil
		}
	}
}

// TestSmugglingUs puts every case to the server: in one piece, byte by byte, and
// cut in two at every place around the look-alike. There is one reply, and the
// reply to QUIT; what is stored is one message with just the bytes that settling
// makes of it, or nothing.
func TestSmugglingUs(t *testing.T) {
	l := newPipes()
	q := startUs(t, l, nil)
	sent := 0
	for _, c := range matrix() {
		for how, cut := range c.cuts() {
			sent++
			replies, err := c.send(l.dial(), cut)
			if err := c.judge(replies, err, q.take()); err != nil {
				t.Errorf("%s (%s; %s), sent %s: %v", c.id, c.group, c.name, how, err)
			}
		}
	}
	figure(t, "%d cases, sent in %d ways: none became two messages", len(matrix()), sent)
}

// cuts are the ways in which a case is sent.
func (c smuggling) cuts() map[string]pieces {
	at := bytes.Index(c.wire(), []byte("before"))
	ways := map[string]pieces{"in one piece": whole}
	if len(c.body) > 2000 {
		return ways
	}
	ways["byte by byte"] = everyByte
	if c.group != groupEnds {
		return ways
	}
	for i := at + 6; i <= at+6+len("\x00\r\n.\x00\r\n"); i++ {
		ways[fmt.Sprintf("in two pieces, cut at %d", i)] = cutAt(i)
	}
	return ways
}

// judge says what is wrong with the outcome of a case.
func (c smuggling) judge(replies []string, err error, kept map[string][]stored) error {
	if err != nil {
		return fmt.Errorf("%w, after %q", err, replies)
	}
	want, got := c.want(), codes(replies)
	inner := kept["smuggled in "+c.id]
	if c.honest() {
		// A NUL in front of MAIL spoils it.
		two := len(inner) == 1 && got == "250 250 250 354 250 221"
		if len(kept[c.id]) != 1 || !two && !(len(inner) == 0 && bytes.Contains(c.body[want.end:], []byte("\x00"))) {
			return fmt.Errorf("a true end of data made %d and %d messages: %q", len(kept[c.id]), len(inner), replies)
		}
		return nil
	}
	expected := slices.Repeat([]string{"250"}, max(1, len(c.chunks)))
	if want.refused {
		expected = []string{"550"}
	}
	if s := strings.Join(append(expected, "221"), " "); got != s && !(want.refused && got == "554 221") {
		return fmt.Errorf("the replies are %q, want %s", replies, s)
	}
	if want.refused {
		if len(kept) != 0 {
			return fmt.Errorf("it was refused, and %d messages were stored", len(kept))
		}
		return nil
	}
	if len(kept) != 1 || len(kept[c.id]) != 1 {
		return fmt.Errorf("%d messages were stored: %v", len(kept), kept)
	}
	m := kept[c.id][0]
	if m.env.From.String() != attacker || len(m.env.Recipients) != 1 || m.env.Recipients[0].Addr.String() != target {
		return fmt.Errorf("the envelope is %s, %v", m.env.From, m.env.Recipients)
	}
	body, err := belowOurs(m.body)
	if err == nil && !bytes.Equal(body, want.body) {
		err = fmt.Errorf("stored:\n%q\nwant:\n%q", body, want.body)
	}
	return err
}
