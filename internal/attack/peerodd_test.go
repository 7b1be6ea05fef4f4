package attack

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// peer is a Postfix that stands where the relay stands, and the system behind it.
type peer struct {
	*realtest.Postfix
	sink *mailtest.Sink
}

// startPeer starts one with Debian's defaults. extra goes to the end of its main.cf.
func startPeer(t *testing.T, extra string) *peer {
	t.Helper()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	host, port, _ := strings.Cut(sink.Addr(), ":")
	return &peer{realtest.StartPostfix(t, realtest.PostfixOptions{NextHop: fmt.Sprintf("smtp:[%s]:%s", host, port), Extra: extra}), sink}
}

// settled waits until nothing is left in the queue, or what is left stays there,
// and gives what is left.
func (p *peer) settled(t *testing.T, most time.Duration) (left int) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(most)
	defer late.Stop()
	for {
		if left = p.Queued(t); left == 0 {
			return 0
		}
		select {
		case <-tick.C:
		case <-late.C:
			return left
		}
	}
}

// What any client may say to a server: the grammar of RFC 5321, 6531, 3461 and 4954,
// which is wider than what we say ourselves (wellFormed).
const (
	fairAtom   = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
	fairLocal  = "(?:" + fairAtom + `(?:\.` + fairAtom + `)*|"(?:[ !#-\[\]-~\x{80}-\x{10ffff}]|\\[ -~])*")`
	fairDomain = `(?:[A-Za-z0-9_\x{80}-\x{10ffff}-]+(?:\.[A-Za-z0-9_\x{80}-\x{10ffff}-]+)*|\[[!-Z^-~]+\])`
	fairXtext  = `(?:[!-*,-<>-~]|\+[0-9A-F]{2})+`
)

var (
	fairMail = regexp.MustCompile(`^MAIL FROM:<(?:` + fairLocal + `(?:@` + fairDomain + `)?)?>((?: (?:SIZE=\d{1,20}|BODY=(?:7BIT|8BITMIME)|SMTPUTF8|RET=(?:FULL|HDRS)|ENVID=` + fairXtext + `|AUTH=(?:<>|` + fairXtext + `)))*)$`)
	fairRcpt = regexp.MustCompile(`^RCPT TO:<` + fairLocal + `@` + fairDomain + `>((?: (?:NOTIFY=(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*)|ORCPT=[A-Za-z0-9-]+;` + fairXtext + `))*)$`)
)

// unicodeEnds are what programs that go by Unicode take for the end of a line. The
// grammar has nothing against them; we let none through.
const unicodeEnds = "\u0085\u2028\u2029"

// fair says what is wrong with a command that a backend was given by anybody.
func fair(line string) error {
	switch strings.ToUpper(line) {
	case "DATA", "QUIT", "RSET", "NOOP", "EHLO POSTFIX.TEST":
		return nil
	}
	for _, re := range []*regexp.Regexp{fairMail, fairRcpt} {
		m := re.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		seen := map[string]bool{}
		for _, p := range strings.Fields(m[1]) {
			key, _, _ := strings.Cut(p, "=")
			if seen[key] {
				return fmt.Errorf("%s is there twice", key)
			}
			seen[key] = true
		}
		return nil
	}
	return fmt.Errorf("%q does not follow the grammar", line)
}

// TestFairJudge: the judge of others knows right from wrong.
func TestFairJudge(t *testing.T) {
	for line, good := range map[string]bool{
		"MAIL FROM:<>": true, "MAIL FROM:<a@b.test> SIZE=10 BODY=8BITMIME": true, `MAIL FROM:<"a b"@b.test>`: true, "MAIL FROM:<a> SIZE=1": true,
		`RCPT TO:<"a\"b"@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+40b`: true, "RCPT TO:<ü@example.org>": true, "RCPT TO:<a@[127.0.0.1]>": true,
		"RCPT TO:<a b@example.org>": false, `RCPT TO:<"a"b"@example.org>`: false, "RCPT TO:<a@b@example.org>": false, "RCPT TO:<a@example.org>x": false,
		"RCPT TO:<a@example.org> X=1": false, "MAIL FROM:<a@b.test> SIZE=1 SIZE=2": false, "MAIL FROM:<a@b.test> ENVID=a+0db": false, "RCPT TO:<a.@example.org>": false,
		"RCPT TO:<a\rb@example.org>": false, "RCPT TO:<a@example.org> ORCPT=utf-8;\u00fc": false, "XEVIL": false,
	} {
		if err := fair(line); (err == nil) != good {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// peerTop says what is wrong with the header that Postfix puts on top: one Received field
// of printable text, with its own name once.
func peerTop(m []byte, id string) error {
	top, ok := bytes.CutSuffix(m, []byte(oddMessage(id)))
	switch {
	case !ok:
		return fmt.Errorf("below its header there is not what was sent: %q", m)
	case !bytes.HasPrefix(top, []byte("Received: from ")) || !bytes.HasSuffix(top, []byte("\r\n")):
		return fmt.Errorf("it does not begin with Received: %q", top)
	}
	for i, l := range strings.Split(strings.TrimSuffix(string(top), "\r\n"), "\r\n") {
		if i > 0 && (l == "" || l[0] != '\t' && l[0] != ' ') {
			return fmt.Errorf("a second field: %q", top)
		}
		if strings.ContainsAny(l, "\r\n\x00\b\v\f\x1a\x7f") {
			return fmt.Errorf("a control character: %q", top)
		}
	}
	if n := strings.Count(string(top), "by postfix.test (Postfix)"); n != 1 {
		return fmt.Errorf("by itself %d times: %q", n, top)
	}
	return nil
}

// TestPeerOdd is TestInjection and TestNotices at a Postfix in our place. Nothing is
// demanded of it.
func TestPeerOdd(t *testing.T) {
	t.Parallel()
	p := startPeer(t, "")
	p.injection(t)
	p.sink.Forget()
	p.notices(t)
}

// injection sends the odd transactions.
func (p *peer) injection(t *testing.T) {
	t.Helper()
	type numbered struct {
		odd
		id string
	}
	var list []numbered
	for i, o := range odds() {
		if long() || i%8 == 0 {
			list = append(list, numbered{o, fmt.Sprintf("odd-%04d", i)})
		}
	}
	var mu sync.Mutex
	taken := map[string]odd{}
	for _, err := range each(list, 8, func(n numbered) error {
		ok, err := n.send(p.Addr, n.id)
		if ok {
			mu.Lock()
			taken[n.id] = n.odd
			mu.Unlock()
		}
		return err
	}) {
		t.Logf("the test could not speak with Postfix: %v", err)
	}
	left := p.settled(t, 8*time.Second)
	arrived, headers, unicode := map[string]bool{}, 0, 0
	for _, m := range p.sink.Messages() {
		if m.From == "" && bytes.Contains(m.Body, []byte("report-type=delivery-status")) {
			continue
		}
		id := subject(append([]byte("\r\n"), m.Body...))
		arrived[id] = true
		if err := peerTop(m.Body, id); err != nil {
			headers++
			t.Logf("the header of Postfix, for %q: %v", taken[id], err)
		} else if bytes.ContainsAny(m.Body, unicodeEnds) {
			unicode++
		}
	}
	if len(arrived) < len(taken)/2 {
		t.Errorf("of %d that were taken %d arrived: this test does not see what it looks for", len(taken), len(arrived))
	}
	lines := p.sink.Commands(0)
	odd, ends := 0, 0
	for _, l := range lines {
		if err := fair(l); err != nil {
			odd++
			t.Logf("Postfix tells the backend %q: %v", l, err)
		} else if strings.ContainsAny(l, unicodeEnds) {
			ends++
		}
	}
	figure(t, "Postfix of Debian 12, %d odd transactions: %d taken, %d of them at the backend, %d left in its queue; of %d commands %d are outside the grammar, and %d have a line end of Unicode's in them; of its headers %d have control characters, and %d line ends of Unicode's",
		len(list), len(taken), len(arrived), left, len(lines), odd, ends, headers, unicode)
}

// peerNotice is the form of Postfix's notices.
var peerNotice = noticeForm{
	to:     attacker,
	fields: []string{"Received", "Date", "From", "Subject", "To", "Auto-Submitted", "Mime-Version", "Content-Type", "Content-Transfer-Encoding", "Message-Id"},
	status: []string{"Reporting-Mta", "X-Postfix-Queue-Id", "X-Postfix-Sender", "Arrival-Date", "Original-Envelope-Id", "Final-Recipient", "Original-Recipient", "Action",
		"Status", "Remote-Mta", "Diagnostic-Code"},
}

// notices looks at what it writes to senders about hostile messages that were refused
// in hostile words.
func (p *peer) notices(t *testing.T) {
	t.Helper()
	// The refusal is chosen by the message, so that all can be under way at once.
	p.sink.SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step != mailtest.StepDot || ev.Message.From == "" {
			return mailtest.Action{}
		}
		for i, r := range refusals {
			if bytes.Contains(ev.Message.Body, fmt.Appendf(nil, "Subject: notice-%02d-", i)) {
				return mailtest.Garbage(strings.TrimSuffix(r, "\r\n") + "\r\n")
			}
		}
		return mailtest.Action{}
	})
	sent, refused := 0, 0
	for i := range refusals {
		if !long() && i%4 != 1 {
			continue
		}
		for j, o := range originals {
			sent++
			if err := giveOriginal(p.Addr, fmt.Sprintf("notice-%02d-%02d", i, j), o.mail, o.rcpt, o.header); err != nil {
				t.Logf("Postfix does not take %q: %v", o, err)
				refused++
			}
		}
	}
	left := p.settled(t, 8*time.Second)
	notices, bad := 0, 0
	for _, m := range p.sink.Messages() {
		if m.From != "" || !bytes.Contains(m.Body, []byte("notice-")) {
			continue // it was not refused in a way that Postfix takes for a refusal; or it is of another test
		}
		notices++
		err := peerNotice.judge(m.Body)
		if err == nil && (len(m.Rcpts) != 1 || m.Rcpts[0].Addr != attacker) {
			err = fmt.Errorf("it goes to %v", m.Rcpts)
		}
		if err != nil {
			bad++
			t.Logf("a notice of Postfix: %v:\n%.3000s", err, m.Body)
		}
	}
	if notices == 0 {
		t.Error("Postfix wrote no notice: this test does not see what it looks for")
	}
	figure(t, "Postfix of Debian 12, %d hostile messages refused in hostile words: %d not taken, %d notices, %d of them not well-formed, %d left in its queue", sent, refused, notices, bad, left)
}
