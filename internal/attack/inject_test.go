package attack

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
)

// command is a transaction of which one line is not what it should be.
type odd struct{ helo, mail, rcpt string }

const (
	goodHelo = "EHLO client.test"
	goodMail = "MAIL FROM:<sender@client.test>"
	goodRcpt = "RCPT TO:<target@example.org>"
)

// lineEndsInside are what some system may take for the end of a line.
var lineEndsInside = []string{"\r", "\n", "\r\n", "\x00", "\v", "\f", "\x1a", "\x85", "\u0085", "\u2028", "\u2029", "\r\r\n", "\x00\r\n", "\b", "\x7f", "\uff0d\u000a", "\u560a", "\u560d"}

// paths are put between "FROM:" or "TO:" and the end of the line; @ stands for
// the domain, which is ours in RCPT.
var paths = []string{
	`<"a> SIZE=1 "@@>`, `<"victim@other.test> NOTIFY=NEVER "@@>`, `<"a\">"@@>`, `<"a\\"@@>`, `<"a\"@@>`, `<"">`, `<""@@>`, `<"a b"@@>`, `<"a"b@@>`, `<a"b"@@>`,
	`<a@@>>`, `<<a@@>>`, `<<a@@>`, `a@@`, `<a@@`, `a@@>`, `<a@@> <b@@>`, `<a@@><b@@>`, `<a@@>,<b@@>`, `<a@@,b@@>`, `<a@@;b@@>`, `<a,b@@>`, `<a;b@@>`, `<a:b@@>`,
	`<@x.test,@y.test:a@@>`, `<@x.test:@y.test:a@@>`, `<:a@@>`, `<@:a@@>`, `<@x.test:a>`, `<a @@>`, `< a@@ >`, `<a@ @>`, `<a@@ >`, `<(c)a@@>`, `<a(c)@@>`, `<a@@(c)>`,
	`<a@@>x`, `<a@@>SIZE=1`, `<a@@>=`, `<a@@> =`, `<a@@> ==`, `<.a@@>`, `<a.@@>`, `<a..b@@>`, `<a@@.>`, `<a@@..>`, `<a@.@>`, `<a\@@>`, `<a\b@@>`, `<|id@@>`, `<"|id"@@>`, `</etc/passwd@@>`,
	`<../../x@@>`, `<-oQ/tmp@@>`, `<"-X/tmp/x"@@>`, `<a$(id)@@>`, "<`id`@@>", `<${run{id}}@@>`, `<a'b@@>`, `<a*@@>`, `<*@@>`, `<a@@/b>`, `<a@[127.0.0.1]>`, `<a@[IPv6:::1]>`, `<a@[evil]>`, `<>`, `< >`, ``,
	`<a@xn--@>`, `<a@xn--a>`, `<a@` + `x` + `>`, `<` + strings.Repeat("a", 300) + `@@>`, `<a@` + strings.Repeat("b.", 200) + `@>`, `<"` + strings.Repeat(`\a`, 130) + `"@@>`,
}

// mailParams and rcptParams stand behind a good path.
var mailParams = []string{
	"SIZE=1 SIZE=2", "SIZE=-1", "SIZE=+1", "SIZE=0x10", "SIZE=1e3", "SIZE=", "SIZE", "SIZE=4294967296", "SIZE=9223372036854775808", "SIZE=99999999999999999999999", "SIZE=1,2", "size=1",
	"BODY=7BIT BODY=8BITMIME", "BODY=BINARYMIME", "BODY=", "BODY", "BODY=EVIL", "BODY=8BITMIME=x", "RET=FULL RET=HDRS", "RET=", "RET=EVIL",
	"ENVID=a+0D+0Ab", "ENVID=+0A", "ENVID=+00", "ENVID=+0d", "ENVID=a+7F", "ENVID=a+E4", "ENVID=", "ENVID", "ENVID=a ENVID=b", "ENVID=a=b", "ENVID=a+", "ENVID=a+4", "ENVID=a+ZZ", "ENVID=a+3E+20RET=FULL",
	"ENVID=QQ314159", "ENVID=a+2Bb+3Dc", "ENVID=" + strings.Repeat("a", 100), "ENVID=" + strings.Repeat("a", 1500), "AUTH=<>", "AUTH=a@b.test", "AUTH=a+40b.test", "AUTH=a+0D+0A", "AUTH=", "AUTH=x+3E+20y", "AUTH=<> AUTH=a@b.test",
	"SMTPUTF8 SMTPUTF8", "SMTPUTF8=x", "SMTPUTF8=", "XEVIL=1", "XVERP", "HOLDFOR=1", "BY=1;R", "MT-PRIORITY=9", "REQUIRETLS", "CONPERM", "SUBMITTER=a@b.test", "=", "==", "NOTIFY=NEVER", "\tSIZE=1", "SIZE=1\tBODY=7BIT",
}

var rcptParams = []string{
	"NOTIFY=NEVER NOTIFY=FAILURE", "NOTIFY=NEVER,SUCCESS", "NOTIFY=", "NOTIFY", "NOTIFY=SUCCESS,SUCCESS", "NOTIFY=EVIL", "NOTIFY=SUCCESS,", "NOTIFY=,", "notify=success,failure,delay", "NOTIFY=SUCCESS FAILURE",
	"ORCPT=rfc822;a+0D+0Ab", "ORCPT=rfc822;a+00", "ORCPT=rfc822;a+40b.test", "ORCPT=rfc822;a+20NOTIFY=NEVER", "ORCPT=rfc822;a+3E+20x", "ORCPT=rfc822;", "ORCPT=;x", "ORCPT=rfc822", "ORCPT=", "ORCPT", "ORCPT=evil;x", "ORCPT=x400;c+3Ddk",
	"ORCPT=rfc822;a@b.test ORCPT=rfc822;c@d.test", `ORCPT=utf-8;\x{0D}\x{0A}`, `ORCPT=utf-8;\x{85}`, `ORCPT=utf-8;\x{2028}x`, `ORCPT=utf-8;a\x{20}b`, `ORCPT=utf-8;\x{110000}`, `ORCPT=utf-8;\x{D800}`, `ORCPT=utf-8;\x{`, `ORCPT=utf-8;` + "\u2028",
	"ORCPT=rfc822;" + strings.Repeat("a", 600), "ORCPT=rfc822;" + strings.Repeat("+41", 400), "ORCPT=rfc822;a;b;c", "ORCPT=rfc822;a=b", "SIZE=1", "RRVS=2026-01-01T00:00:00Z", "XEVIL", "=", "BY=1;R", "MT-PRIORITY=9",
}

// helos are what a client calls itself.
var helos = []string{
	"EHLO (comment)", "EHLO a(b)c", "EHLO a) by mx.example.org (Crossfade) id 01ARZ3NDEKTSV4RRFFQ69G5FAV; x", `EHLO "quoted"`, `EHLO "a`, "EHLO a;b", `EHLO a\`, "EHLO <a>", "EHLO a,b", "EHLO a@b", "EHLO [1.2.3.4]", "EHLO [IPv6:::1]",
	"EHLO [", "EHLO ]", "EHLO =?utf-8?q?a=0Db?=", "EHLO " + strings.Repeat("a", 255), "EHLO " + strings.Repeat("a", 256), "EHLO " + strings.Repeat("a.", 900), "EHLO a b c", "EHLO\ta", "EHLO a\tb", "EHLO", "EHLO ", "HELO (comment)", "HELO",
	"EHLO mx.example.org", "EHLO localhost", "EHLO 127.0.0.1", "EHLO (Crossfade)", "EHLO ${run{id}}", "EHLO $(id)", "EHLO `id`", "EHLO %s%n", "EHLO {{.}}", "EHLO <script>", "EHLO x\r", "EHLO x\rReceived: forged", "EHLO x\x00y", "EHLO x\u0085y",
	"EHLO x\u2028y", "EHLO \xff", "EHLO x\n\ty", "EHLO x\r\n\ty", "EHLO client.test\r\r\nX: y",
}

// odds makes all transactions.
func odds() (out []odd) {
	for _, e := range lineEndsInside {
		for _, f := range []string{"<a%s@@>", `<"a%sRCPT TO:<smuggled@example.org>"@@>`, "<a@@%s>", "<a@@>%sRCPT TO:<smuggled@example.org>"} {
			p := fmt.Sprintf(f, e)
			out = append(out, odd{goodHelo, mailLine(p) + " SMTPUTF8", goodRcpt}, odd{goodHelo, goodMail + " SMTPUTF8", rcptLine(p)})
		}
		out = append(out, odd{goodHelo, goodMail + " ENVID=a" + e + "b", goodRcpt}, odd{goodHelo, goodMail, goodRcpt + " ORCPT=rfc822;a" + e + "b"}, odd{"EHLO a" + e + "b", goodMail, goodRcpt})
	}
	for _, p := range paths {
		out = append(out, odd{goodHelo, mailLine(p), goodRcpt}, odd{goodHelo, goodMail, rcptLine(p)})
	}
	for _, p := range mailParams {
		out = append(out, odd{goodHelo, goodMail + " " + p, goodRcpt})
	}
	for _, p := range rcptParams {
		out = append(out, odd{goodHelo, goodMail, goodRcpt + " " + p})
	}
	for _, h := range helos {
		out = append(out, odd{h, goodMail, goodRcpt})
	}
	return out
}

func mailLine(path string) string {
	return "MAIL FROM:" + strings.ReplaceAll(path, "@@", "@client.test")
}
func rcptLine(path string) string { return "RCPT TO:" + strings.ReplaceAll(path, "@@", "@example.org") }

// inspects the transactions that a backend saw. Whatever a client says, a
// backend sees well-formed commands only, each on its own line.
var (
	wellMail = regexp.MustCompile(`^MAIL FROM:<(.*)>((?: (?:SIZE=\d+|BODY=8BITMIME|SMTPUTF8|RET=(?:FULL|HDRS)|ENVID=[!-*,-<>-~+]+))*)$`)
	wellRcpt = regexp.MustCompile(`^RCPT TO:<(.*@example\.org)>((?: (?:NOTIFY=[A-Z,]+|ORCPT=(?:rfc822|utf-8);[!-~]+))*)$`)
)

// wellFormed says what is wrong with a command that a backend was given.
func wellFormed(line string) error {
	switch {
	case line == "DATA" || line == "QUIT" || line == "RSET" || line == "NOOP" || line == "EHLO mx.example.org":
		return nil
	}
	for _, re := range []*regexp.Regexp{wellMail, wellRcpt} {
		m := re.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if a, err := mail.ParseAddress(m[1]); err != nil || a.String() != m[1] {
			return fmt.Errorf("the path is %q: %v", m[1], err)
		}
		seen := map[string]bool{}
		for _, p := range strings.Fields(m[2]) {
			key, _, _ := strings.Cut(p, "=")
			if seen[key] {
				return fmt.Errorf("%s is there twice", key)
			}
			seen[key] = true
		}
		return nil
	}
	return fmt.Errorf("%q is no command that we know", line)
}

// send makes the transaction; every line waits for its reply. taken tells that the message was taken.
func (o odd) send(addr, id string) (taken bool, err error) {
	k, err := dialTalk(addr)
	if err != nil {
		return false, err
	}
	defer k.close()
	if _, err := k.cmd("", "220"); err != nil {
		return false, err
	}
	for _, l := range []string{o.helo, o.mail, o.rcpt} {
		// A line with a line end in it is two commands of the client's own.
		if _, err := k.cmd(l, ""); err != nil {
			return false, nil // it hung up
		}
		for range strings.Count(l, "\n") {
			if _, err := k.reply(); err != nil {
				return false, nil
			}
		}
	}
	r, err := k.cmd("DATA", "")
	if err != nil || !strings.HasPrefix(r, "354") {
		return false, nil
	}
	if _, err := io.WriteString(k.conn, oddMessage(id)+".\r\n"); err != nil {
		return false, err
	}
	r, err = k.reply()
	return strings.HasPrefix(r, "250"), err
}

func oddMessage(id string) string {
	return "From: x@client.test\r\nSubject: " + id + ".\r\n\r\nbody\r\n"
}

// ownHeader says what is wrong with what we put on top of a message: it must be
// one Received field, folded, in printable text.
func ownHeader(top []byte) error {
	if !bytes.HasPrefix(top, []byte("Received: from")) || !bytes.HasSuffix(top, []byte("\r\n")) {
		return fmt.Errorf("it does not begin with our Received: %q", top)
	}
	for i, l := range strings.Split(strings.TrimSuffix(string(top), "\r\n"), "\r\n") {
		if i > 0 && l[0] != '\t' {
			return fmt.Errorf("a second field: %q", top)
		}
		if strings.ContainsAny(l, "\r\n\x00\v\f\u0085\u2028\u2029") {
			return fmt.Errorf("a control character: %q", top)
		}
	}
	if n := strings.Count(string(top), "by mx.example.org (Crossfade)"); n != 1 {
		return fmt.Errorf("by us %d times: %q", n, top)
	}
	return nil
}

// TestInjection: addresses, parameters and names that want to be more. Through
// the relay to a backend goes one well-formed command each, and on top of the
// message one header of ours.
func TestInjection(t *testing.T) {
	t.Parallel()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), "", "")
	all := odds()
	taken := map[string]odd{}
	var mu sync.Mutex
	type numbered struct {
		odd
		id string
	}
	var list []numbered
	for i, o := range all {
		list = append(list, numbered{o, fmt.Sprintf("odd-%04d", i)})
	}
	for _, err := range each(list, 4, func(n numbered) error {
		ok, err := n.send(f.smtp, n.id)
		if ok {
			mu.Lock()
			taken[n.id] = n.odd
			mu.Unlock()
		}
		if err != nil {
			err = fmt.Errorf("%q: %w", n.odd, err)
		}
		return err
	}) {
		t.Error(err)
	}
	until(t, time.Minute, "what was taken to arrive", func() error {
		if n := sink.Count(); n < len(taken) {
			return fmt.Errorf("%d of %d", n, len(taken))
		}
		return nil
	})
	got := sink.Messages()
	if len(got) != len(taken) {
		t.Errorf("%d messages were taken and %d arrived", len(taken), len(got))
	}
	for _, m := range got {
		id := subject(append([]byte("\r\n"), m.Body...))
		o, ok := taken[id]
		if !ok {
			t.Errorf("nobody sent %q", m.Body)
			continue
		}
		delete(taken, id)
		body, err := belowOurs(m.Body)
		if err == nil {
			err = ownHeader(m.Body[:len(m.Body)-len(body)])
		}
		if err != nil || string(body) != oddMessage(id) {
			t.Errorf("%q: %v; it arrived as %q", o, err, m.Body)
		}
		// With an LF in it the line was two commands of the client's own.
		if strings.Contains(o.rcpt, "\n") {
			continue
		}
		if len(m.Rcpts) != 1 || strings.Contains(m.Rcpts[0].Addr, "smuggled@") && !strings.HasPrefix(m.Rcpts[0].Addr, `"`) {
			t.Errorf("%q went to %v", o, m.Rcpts)
		}
	}
	lines := sink.Commands(0)
	for _, l := range lines {
		if err := wellFormed(l); err != nil {
			t.Errorf("a backend was told %q: %v", l, err)
		}
	}
	figure(t, "%d odd transactions: %d refused, %d delivered, %d commands to the backend, all well-formed", len(all), len(all)-len(got), len(got), len(lines))
}
