package imapconn

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T, f *fake) *Session {
	t.Helper()
	d := &Dialer{Idle: 2 * time.Second}
	s, err := d.Open(t.Context(), f.account())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func message(text string) Outgoing {
	return Outgoing{Flags: []string{`\Seen`, "work"}, Date: time.Date(2003, 2, 1, 4, 5, 6, 0, time.FixedZone("", 3600)), Size: int64(len(text)), Body: strings.NewReader(text)}
}

func TestLoginsOnTheWire(t *testing.T) {
	plain := func(authz, user, pw string) string {
		return base64.StdEncoding.EncodeToString([]byte(authz + "\x00" + user + "\x00" + pw))
	}
	tests := []struct {
		name, caps string
		login      Login
		want       string // the command
		err        string
	}{
		{"initial response", "IMAP4rev1 AUTH=PLAIN SASL-IR", Login{User: "a", Password: "b"}, "AUTHENTICATE PLAIN " + plain("", "a", "b"), ""},
		{"authorization identity", "IMAP4rev1 AUTH=PLAIN SASL-IR", Login{User: "m", Password: "b", Authz: "a"}, "AUTHENTICATE PLAIN " + plain("a", "m", "b"), ""},
		{"authorization identity without PLAIN", "IMAP4rev1", Login{User: "m", Password: "b", Authz: "a"}, "", "on behalf of another"},
		{"LOGIN", "IMAP4rev1", Login{User: "a*m", Password: `q"u\o`}, `LOGIN "a*m" "q\"u\\o"`, ""},
		{"LOGIN, nothing can be injected", "IMAP4rev1 LITERAL+", Login{User: "a\r\nX DELETE INBOX", Password: "ü"}, "LOGIN {17+}\r\na\r\nX DELETE INBOX {2+}\r\nü", ""},
		{"LOGIN, waiting", "IMAP4rev1", Login{User: "a", Password: "x\ny"}, "LOGIN \"a\" {3}\r\nx\ny", ""},
		{"NUL", "IMAP4rev1 AUTH=PLAIN", Login{User: "a", Password: "x\x00y"}, "", "NUL"},
		{"LOGINDISABLED", "IMAP4rev1 LOGINDISABLED", Login{User: "a", Password: "b"}, "", "forbids LOGIN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.caps = tt.caps
			acct := f.account()
			acct.Login = tt.login
			s, err := (&Dialer{}).Open(t.Context(), acct)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			if !slices.Contains(f.seen(), tt.want) {
				t.Errorf("commands %q, want %q", f.seen(), tt.want)
			}
		})
	}
}

func TestLoginWithoutInitialResponse(t *testing.T) {
	f := newFake(t)
	f.caps = "IMAP4rev1 AUTH=PLAIN"
	got := ""
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if cmd != "AUTHENTICATE PLAIN" {
			return false
		}
		c.say("+ \r\n")
		got, _ = c.br.ReadString('\n')
		c.say("%s OK [CAPABILITY IMAP4rev1 X-AFTER] in\r\n", tag)
		return true
	}
	s := open(t, f)
	if want := base64.StdEncoding.EncodeToString([]byte("\x00anna\x00pa\"ss\\word")) + "\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if !s.Has("X-AFTER") {
		t.Error("the capabilities after the login are not known")
	}
}

// TestPasswordInNoError: a server may repeat what it was sent.
// A goodbye that repeats the command once put the password into the error.
func TestPasswordInNoGoodbye(t *testing.T) {
	for _, caps := range []string{"IMAP4rev1", "IMAP4rev1 AUTH=PLAIN SASL-IR"} {
		for _, bye := range []string{"* BYE what is %[2]s\r\n", "%[2]s OK\r\n", "%[1]s WHAT %[2]s\r\n"} {
			f := newFake(t)
			f.caps = caps
			f.hook = func(c *fakeConn, tag, cmd string) bool {
				verb, arg, _ := strings.Cut(cmd, " ")
				if verb != "LOGIN" && verb != "AUTHENTICATE" {
					return false
				}
				words := strings.Fields(arg)
				c.say(bye, tag, words[len(words)-1])
				c.Close()
				return true
			}
			acct := f.account()
			acct.Login.Password = `hunt"er2\secret`
			_, err := (&Dialer{}).Open(t.Context(), acct)
			ir := base64.StdEncoding.EncodeToString([]byte("\x00anna\x00" + acct.Login.Password))
			if err == nil || strings.Contains(err.Error(), "er2") || strings.Contains(err.Error(), ir) {
				t.Errorf("%v", err)
			}
		}
	}
}

// A folder that was passed over is mail that is missing on the other side.
func TestListPassesOverNoFolder(t *testing.T) {
	for _, line := range []string{`(\HasNoChildren) "/" "no end`, `(\HasNoChildren) "/" a)b`, `(\HasNoChildren "/" x`, `"/" x`} {
		f := newFake(t)
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if !strings.HasPrefix(cmd, "LIST") {
				return false
			}
			c.say("* LIST () \"/\" INBOX\r\n* LIST %s\r\n%s OK done\r\n", line, tag)
			return true
		}
		if folders, err := open(t, f).List(); err == nil {
			t.Errorf("%s: %+v and no error", line, folders)
		}
	}
}

func TestPasswordInNoError(t *testing.T) {
	for _, caps := range []string{"IMAP4rev1", "IMAP4rev1 AUTH=PLAIN SASL-IR"} {
		f := newFake(t)
		f.caps = caps
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if strings.HasPrefix(cmd, "LOGIN") || strings.HasPrefix(cmd, "AUTHENTICATE") {
				c.say("%s NO [AUTHENTICATIONFAILED] bad password in %s\r\n", tag, strings.ReplaceAll(cmd, `\`, ""))
				return true
			}
			return false
		}
		acct := f.account()
		acct.Login.Password = "hunter2secret"
		_, err := (&Dialer{}).Open(t.Context(), acct)
		ir := base64.StdEncoding.EncodeToString([]byte("\x00anna\x00hunter2secret"))
		if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), ir) || !strings.Contains(err.Error(), "AUTHENTICATIONFAILED") {
			t.Errorf("%v", err)
		}
	}
}

func TestStartTLSCannotBeTricked(t *testing.T) {
	for name, f := range map[string]func(c *fakeConn, tag string){
		"octets behind the answer": func(c *fakeConn, tag string) { c.say("%s OK go\r\n* OK injected\r\n", tag) },
		"refused":                  func(c *fakeConn, tag string) { c.say("%s NO not today\r\n", tag) },
	} {
		t.Run(name, func(t *testing.T) {
			srv := newFake(t)
			srv.hook = func(c *fakeConn, tag, cmd string) bool {
				if cmd != "STARTTLS" {
					return false
				}
				f(c, tag)
				return true
			}
			acct := srv.account()
			acct.Server.Mode = TLSStart
			acct.Server.TLS = &tls.Config{InsecureSkipVerify: true}
			if _, err := (&Dialer{}).Open(t.Context(), acct); err == nil {
				t.Error("no error")
			}
			for _, cmd := range srv.seen() {
				if strings.HasPrefix(cmd, "AUTHENTICATE") || strings.HasPrefix(cmd, "LOGIN") {
					t.Errorf("sent in clear: %s", cmd)
				}
			}
		})
	}
	for _, mode := range []TLSMode{TLSStart, TLSNone} {
		srv := newFake(t)
		srv.greeting = "* PREAUTH hello\r\n"
		acct := srv.account()
		acct.Server.Mode = mode
		if _, err := (&Dialer{}).Open(t.Context(), acct); err == nil || !strings.Contains(err.Error(), "PREAUTH") {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// TestModeMustBeSaid: nobody gets a password in clear by leaving it out.
func TestModeMustBeSaid(t *testing.T) {
	f := newFake(t)
	acct := f.account()
	acct.Server.Mode = ""
	if _, err := (&Dialer{}).Open(t.Context(), acct); err == nil || len(f.seen()) != 0 {
		t.Errorf("%v, %q", err, f.seen())
	}
}

func TestGreetings(t *testing.T) {
	for greeting, want := range map[string]string{
		"* BYE too many connections\r\n": "too many connections", "SSH-2.0-OpenSSH\r\n": "", "": "greeting", "* OK": "greeting",
	} {
		f := newFake(t)
		f.greeting = greeting
		d := &Dialer{Idle: 50 * time.Millisecond}
		if _, err := d.Open(t.Context(), f.account()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", greeting, err)
		}
	}
}

func TestAppend(t *testing.T) {
	const first, second = "Subject: 1\r\n\r\none {3}\r\n", "Subject: 2\r\n\r\ntwo\r\n"
	for _, plus := range []string{"+", ""} {
		f := newFake(t)
		if plus == "" {
			f.caps = "IMAP4rev1 MULTIAPPEND UIDPLUS"
		}
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if !strings.HasPrefix(cmd, "APPEND") {
				return false
			}
			c.say("* 3 EXISTS\r\n* 1 FETCH (FLAGS (\\Seen) BODY[] {5}\r\nA1 OK)\r\n* XYZZY ((\r\n* OK text {7}\r\n%s OK [APPENDUID 7 101,103] done\r\n", tag)
			return true
		}
		s := open(t, f)
		done, err := s.Append("Sent", []Outgoing{message(first), message(second)})
		if err != nil || !cmp.Equal(done, Appended{7, []uint32{101, 103}}) {
			t.Fatalf("%+v, %v", done, err)
		}
		head := `(\Seen work) " 1-Feb-2003 04:05:06 +0100" `
		want := `APPEND "Sent" ` + head + "{23" + plus + "}\r\n" + first + " " + head + "{19" + plus + "}\r\n" + second
		if got := f.seen(); got[len(got)-1] != want {
			t.Errorf("%q, want %q", got[len(got)-1], want)
		}
	}
}

func TestAppendAnswers(t *testing.T) {
	tests := map[string]struct {
		answer string
		uids   []uint32
		code   string
		broken bool
	}{
		"without UIDs":        {"TAG OK done", nil, "", false},
		"too many UIDs":       {"TAG OK [APPENDUID 7 1:4294967295] done", nil, "", false},
		"UIDs that are none":  {"TAG OK [APPENDUID 7 x] done", nil, "", false},
		"refused":             {"TAG NO [OVERQUOTA] full", nil, "OVERQUOTA", false},
		"bad":                 {"TAG BAD what", nil, "", false},
		"goodbye":             {"* BYE [UNAVAILABLE] restarting", nil, "", true},
		"another's answer":    {"C999 OK done", nil, "", true},
		"asks for more":       {"+ more", nil, "", true},
		"literal without end": {"* LIST () NIL {999999999}\r\nxxx", nil, "", true},
		"garbage":             {"\x00\xff", nil, "", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.hook = func(c *fakeConn, tag, cmd string) bool {
				if !strings.HasPrefix(cmd, "APPEND") {
					return false
				}
				c.say("%s\r\n", strings.ReplaceAll(tt.answer, "TAG", tag))
				return true
			}
			s := open(t, f)
			done, err := s.Append("INBOX", []Outgoing{message("x")})
			var e *Error
			refused := errors.As(err, &e)
			if (err != nil && !refused) != tt.broken || !cmp.Equal(done.UIDs, tt.uids) || refused && e.Code != tt.code {
				t.Errorf("%+v, %v", done, err)
			}
			if name == "goodbye" && !strings.Contains(err.Error(), "[UNAVAILABLE] restarting") {
				t.Errorf("the words are lost: %v", err)
			}
			if _, err := s.List(); (err != nil) != tt.broken {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// TestAppendRefusedBeforeTheBody: the connection stays in step.
func TestAppendRefusedBeforeTheBody(t *testing.T) {
	f := newFake(t)
	f.caps = "IMAP4rev1 LITERAL-"
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if strings.HasPrefix(cmd, "?APPEND") {
			c.say("%s NO [TOOBIG] too big\r\n", tag)
			return true
		}
		return false
	}
	s := open(t, f)
	var e *Error
	if _, err := s.Append("INBOX", []Outgoing{message(strings.Repeat("x", 5000))}); !errors.As(err, &e) || e.Code != "TOOBIG" {
		t.Error(err)
	}
	if _, err := s.Append("INBOX", []Outgoing{message("small goes without asking")}); err != nil {
		t.Error(err)
	}
	if _, err := s.Append("INBOX", []Outgoing{message("a"), message("b")}); err == nil {
		t.Error("two messages without MULTIAPPEND")
	}
	if _, err := s.Append("INBOX", []Outgoing{{Body: strings.NewReader("")}}); err == nil {
		t.Error("an empty message cancels a MULTIAPPEND")
	}
}

// TestServerStopsListening: the words it left are in the error.
func TestServerStopsListening(t *testing.T) {
	f := newFake(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f.wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		io.WriteString(c, "* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
		c.Read(buf)
		io.WriteString(c, "C1 OK [CAPABILITY IMAP4rev1 LITERAL+] in\r\n")
		c.Read(buf)
		io.WriteString(c, "* BYE [OVERQUOTA] enough\r\n")
	})
	acct := f.account()
	acct.Server.Address = l.Addr().String()
	s, err := (&Dialer{Idle: time.Second}).Open(t.Context(), acct)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	big := bytes.Repeat([]byte("x"), 8<<20)
	_, err = s.Append("INBOX", []Outgoing{{Size: int64(len(big)), Body: bytes.NewReader(big)}})
	if err == nil {
		t.Fatal("no error")
	}
	t.Log(err) // a reset may destroy the words on their way: no promise
}

func TestListAndNamespace(t *testing.T) {
	f := newFake(t)
	f.caps = "IMAP4rev1 NAMESPACE"
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		switch {
		case cmd == "NAMESPACE":
			c.say("* NAMESPACE ((\"INBOX.\" \".\")) ((\"user.\" \".\" \"X\" (\"Y\"))) ((\"#shared/\" \"/\"))\r\n")
		case strings.HasPrefix(cmd, "LIST"):
			c.say("* LIST (\\HasNoChildren) \".\" INBOX\r\n* LIST (\\NoSelect) \".\" \"INBOX.a\\\"b\"\r\n* LIST () \".\" {10}\r\nINBOX.\"x\" \r\n" +
				"* LIST (\\Sent) \".\" INBOX.Gr&APw-n\r\n* LIST () \".\" INBOX.bad&name\r\n* LIST () NIL inbox\r\n* LIST () \".\" {3}\r\nNIL\r\n")
		case strings.HasPrefix(cmd, "LSUB"):
			c.say("* LSUB () \".\" INBOX.Gr&APw-n\r\n")
		default:
			return false
		}
		c.say("%s OK done\r\n", tag)
		return true
	}
	s := open(t, f)
	ns, err := s.Namespaces()
	if err != nil || !cmp.Equal(ns, Namespaces{"INBOX.", ".", []string{"user.", "#shared/"}}) {
		t.Errorf("%+v, %v", ns, err)
	}
	l, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range l {
		names = append(names, x.Name)
	}
	want := []string{"INBOX", `INBOX.a"b`, `INBOX."x" `, "INBOX.Grün", "INBOX.bad&name", "INBOX", "NIL"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	if l[1].Selectable() || l[3].Use() != `\Sent` || !l[3].Subscribed || l[0].Subscribed {
		t.Errorf("%+v", l)
	}
}

func TestStatusesArePipelined(t *testing.T) {
	f := newFake(t)
	var names []string
	for _, n := range []string{"a", "b", "gone", "c\xe9", "d"} {
		names = append(names, n)
	}
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if !strings.HasPrefix(cmd, "STATUS") {
			return false
		}
		if strings.Contains(cmd, "gone") {
			c.say("%s NO [NONEXISTENT] no such\r\n", tag)
			return true
		}
		c.say("* STATUS x (MESSAGES 3 UIDNEXT 9 UIDVALIDITY 7 X-ODD (1 2) HIGHESTMODSEQ 99)\r\n%s OK\r\n", tag)
		return true
	}
	stats, errs, err := open(t, f).Statuses(names)
	if err != nil || len(stats) != 4 || len(errs) != 1 || errs["gone"] == nil || stats["d"] != (Status{Messages: 3, UIDNext: 9, UIDValidity: 7}) && stats["d"].ModSeq != 99 {
		t.Errorf("%+v %v %v", stats, errs, err)
	}
}

func TestNames(t *testing.T) {
	for name, wire := range map[string]string{
		"INBOX": "INBOX", "A & B": "A &- B", "Grün": "Gr&APw-n", "Grüße 🚀 &": "Gr&APwA3w-e &2D3egA- &-", "日本語": "&ZeVnLIqe-", "~peter/mail/台北/日本語": "~peter/mail/&U,BTFw-/&ZeVnLIqe-",
	} {
		if got := EncodeName(name); got != wire {
			t.Errorf("%q: %q, want %q", name, got, wire)
		}
		if got, err := DecodeName(wire); err != nil || got != name {
			t.Errorf("%q: %q, %v", wire, got, err)
		}
	}
	for _, wire := range []string{"&", "a&b", "&APw", "&A-", "&AAAA-\xff", "&2D0-"} {
		if got, err := DecodeName(wire); err == nil {
			t.Errorf("%q: %q", wire, got)
		}
	}
}

func TestFormatUIDs(t *testing.T) {
	if got := FormatUIDs([]uint32{1, 2, 3, 7, 9, 10}, 100); !cmp.Equal(got, []string{"1:3,7,9:10"}) {
		t.Error(got)
	}
	if got := FormatUIDs([]uint32{1, 3, 5, 7}, 3); !cmp.Equal(got, []string{"1,3", "5,7"}) {
		t.Error(got)
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{"* OK [CAPABILITY IMAP4rev1] x\r\n", "* LIST (\\A) \"/\" {3}\r\nabc\r\n", "C1 OK [APPENDUID 1 2:3] x\r\n", "+ go\r\n",
		"* 3 FETCH (FLAGS (a b) BODY[] {0}\r\n)\r\n", "* STATUS \"a\\\"\" (MESSAGES 1)\r\n", "* NAMESPACE ((\"\" \"/\")) NIL NIL\r\n", "* FLAGS ((\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		br := newReader(data)
		for {
			r, err := readResponse(br)
			if err != nil {
				return
			}
			parseValues(r.rest)
			parseList(r)
			parseStatusData(r)
			parseNamespaces(r.rest)
			parseUIDSet(r.arg, 100)
			var sel Selected
			sel.take(r)
			(&Session{}).takeCaps(r)
		}
	})
}

func FuzzName(f *testing.F) {
	f.Add("Gr&APw-n")
	f.Add("a & b")
	f.Fuzz(func(t *testing.T, s string) {
		if name, err := DecodeName(s); err == nil && strings.IndexFunc(s, func(r rune) bool { return r > '~' || r < ' ' }) < 0 {
			if again, err := DecodeName(EncodeName(name)); err != nil || again != name {
				t.Errorf("%q: %q, %q, %v", s, name, again, err)
			}
		}
	})
}
