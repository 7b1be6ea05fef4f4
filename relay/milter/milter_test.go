package milter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/relay"
	"crossfade/relay/wire"

	"github.com/emersion/go-milter"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scanner is a milter that notes what it is told and answers as it is made to.
type scanner struct {
	milter.NoOpMilter
	mu     sync.Mutex
	said   []string
	body   strings.Builder
	rcpt   func(string) milter.Response
	end    func(m *milter.Modifier) (milter.Response, error)
	header func(name string) milter.Response
}

func (s *scanner) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (s *scanner) Connect(host, family string, _ uint16, addr net.IP, m *milter.Modifier) (milter.Response, error) {
	s.note("connect %s %s %s j=%s", host, family, addr, m.Macros["j"])
	return milter.RespContinue, nil
}

func (s *scanner) Helo(name string, m *milter.Modifier) (milter.Response, error) {
	s.note("helo %s %s", name, m.Macros["{tls_version}"])
	return milter.RespContinue, nil
}

func (s *scanner) MailFrom(from string, m *milter.Modifier) (milter.Response, error) {
	s.note("mail %s i=%t user=%s", from, mail.ID(m.Macros["i"]).Valid(), m.Macros["{auth_authen}"])
	return milter.RespContinue, nil
}

func (s *scanner) RcptTo(to string, _ *milter.Modifier) (milter.Response, error) {
	s.note("rcpt %s", to)
	if s.rcpt != nil {
		return s.rcpt(to), nil
	}
	return milter.RespContinue, nil
}

func (s *scanner) Header(name, value string, _ *milter.Modifier) (milter.Response, error) {
	s.note("header %q %q", name, value)
	if s.header != nil {
		return s.header(name), nil
	}
	return milter.RespContinue, nil
}

func (s *scanner) Headers(textproto.MIMEHeader, *milter.Modifier) (milter.Response, error) {
	s.note("end of header")
	return milter.RespContinue, nil
}

func (s *scanner) BodyChunk(chunk []byte, _ *milter.Modifier) (milter.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.body.Write(chunk)
	return milter.RespContinue, nil
}

func (s *scanner) Body(m *milter.Modifier) (milter.Response, error) {
	s.note("end")
	if s.end != nil {
		return s.end(m)
	}
	return milter.RespContinue, nil
}

// serve starts it, and gives a filter that asks it.
func (s *scanner) serve(t *testing.T, change func(*Config)) *Filter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &milter.Server{NewMilter: func() milter.Milter { return s }, Actions: milter.OptAddHeader}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-served
	})
	return filter(t, l.Addr().String(), change)
}

func filter(t *testing.T, addr string, change func(*Config)) *Filter {
	t.Helper()
	cfg := Config{Network: "tcp", Address: addr, Hostname: "mx.test", Timeout: 5 * time.Second}
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func incoming(rcpts ...string) relay.Incoming {
	env := &mail.Envelope{ID: mail.NewID(), From: mail.Address{Local: "sender", Domain: "far.test"}, Client: mail.Client{Helo: "client.test", TLS: "TLS1.3 TLS_X"}}
	for _, r := range rcpts {
		local, domain, _ := strings.Cut(r, "@")
		env.Recipients = append(env.Recipients, mail.Recipient{Addr: mail.Address{Local: local, Domain: domain}})
	}
	return relay.Incoming{Envelope: env, Info: wire.Info{Remote: netip.MustParseAddrPort("[2001:db8::1]:4711"), User: "ann"}}
}

// ask puts a message through, in pieces of the size given.
func ask(t *testing.T, f *Filter, m relay.Incoming, text string, piece int) (string, error) {
	t.Helper()
	x := f.Inspect(t.Context(), m)
	defer x.Close()
	for part := range slices.Chunk([]byte(text), piece) {
		x.Sent(part)
		x.Kept(part)
	}
	return x.End(t.Context(), "")
}

const header = "Received: from a\r\n\tby b\r\nSubject: x\r\nX-Empty:\r\nTo : odd\r\n"

func TestScannerSeesTheMessage(t *testing.T) {
	long := strings.Repeat("0123456789abcdef\r\n", 20_000)
	for _, piece := range []int{1, 7, 100, 4096, 1 << 20} {
		for _, body := range []string{"", "short\r\n", long} {
			if piece < 100 && len(body) > 1000 {
				continue
			}
			s := &scanner{end: func(m *milter.Modifier) (milter.Response, error) {
				return milter.RespContinue, m.AddHeader("X-Spam", "no\n\tmore")
			}}
			trace, err := ask(t, s.serve(t, nil), incoming("a@b.test", "c@b.test", "a@b.test"), header+"\r\n"+body, piece)
			if err != nil || trace != "X-Spam: no\r\n\tmore\r\n" {
				t.Fatalf("pieces of %d: %q, error %v", piece, trace, err)
			}
			want := []string{
				"connect [2001:db8::1] tcp6 2001:db8::1 j=mx.test", "helo client.test TLS1.3", "mail sender@far.test i=true user=ann", "rcpt a@b.test", "rcpt c@b.test",
				`header "Received" "from a\n\tby b"`, `header "Subject" "x"`, `header "X-Empty" ""`, `header "To" "odd"`, "end of header", "end",
			}
			if !slices.Equal(s.said, want) {
				t.Errorf("pieces of %d: the scanner heard\n%s\nwant\n%s", piece, strings.Join(s.said, "\n"), strings.Join(want, "\n"))
			}
			if s.body.String() != body {
				t.Errorf("pieces of %d: the scanner read %d octets of body, not %d", piece, s.body.Len(), len(body))
			}
		}
	}
}

// A message without header or without body is looked at too.
func TestScannerSeesOddMessages(t *testing.T) {
	for text, want := range map[string]struct{ said, body string }{
		"":                             {"", ""},
		"\r\n":                         {"", ""},
		"Subject: x":                   {`header "Subject" "x"`, ""},
		"Subject: x\r\n":               {`header "Subject" "x"`, ""},
		"Subject: x\r\n y":             {`header "Subject" "x\n y"`, ""},
		"no field\r\nx\r\n":            {"", "no field\r\nx\r\n"},
		"A: b\r\nno field\r\n\r\nx":    {`header "A" "b"`, "no field\r\n\r\nx"},
		" fold first\r\nA: b\r\n\r\nx": {"", " fold first\r\nA: b\r\n\r\nx"},
		"A: b\x00c\r\n\r\nx":           {`header "A" "bc"`, "x"},
	} {
		s := &scanner{}
		if _, err := ask(t, s.serve(t, nil), incoming("a@b.test"), text, 3); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		got := strings.Join(s.said[4:], "|")
		if w := strings.TrimPrefix(want.said+"|end of header|end", "|"); got != w || s.body.String() != want.body {
			t.Errorf("%q: the scanner heard %s and read %q, want %s and %q", text, got, s.body.String(), w, want.body)
		}
	}
}

// No packet is larger than scanners take it, and what comes behind a long field is
// there.
func TestLongFields(t *testing.T) {
	s := &scanner{}
	text := "To: " + strings.Repeat("somebody@example.org,\r\n ", 10_000) + "x@y.test\r\n" + strings.Repeat("n", 60_000) + ": " + strings.Repeat("v", 5_000) + strings.Repeat("\r\n v", 10_000) + "\r\nSubject: x\r\n\r\nx\r\n"
	if _, err := ask(t, s.serve(t, nil), incoming("a@b.test"), text, 4096); err != nil {
		t.Fatal(err)
	}
	fields := 0
	for _, said := range s.said {
		if !strings.HasPrefix(said, "header ") {
			continue
		}
		var name, value string
		if _, err := fmt.Sscanf(said, "header %q %q", &name, &value); err != nil {
			t.Fatal(err)
		}
		if fields++; len(name)+len(value)+3 > 65_535 {
			t.Errorf("a packet of %d octets", len(name)+len(value)+3)
		}
	}
	if fields != 3 || !slices.Contains(s.said, `header "Subject" "x"`) {
		t.Errorf("%d fields", fields)
	}
}

func TestVerdicts(t *testing.T) {
	only := func(r milter.Response) func(*milter.Modifier) (milter.Response, error) {
		return func(*milter.Modifier) (milter.Response, error) { return r, nil }
	}
	custom := func(code uint16, text string) milter.Response {
		return milter.NewResponseStr('y', fmt.Sprintf("%d %s", code, text))
	}
	for name, c := range map[string]struct {
		s    *scanner
		want string // reply; empty: it passes
	}{
		"accept":             {&scanner{end: only(milter.RespAccept)}, ""},
		"continue":           {&scanner{end: only(milter.RespContinue)}, ""},
		"reject":             {&scanner{end: only(milter.RespReject)}, "550 5.7.1 the message was refused"},
		"discard":            {&scanner{end: only(milter.RespDiscard)}, "550 5.7.1 the message was refused"},
		"tempfail":           {&scanner{end: only(milter.RespTempFail)}, "451 4.7.1 the content filter put"},
		"own reply":          {&scanner{end: only(custom(554, "5.7.1 Spam message rejected"))}, "554 5.7.1 Spam message rejected"},
		"own, temporary":     {&scanner{end: only(custom(451, "4.7.1 Try again later"))}, "451 4.7.1 Try again later"},
		"own, plain":         {&scanner{end: only(custom(550, "go away"))}, "550 5.7.1 go away"},
		"own, contradicting": {&scanner{end: only(custom(550, "4.7.1 what"))}, "550 5.7.1 4.7.1 what"},
		"own, no refusal":    {&scanner{end: only(custom(250, "2.0.0 fine"))}, "451 4.7.1 the content filter put"},
		"at a header":        {&scanner{header: func(n string) milter.Response { return milter.RespReject }}, "550 5.7.1"},
		"accept at a header": {&scanner{header: func(n string) milter.Response { return milter.RespAccept }, end: only(milter.RespReject)}, ""},
		"one of two rcpts": {&scanner{rcpt: func(r string) milter.Response {
			return map[bool]milter.Response{true: milter.RespReject, false: milter.RespContinue}[r == "a@b.test"]
		}}, ""},
		"all rcpts": {&scanner{rcpt: func(string) milter.Response { return milter.RespTempFail }}, "451 4.7.1"},
	} {
		var results []Result
		f := c.s.serve(t, func(cfg *Config) { cfg.Done = func(r Result, _ time.Duration) { results = append(results, r) } })
		_, err := ask(t, f, incoming("a@b.test", "c@b.test"), header+"\r\nx\r\n", 100)
		var reply *mail.Reply
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.As(err, &reply) || !strings.HasPrefix(reply.String(), c.want)):
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if len(results) != 1 || (results[0] == Passed) != (c.want == "") {
			t.Errorf("%s: counted %v", name, results)
		}
		if why, _ := f.Sick(); why != nil {
			t.Errorf("%s: the scanner counts as sick: %v", name, why)
		}
	}
}

// What a scanner adds is a header, whatever it says; what it must not do is not
// done.
func TestFields(t *testing.T) {
	var log strings.Builder
	s := &scanner{end: func(m *milter.Modifier) (milter.Response, error) {
		for _, kv := range [][2]string{
			{"X-One", "1"}, {"X Two", "2"}, {"", "3"}, {"X-Inject", "a\r\nX-Evil: b\r\n\r\nbody"}, {"X-Text", "grüße"}, {"X-Control", "a\x01b"},
			{"X-Long", strings.Repeat("word ", 400)}, {"X-Word", strings.Repeat("w", 2000)}, {"X-Empty", ""},
		} {
			if err := m.AddHeader(kv[0], kv[1]); err != nil {
				return nil, err
			}
		}
		if err := m.InsertHeader(0, "X-First", "i"); err != nil {
			return nil, err
		}
		return milter.RespAccept, errors.Join(m.ReplaceBody([]byte("other")), m.ChangeHeader(1, "Subject", "***SPAM***"), m.ChangeHeader(1, "X-Empty", ""), m.ChangeHeader(1, "X-Empty", "forged"), m.ChangeHeader(1, "X-Verdict", "spam"), m.AddRecipient("evil@far.test"), m.Quarantine("bad"))
	}}
	f := s.serve(t, func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	trace, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.SplitSeq(strings.TrimSuffix(trace, "\r\n"), "\r\n") {
		if len(line) > 998 || strings.TrimSpace(line) == "" && line != "" {
			t.Errorf("line %q", line)
		}
		if name, _, ok := strings.Cut(line, ":"); ok && line[0] != '\t' {
			names = append(names, name)
		}
	}
	if want := []string{"X-One", "X-Inject", "X-Text", "X-Control", "X-Long", "X-Empty", "X-First", "X-Empty", "X-Verdict"}; !slices.Equal(names, want) {
		t.Errorf("fields %q, want %q", names, want)
	}
	if !strings.Contains(trace, "X-Text: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n") || !strings.Contains(trace, "X-Inject: a\r\n\tX-Evil: b\r\n\tbody\r\n") {
		t.Errorf("trace:\n%s", trace)
	}
	if n := strings.Count(log.String(), "the message stays as its sender wrote it"); n != 5 {
		t.Errorf("%d of 5 wishes that are not granted are in the log:\n%s", n, log.String())
	}
}

// A scanner that is away, hangs, talks nonsense or hangs up in the middle: mail is
// put off or accepted, as configured, within the time allowed; then it is left
// alone, and asked again.
func TestFailures(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"hangs up":       func(net.Conn) {},
		"is silent":      func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); hang(c) },
		"talks nonsense": func(c net.Conn) { fmt.Fprint(c, "220 hello, I am an SMTP server\r\n"); hang(c) },
		"goes on for ever": func(c net.Conn) {
			for {
				if _, err := c.Write([]byte{0, 0, 0, 1, 'p'}); err != nil {
					return
				}
			}
		},
	} {
		for _, accept := range []bool{false, true} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					wg.Go(func() {
						defer conn.Close()
						serve(conn)
					})
				}
			})
			f := filter(t, l.Addr().String(), func(cfg *Config) { cfg.Accept, cfg.Timeout = accept, 300*time.Millisecond })
			began := time.Now()
			_, err = ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100)
			var reply *mail.Reply
			if accept && err != nil || !accept && (!errors.As(err, &reply) || reply.Code != 451) {
				t.Errorf("%s, accept %t: %v", name, accept, err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("%s: it took %s", name, took)
			}
			if why, _ := f.Sick(); why == nil {
				t.Errorf("%s: the scanner counts as well", name)
			}
			began = time.Now()
			_, _ = ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100)
			if took := time.Since(began); took > 250*time.Millisecond {
				t.Errorf("%s: the next message waited %s for a scanner that had just failed", name, took)
			}
			_ = l.Close()
			wg.Wait()
		}
	}
}

// hang reads until the other side is gone.
func hang(c net.Conn) {
	for b := make([]byte, 1024); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// What one sender's message does to a scanner is not the others' trouble, and
// clients that send slowly leave places to messages that are whole.
func TestOneMessageIsNotTheScanner(t *testing.T) {
	s := &scanner{end: func(m *milter.Modifier) (milter.Response, error) {
		if len(m.Headers["Bomb"]) > 0 {
			return nil, errors.New("it goes off")
		}
		return milter.RespContinue, nil
	}}
	f := s.serve(t, func(cfg *Config) { cfg.Connections, cfg.Timeout = 2, 300*time.Millisecond })
	for range maxStrikes + 5 {
		if _, err := ask(t, f, incoming("a@b.test"), "Bomb: x\r\n\r\nx\r\n", 100); err == nil {
			t.Fatal("the message that the scanner does not judge is taken")
		}
		if _, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100); err != nil {
			t.Fatalf("another one's message is refused for it: %v", err)
		}
	}
	for i := range maxStrikes {
		if why, _ := f.Sick(); why != nil {
			t.Fatalf("after %d messages it counts as sick: %v", i, why)
		}
		_, _ = ask(t, f, incoming("a@b.test"), "Bomb: x\r\n\r\nx\r\n", 100)
	}
	if why, _ := f.Sick(); why == nil {
		t.Error("a scanner that judges nothing counts as well")
	}
	f.well()
	slow := [2]relay.Inspection{}
	for i := range slow {
		slow[i] = f.Inspect(t.Context(), incoming("a@b.test"))
		slow[i].Sent([]byte(header + "\r\n" + strings.Repeat("x", 200<<10)))
	}
	if _, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100); err != nil {
		t.Errorf("slow clients hold the scanner: %v", err)
	}
	for _, x := range slow {
		x.Close()
	}
	if len(f.places) != 0 || len(f.streams) != 0 {
		t.Errorf("%d and %d places are lost", len(f.places), len(f.streams))
	}
}

func TestRecovers(t *testing.T) {
	s := &scanner{}
	well := s.serve(t, nil)
	f := filter(t, "127.0.0.1:1", nil)
	if _, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100); err == nil {
		t.Fatal("a scanner that is away was asked")
	}
	f.cfg.Address = well.cfg.Address
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a scanner that is back is not asked again")
		}
		<-tick.C
	}
	if why, _ := f.Sick(); why != nil {
		t.Errorf("it still counts as sick: %v", why)
	}
}

// Slow and broken-off messages hold no connection to the scanner; large ones pass;
// mail of our own is looked at when that is wanted.
func TestBounds(t *testing.T) {
	s := &scanner{}
	f := s.serve(t, func(cfg *Config) { cfg.Connections, cfg.MaxSize, cfg.Timeout = 1, 300<<10, 300*time.Millisecond })
	slow := f.Inspect(t.Context(), incoming("a@b.test"))
	slow.Sent([]byte(header))
	if _, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100); err != nil {
		t.Errorf("a slow client holds the scanner: %v", err)
	}
	slow.Close()
	large := f.Inspect(t.Context(), incoming("a@b.test"))
	for range 40 {
		large.Sent([]byte(header + "\r\n" + strings.Repeat("x", 10<<10)))
	}
	if trace, err := large.End(t.Context(), ""); trace != "" || err != nil {
		t.Errorf("a large message: %q, %v", trace, err)
	}
	large.Close()
	broken := f.Inspect(t.Context(), incoming("a@b.test"))
	broken.Sent([]byte(header + "\r\n" + strings.Repeat("x", 200<<10)))
	full := f.Inspect(t.Context(), incoming("a@b.test"))
	if _, err := full.End(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("more connections than allowed: %v", err)
	}
	full.Close()
	broken.Close()
	f.well()
	if _, err := ask(t, f, incoming("a@b.test"), header+"\r\nx\r\n", 100); err != nil {
		t.Errorf("after a message that broke off: %v", err)
	}
	own := incoming("a@b.test")
	own.Ours = true
	if f.Inspect(t.Context(), own) != nil {
		t.Error("mail of our own is looked at")
	}
	f.cfg.Ours = true
	x := f.Inspect(context.Background(), own)
	if x == nil {
		t.Fatal("mail of our own is not looked at")
	}
	x.Close()
}

// However the words of a value are long, no line of the field is blank: that would
// be the end of the header.
func TestFoldedLinesAreNotBlank(t *testing.T) {
	for _, n := range []int{894, 895, 896, 897} {
		field, err := foldField("X", strings.Repeat("a", n)+"   "+strings.Repeat("b", 899))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(field, "\r\n"), "\r\n") {
			if strings.TrimSpace(line) == "" || len(line) > 998 {
				t.Errorf("%d: a line of %d octets, blank: %t", n, len(line), strings.TrimSpace(line) == "")
			}
		}
	}
}
