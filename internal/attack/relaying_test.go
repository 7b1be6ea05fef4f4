package attack

import (
	"encoding/base64"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// victims are recipients outside, in every disguise that open relays were ever
// found by. ours is example.org, the host mx.example.org at 127.0.0.1.
var victims = []string{
	"<victim@other.test>", "victim@other.test", "<victim@OTHER.TEST>", "<victim@other.test.>", `<"victim"@other.test>`, `<"victim@other.test">`, "<victim>", "<victim@>", "<@other.test>",
	"<victim%other.test@example.org>", "<victim%other.test@mx.example.org>", "<victim%other.test@[127.0.0.1]>", "<victim%other.test>", "<victim%other.test%example.org@example.org>", "<victim%other.test@example.org@other.test>",
	`<"victim%other.test"@example.org>`, `<"victim@other.test"@example.org>`, `<"victim@other.test"@mx.example.org>`, `<"victim@other.test"@[127.0.0.1]>`, `<"victim\@other.test"@example.org>`, `<victim\@other.test@example.org>`,
	"<victim@other.test@example.org>", "<victim@other.test@[127.0.0.1]>", "<victim@example.org@other.test>", "<victim@other.test,example.org>", "<victim@other.test;example.org>", "<victim@other.test\\example.org>", "<victim@other.test/example.org>",
	"<@example.org:victim@other.test>", "<@mx.example.org:victim@other.test>", "<@[127.0.0.1]:victim@other.test>", "<@example.org,@x.test:victim@other.test>", "<@other.test:target@example.org@other.test>", "<@example.org:victim%other.test>", `<"@other.test:victim"@example.org>`,
	"<other.test!victim>", "<other.test!victim@example.org>", "<other.test!victim@mx.example.org>", "<other.test!victim@[127.0.0.1]>", "<example.org!other.test!victim>", "<example.org!other.test!victim@example.org>", `<"other.test!victim"@example.org>`, "<other.test!victim%example.org@example.org>",
	"<victim@[127.0.0.9]>", "<victim@[192.0.2.1]>", "<victim@[IPv6:2001:db8::1]>", "<victim@127.0.0.9>", "<victim@2130706433>", "<victim@[127.0.0.1]>", "<victim@[IPv6:::1]>", "<victim@localhost>", "<victim@mx.example.org>", "<victim@sub.example.org>", "<victim@example.org.other.test>", "<victim@notexample.org>", "<victim@example.orgother.test>", "<victim@example.org\u3002other.test>", "<victim@\uff45xample.test>",
	"<postmaster@other.test>", "<abuse@other.test>", "<postmaster%other.test>", "<postmaster%other.test@mx.example.org>", "<postmaster@other.test@mx.example.org>", "<target+victim@other.test@example.org>", "<target+x%other.test@example.org>", "<target+other.test!victim@example.org>",
	"<victim@other.test> NOTIFY=NEVER", "<victim@other.test> ORCPT=rfc822;target@example.org", "<target@example.org> <victim@other.test>", "<target@example.org>,<victim@other.test>", "<target@example.org,victim@other.test>", "<target@example.org victim@other.test>", `<"target@example.org> <victim@other.test"@example.org>`, `<"victim@other.test> NOTIFY=NEVER "@example.org>`,
	"<|victim@other.test>", "<>", "<\"\">", "<:victim@other.test>", "<@:victim@other.test>",
}

// disguises are who the stranger says that he is.
var disguises = []struct {
	name string
	// first is sent before anything is read, EHLO and MAIL in the dialogue.
	first, helo, mail string
}{
	{"a stranger", "", "EHLO client.test", "MAIL FROM:<spammer@evil.test>"},
	{"with our own domain as sender", "", "EHLO client.test", "MAIL FROM:<boss@example.org>"},
	{"with the null sender", "", "EHLO client.test", "MAIL FROM:<>"},
	{"with our host as sender", "", "EHLO client.test", "MAIL FROM:<postmaster@mx.example.org>"},
	{"with an address literal as sender", "", "EHLO client.test", "MAIL FROM:<spammer@[127.0.0.1]>"},
	{"with localhost as sender", "", "EHLO client.test", "MAIL FROM:<spammer@localhost>"},
	{"with our name in HELO", "", "EHLO mx.example.org", "MAIL FROM:<spammer@evil.test>"},
	{"with localhost in HELO", "", "HELO localhost", "MAIL FROM:<spammer@evil.test>"},
	{"with a trusted address in HELO", "", "EHLO [127.0.0.4]", "MAIL FROM:<spammer@evil.test>"},
	{"with AUTH= of somebody trusted", "", "EHLO client.test", "MAIL FROM:<boss@example.org> AUTH=boss@example.org"},
	{"with a PROXY header of version 1", "PROXY TCP4 127.0.0.4 127.0.0.1 1000 25\r\n", "EHLO client.test", "MAIL FROM:<spammer@evil.test>"},
	{"with a PROXY header of version 2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x04\x7f\x00\x00\x01\x03\xe8\x00\x19", "EHLO client.test", "MAIL FROM:<spammer@evil.test>"},
	{"with XCLIENT", "", "EHLO client.test", "XCLIENT ADDR=127.0.0.4"},
	{"with XFORWARD", "", "EHLO client.test", "XFORWARD ADDR=127.0.0.4"},
}

// tryRelay makes a whole attempt; the answer is the reply to RCPT, and what
// became of a message that was taken.
func tryRelay(addr, from, first, helo, mail, rcpt string) (reply string, taken bool, err error) {
	k, err := dialFrom(from, addr)
	if err != nil {
		return "", false, err
	}
	defer k.close()
	if first != "" {
		if _, err := io.WriteString(k.conn, first); err != nil {
			return "", false, err
		}
	}
	if r, err := k.cmd("", ""); err != nil || !strings.HasPrefix(r, "220") {
		return r, false, nil // it hung up
	}
	for _, l := range []string{helo, mail} {
		if r, err := k.cmd(l, ""); err != nil {
			return r, false, nil
		}
	}
	if strings.HasPrefix(first, "PROXY") || strings.HasPrefix(mail, "X") || strings.HasPrefix(first, "\r\n") {
		// The replies are out of step: they are to the header, or XCLIENT was no MAIL.
		if _, err := k.cmd("MAIL FROM:<spammer@evil.test>", ""); err != nil {
			return "", false, nil
		}
	}
	reply, err = k.cmd("RCPT TO:"+rcpt, "")
	if err != nil {
		return reply, false, nil
	}
	r, err := k.cmd("DATA", "")
	if err != nil || !strings.HasPrefix(r, "354") {
		return reply, false, nil
	}
	if _, err := io.WriteString(k.conn, "Subject: relayed.\r\n\r\n"+rcpt+" by "+mail+"\r\n.\r\n"); err != nil {
		return reply, false, err
	}
	r, err = k.cmd("", "")
	return reply, strings.HasPrefix(r, "250"), err
}

// TestOpenRelay: nobody who is not trusted sends anything out, neither through
// the smart host nor through a backend. The backend is the worst there is: a
// Postfix that trusts us, takes its routes from local parts as Postfix does by
// default, and sends everything that is not its own to a victim.
func TestOpenRelay(t *testing.T) {
	t.Parallel()
	sink := func() *mailtest.Sink {
		s, err := mailtest.NewSink(mailtest.SinkConfig{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	victim, smart := sink(), sink()
	host, port, _ := strings.Cut(victim.Addr(), ":")
	p := realtest.StartPostfix(t, realtest.PostfixOptions{Maildir: true, Domains: []string{"virtual.test"}, Extra: fmt.Sprintf(
		"mydestination = example.org, mx.example.org\nmynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n"+
			"local_transport = virtual\nvirtual_mailbox_domains =\nvirtual_mailbox_maps = static:Maildir/\nrelayhost = [%s]:%s\n", host, port)})
	f := startFront(t, p.SMTPURL(), `, trusted: [127.0.0.4/32], proxy_protocol: [127.0.0.5/32], smart_host: {url: "`+smart.URL("")+`"}`, "")

	attempts, refused, local := 0, 0, 0
	for _, d := range disguises {
		for _, rcpt := range victims {
			attempts++
			reply, taken, err := tryRelay(f.smtp, stranger, d.first, d.helo, d.mail, rcpt)
			switch {
			case err != nil:
				t.Errorf("%s, %s: %v", d.name, rcpt, err)
			case !taken:
				refused++
			default:
				local++
				t.Errorf("%s may send to %s: %s", d.name, rcpt, reply)
			}
		}
	}
	// Behind a header that a stranger may not send, he is still himself.
	for _, first := range []string{"PROXY TCP4 127.0.0.9 127.0.0.1 1000 25\r\n", "PROXY UNKNOWN\r\n"} {
		attempts++
		if _, taken, err := tryRelay(f.smtp, "127.0.0.5", first, "EHLO client.test", "MAIL FROM:<a@evil.test>", "<victim@other.test>"); taken || err != nil {
			t.Errorf("a stranger behind a load balancer may send out (%v)", err)
		} else {
			refused++
		}
	}
	until(t, 30*time.Second, "what Postfix was given to be gone", func() error {
		if n := p.Queued(t); n > 0 {
			return fmt.Errorf("%d are queued", n)
		}
		return nil
	})
	if n, m := victim.Count(), smart.Count(); n+m > 0 {
		t.Errorf("relayed: %d to the victim, %d to the smart host: %v %v", n, m, victim.Messages(), smart.Messages())
	}
	// The test would see it: who is trusted sends out.
	if _, taken, err := tryRelay(f.smtp, "127.0.0.4", "", "EHLO client.test", "MAIL FROM:<boss@example.org>", "<victim@other.test>"); !taken || err != nil {
		t.Errorf("who is trusted may not send out: %v", err)
	}
	if _, err := smart.Wait(t.Context(), 1); err != nil {
		t.Error(err)
	}
	// And so would the worst backend, asked by itself.
	worst := 0
	for _, rcpt := range victims {
		if _, taken, err := tryRelay(p.Addr, "127.0.0.1", "", "EHLO client.test", "MAIL FROM:<a@evil.test>", rcpt); err == nil && taken {
			worst++
		}
	}
	if worst < 10 {
		t.Errorf("the worst backend took %d only: it is not as bad as it should be", worst)
	}
	figure(t, "%d attempts (%d recipients, %d disguises): %d refused, %d sent on; the backend alone, which trusts us, takes %d of the %d recipients",
		attempts, len(victims), len(disguises), refused, local, worst, len(victims))
}

// TestOpenRelayPeer is the same at a Postfix in our place, a stranger to it.
func TestOpenRelayPeer(t *testing.T) {
	t.Parallel()
	p := realtest.StartPostfix(t, realtest.PostfixOptions{Maildir: true})
	attempts, taken := 0, 0
	for _, d := range disguises {
		for _, rcpt := range victims {
			attempts++
			if _, ok, err := tryRelay(p.Addr, stranger, d.first, d.helo, d.mail, rcpt); err == nil && ok {
				taken++
			}
		}
	}
	figure(t, "Postfix of Debian 12, %d attempts: %d refused, %d taken for its own domain; nmap's smtp-open-relay: %s", attempts, attempts-taken, taken, nmapSays(t, p.Addr))
}

// TestOpenRelayLogin: guessed names and passwords are no way in either.
func TestOpenRelayLogin(t *testing.T) {
	t.Parallel()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), "", "")
	for _, l := range []string{"AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00admin\x00admin")), "AUTH PLAIN =", "AUTH LOGIN", "AUTH CRAM-MD5", "AUTH EXTERNAL =", "AUTH ANONYMOUS", "AUTH GSSAPI", "AUTH"} {
		k, err := dialTalk(f.smtp)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.cmds("", "220", "EHLO client.test", "250", l, "50"); err != nil {
			t.Error(err)
		}
		if err := k.cmds("MAIL FROM:<a@evil.test>", "250", "RCPT TO:<victim@other.test>", "550 5.7.1"); err != nil {
			t.Error(err)
		}
		k.close()
	}
}

var nmapVerdict = regexp.MustCompile(`(?i)(server (?:is an open relay|doesn't seem to be an open relay)[^\n]*)`)

// nmapSays asks a tester that others made: the script smtp-open-relay of nmap, with its 16 tests.
func nmapSays(t *testing.T, addr string) (verdict string) {
	t.Helper()
	_, port, _ := strings.Cut(addr, ":")
	// -sT without DNS and ping: plain connections to this machine's own port. The + has the script run although the port is not 25.
	cmd := exec.CommandContext(t.Context(), realtest.Need(t, "nmap"), "-sT", "-n", "-Pn", "-p", port, "--script", "+smtp-open-relay",
		"--script-args", "smtp-open-relay.domain=other.test,smtp-open-relay.ip=127.0.0.9,smtp-open-relay.to=victim,smtp-open-relay.from=antispam", "127.0.0.1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if verdict = nmapVerdict.FindString(string(out)); verdict == "" {
		t.Errorf("nmap says nothing:\n%s", out)
	}
	return verdict
}

// TestOpenRelayNmap: nmap finds nothing at our door.
func TestOpenRelayNmap(t *testing.T) {
	t.Parallel()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), "", "")
	verdict := nmapSays(t, f.smtp)
	if !strings.Contains(verdict, "doesn't seem to be an open relay") {
		t.Errorf("nmap says %q", verdict)
	}
	if sink.Count() != 0 {
		t.Errorf("%d messages of nmap came through", sink.Count())
	}
	figure(t, "nmap's smtp-open-relay: %s", verdict)
}
