package daemon_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/queue"
	"crossfade/router"
)

// company is two mail systems, a Postfix in front of a Dovecot each, that both
// believe to be the home of the domain; the relay is between them.
type company struct {
	*world
	*running
	postfix map[string]*realtest.Postfix // by side
	box     map[string]*realtest.Dovecot
	relayAt string
	sent    int
}

// gap says how mail of colleagues crosses over: the recipes of docs/recipes.md.
type gap struct {
	lookups bool // each Postfix asks who is elsewhere; else it hands everything to the relay, which delivers by LMTP
	// loops is the side, if any, that sends back what it gets from the relay.
	loops string
}

var bindTo = map[string]string{"old": "127.0.0.2", "new": "127.0.0.3"}

func newCompany(t *testing.T, users int, g gap) *company {
	t.Helper()
	c := &company{world: newWorld(t, users, 4), postfix: map[string]*realtest.Postfix{}}
	c.box = map[string]*realtest.Dovecot{"old": c.old, "new": c.new}
	c.relayAt = fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))
	tableAt := fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))
	toRelay := "smtp:[127.0.0.1]:" + portOf(c.relayAt)
	smtp := map[string]string{"old": c.old.LMTPURL(), "new": c.new.LMTPURL()}
	for side, dc := range c.box {
		o := realtest.PostfixOptions{Domains: []string{e2eDomain}, NextHop: toRelay, Extra: "smtp_bind_address = " + bindTo[side] + "\n"}
		if g.lookups {
			o.NextHop = "lmtp:unix:" + dc.LMTPSocket
			o.Extra += "transport_maps = socketmap:inet:" + tableAt + ":elsewhere-" + side + "\n"
		}
		if g.loops == side {
			o.NextHop = toRelay
			o.Extra = "smtp_bind_address = " + bindTo[side] + "\n"
		}
		c.postfix[side] = realtest.StartPostfix(t, o)
		if g.lookups || g.loops == side {
			smtp[side] = "smtp+insecure://" + c.postfix[side].Addr
		}
	}
	c.configure(c.relayAt, "127.0.0.1:0")
	b, err := os.ReadFile(c.cfgPath)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), "smtp: "+c.old.LMTPURL(), "sends_from: [127.0.0.2/32]\n    smtp: "+smtp["old"], 1)
	text = strings.Replace(text, "smtp: "+c.new.LMTPURL(), "sends_from: [127.0.0.3/32]\n    smtp: "+smtp["new"], 1)
	// Colleagues may send out from here, see TestSmartHost; where old sends from does not say that.
	text = strings.Replace(text, "max_connections_per_ip: 0", "max_connections_per_ip: 0, trusted: [127.0.0.4/32]", 1)
	c.write("crossfade.yaml", text+fmt.Sprintf(`lookup:
  socketmap: [%q]
  transport: {old: "x:", new: "x:", relay: %q}
`, tableAt, toRelay))
	c.running = c.serve()
	var lines []string
	for _, u := range c.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, c.client, lines)
	return c
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// set puts a user by hand where a test needs him.
func (c *company) set(t *testing.T, user string, to router.State) {
	t.Helper()
	if _, err := c.client.SetState(t.Context(), user, admin.StateChange{State: to, Force: true, Reason: "senders"}); err != nil {
		t.Fatal(err)
	}
}

// send sends one message through a server and gives its token.
func (c *company) send(t *testing.T, addr, to string) string {
	t.Helper()
	c.sent++
	token := fmt.Sprintf("colleague-%04d.", c.sent)
	out, status := realtest.Swaks(t, t.Context(), addr, "--from", "colleague@"+e2eDomain, "--to", to, "--header", "Subject: "+token)
	if status != 0 {
		t.Fatalf("swaks to %s at %s: status %d\n%s", to, addr, status, out)
	}
	return token
}

var tokenOf = regexp.MustCompile(`(?m)^Subject: (colleague-\d+\.)`)

// tokens counts the messages of a user's mailbox on one side.
func (c *company) tokens(t *testing.T, side, user string) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, name := range c.box[side].MaildirFiles(t, user) {
		b, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // it was moved from new to cur
		}
		if err != nil {
			t.Fatal(err)
		}
		if m := tokenOf.FindSubmatch(b); m != nil {
			n[string(m[1])]++
		}
	}
	return n
}

// arrives waits until a message is where its user reads, and nowhere else.
func (c *company) arrives(t *testing.T, token, side, user string) {
	t.Helper()
	poll(t, 30*time.Second, token+" for "+user, func() (bool, error) {
		n := c.tokens(t, side, user)[token]
		return n == 1, fmt.Errorf("%d times on %s", n, side)
	})
	other := map[string]string{"old": "new", "new": "old"}[side]
	if n := c.tokens(t, other, user)[token]; n != 0 {
		t.Errorf("%s for %s is on %s, which he does not read", token, user, other)
	}
}

// TestColleaguesAcrossTheGap: with each of the two recipes for Postfix, mail
// between colleagues, in both directions, and from outside, arrives in the
// mailbox that its user reads, before and behind his flip, and waits in between.
func TestColleaguesAcrossTheGap(t *testing.T) {
	t.Parallel()
	for name, g := range map[string]gap{"lookups": {lookups: true}, "through the relay": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCompany(t, 2, g)
			ann, bob := c.users[0], c.users[1]
			c.set(t, bob, router.StateNew)
			sides := map[string]string{ann: "old", bob: "new"}
			everybody := func() {
				t.Helper()
				// In turns: qmgr remembers the address that it resolved last for 30 s.
				for _, from := range []string{c.postfix["old"].Addr, c.postfix["new"].Addr, c.relayAt} {
					for _, user := range []string{ann, bob} {
						c.arrives(t, c.send(t, from, user), sides[user], user)
					}
				}
			}
			everybody()
			c.arrives(t, c.send(t, c.postfix["old"].Addr, bob), sides[bob], bob)
			c.set(t, ann, router.StateSyncing)
			c.set(t, ann, router.StateReady)
			c.set(t, ann, router.StateCutover)
			held := []string{c.send(t, c.postfix["old"].Addr, ann), c.send(t, c.postfix["new"].Addr, ann), c.send(t, c.relayAt, ann)}
			poll(t, 20*time.Second, "mail that is held", func() (bool, error) {
				page, err := c.client.Queue(t.Context(), admin.QueueFilter{State: queue.Held}, "", 10)
				return err == nil && len(page.Messages) == 3, fmt.Errorf("%d messages: %w", len(page.Messages), err)
			})
			for _, token := range held {
				if c.tokens(t, "old", ann)[token]+c.tokens(t, "new", ann)[token] > 0 {
					t.Errorf("%s was delivered while its user is held", token)
				}
			}
			c.arrives(t, c.send(t, c.postfix["new"].Addr, bob), sides[bob], bob)
			c.set(t, ann, router.StateNew)
			sides[ann] = "new"
			for _, token := range held {
				c.arrives(t, token, "new", ann)
			}
			c.set(t, bob, router.StateOld)
			sides[bob] = "old"
			everybody()
			drain(t, c.client, 20*time.Second)
		})
	}
}

// TestColleaguesDuringFlips: colleagues on both sides write without pause while
// users are flipped by the conductor; all of it is once in the new mailboxes.
func TestColleaguesDuringFlips(t *testing.T) {
	t.Parallel()
	c := newCompany(t, 3, gap{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	sent := map[string]string{} // token -> user
	var wg sync.WaitGroup
	failed := make(chan error, 4)
	for n, addr := range []string{c.postfix["old"].Addr, c.postfix["new"].Addr, c.relayAt} {
		wg.Go(func() {
			s, err := dialSMTP(addr)
			if err != nil {
				failed <- err
				return
			}
			defer func() { _ = s.close() }()
			tick := time.NewTicker(25 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				user, token := c.users[i%len(c.users)], fmt.Sprintf("colleague-%d%06d.", n+1, i)
				if _, _, err := s.send("colleague@"+e2eDomain, []string{user}, []byte("Subject: "+token+"\r\n\r\nx\r\n")); err != nil {
					failed <- fmt.Errorf("%s: %w", token, err)
					return
				}
				mu.Lock()
				sent[token] = user
				mu.Unlock()
				<-tick.C
			}
		})
	}
	for _, u := range c.users {
		if _, err := c.client.StartCutover(t.Context(), u, admin.MoveRequest{Reason: "e2e"}); err != nil {
			t.Fatal(err)
		}
		awaitFlip(t, c.client, u)
	}
	stop()
	wg.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	poll(t, 30*time.Second, "the queues of both Postfixes", func() (bool, error) {
		n := c.postfix["old"].Queued(t) + c.postfix["new"].Queued(t)
		return n == 0, fmt.Errorf("%d messages", n)
	})
	drain(t, c.client, 30*time.Second)
	for _, u := range c.users {
		have := c.tokens(t, "new", u)
		for token, user := range sent {
			if user == u && have[token] != 1 {
				t.Errorf("%s for %s is %d times on new", token, u, have[token])
			}
		}
	}
	figure(t, "%d messages between colleagues while %d users were flipped", len(sent), len(c.users))
}

// TestBackendThatGivesBack: a Postfix that sends everything back gets each
// message once; it is parked with the reason, and goes on when that is mended.
func TestBackendThatGivesBack(t *testing.T) {
	t.Parallel()
	c := newCompany(t, 2, gap{loops: "new"})
	ann, bob := c.users[0], c.users[1]
	c.set(t, ann, router.StateNew)
	for _, from := range []string{c.relayAt, c.postfix["old"].Addr, c.postfix["new"].Addr} {
		c.arrives(t, c.send(t, from, bob), "old", bob) // no loop: he is on the other side
		c.send(t, from, ann)
	}
	// A first return waits a minute, because it may come from what Postfix
	// remembers; an operator is quicker.
	var page admin.QueuePage
	poll(t, 30*time.Second, "the first return", func() (bool, error) {
		var err error
		page, err = c.client.Queue(t.Context(), admin.QueueFilter{Reason: "mail loop: "}, "", 10)
		return err == nil && len(page.Messages) == 3, fmt.Errorf("%d came back: %w", len(page.Messages), err)
	})
	if _, err := c.client.Apply(t.Context(), admin.QueueApply{Action: queue.DoRetry, All: true}); err != nil {
		t.Fatal(err)
	}
	poll(t, 30*time.Second, "parking what goes round", func() (bool, error) {
		var err error
		page, err = c.client.Queue(t.Context(), admin.QueueFilter{State: queue.Parked}, "", 10)
		return err == nil && len(page.Messages) == 3, fmt.Errorf("%d are parked: %w", len(page.Messages), err)
	})
	for _, m := range page.Messages {
		e, err := c.client.Message(t.Context(), m.Envelope.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Rcpts[0].LastReply; !strings.HasPrefix(got, "mail loop: new (127.0.0.3, which calls itself postfix.test) gave this message back") {
			t.Errorf("the reason is %q", got)
		}
	}
	if n := c.postfix["old"].Queued(t) + c.postfix["new"].Queued(t); n != 0 {
		t.Errorf("%d messages are in the queues of the Postfixes: bounces?", n)
	}
	// The operator takes the user back to old, and lets the mail go.
	c.set(t, ann, router.StateOld)
	if _, err := c.client.Apply(t.Context(), admin.QueueApply{Action: queue.DoRetry, All: true}); err != nil {
		t.Fatal(err)
	}
	poll(t, 30*time.Second, "delivery after the repair", func() (bool, error) {
		n := len(c.tokens(t, "old", ann))
		return n == 3, fmt.Errorf("%d messages", n)
	})
	drain(t, c.client, 20*time.Second)
	for token, n := range c.tokens(t, "old", ann) {
		if n != 1 {
			t.Errorf("%s is there %d times", token, n)
		}
	}
}

// TestSmartHost: mail of the backends for the outside goes to the smart host,
// logged in over TLS; what it refuses comes back to the sender, on the side
// where he is; strangers cannot relay.
func TestSmartHost(t *testing.T) {
	t.Parallel()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	host, err := mailtest.NewSink(mailtest.SinkConfig{
		STARTTLS: true, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Auth: func(user, password string) bool { return user == "relay" && password == "out-secret" },
		Users: func(addr string) bool { return !strings.HasPrefix(addr, "nobody@") },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	pw := t.TempDir() + "/out"
	if err := os.WriteFile(pw, []byte("out-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCompany(t, 2, gap{})
	b, err := os.ReadFile(c.cfgPath)
	if err != nil {
		t.Fatal(err)
	}
	ann, bob := c.users[0], c.users[1]
	c.set(t, bob, router.StateNew)
	const plain = "max_connections_per_ip: 0"
	c.write("crossfade.yaml", strings.Replace(string(b), plain, plain+fmt.Sprintf(", smart_host: {url: \"smtp+starttls://%s\", user: relay, password_file: %s, tls: {ca: %s}}", host.Addr(), pw, files.CA), 1))
	if _, err := c.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := func(client, from, to string) (string, int) {
		return realtest.Swaks(t, t.Context(), c.relayAt, "--from", from, "--to", to, "--local-interface", client, "--header", "Subject: colleague-9000.")
	}
	inside := func(from, to string) (string, int) { return at("127.0.0.4", from, to) }
	const swaksRcptRefused = 24
	if out, status := realtest.Swaks(t, t.Context(), c.relayAt, "--from", ann, "--to", "friend@outside.test"); status != swaksRcptRefused || !strings.Contains(out, "550 5.7.1") {
		t.Errorf("a stranger may relay: %s", out)
	}
	if out, status := at(bindTo["old"], ann, "friend@outside.test"); status != swaksRcptRefused || !strings.Contains(out, "550 5.7.1") {
		t.Errorf("who is only in sends_from may relay: %s", out)
	}
	if out, status := inside(ann, "friend@outside.test"); status != 0 {
		t.Fatalf("a trusted client may not send out: %s", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := host.Wait(ctx, 1)
	if err != nil || got[0].Addrs()[0] != "friend@outside.test" {
		t.Fatalf("the smart host got %v: %v", got, err)
	}
	if out, status := inside(bob, "nobody@outside.test"); status != 0 {
		t.Fatalf("old may not send out: %s", out)
	}
	poll(t, 20*time.Second, "the bounce, on new", func() (bool, error) {
		return holding(t, c.box["new"], bob, "Final-Recipient: rfc822; nobody@outside.test") == 1, nil
	})
	drain(t, c.client, 10*time.Second)
	// Without a smart host the same client is told that nobody relays here.
	c.write("crossfade.yaml", string(b))
	if _, err := c.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, status := inside(ann, "friend@outside.test"); status != swaksRcptRefused || !strings.Contains(out, "550 5.7.1") {
		t.Errorf("it relays although it was switched off: %s", out)
	}
	if log, err := os.ReadFile(c.logPath); err != nil || strings.Contains(string(log), "out-secret") {
		t.Errorf("the password is in the log: %v", err)
	}
}
