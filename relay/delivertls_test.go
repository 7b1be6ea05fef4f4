package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
	"crossfade/router"
)

// tlsSink is a server with STARTTLS and its authority.
func tlsSink(t *testing.T, cfg mailtest.SinkConfig) (*mailtest.Sink, *x509.CertPool) {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.TLS, err = ca.ServerConfig(); err != nil {
		t.Fatal(err)
	}
	cfg.STARTTLS = cfg.Socket == ""
	sink, err := mailtest.NewSink(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	return sink, ca.Pool()
}

// A message that requires TLS goes over checked TLS to a server that offers
// REQUIRETLS, or over a socket, and otherwise back to its sender at once; what has
// no sender goes as well as it can.
func TestDeliverRequireTLS(t *testing.T) {
	outNoLeaks(t)
	offers := []string{"PIPELINING", "8BITMIME", "SIZE", "DSN", "REQUIRETLS"}
	for _, c := range []struct {
		name   string
		sink   mailtest.SinkConfig
		mode   smtpclient.Mode
		null   bool
		kind   queue.Kind
		status string // of the bounce
		param  bool   // REQUIRETLS was passed on
	}{
		{name: "checked and offered", sink: mailtest.SinkConfig{Extensions: offers}, mode: smtpclient.Required, kind: queue.Done, param: true},
		{name: "not offered", mode: smtpclient.Required, kind: queue.Fail, status: "5.7.30"},
		{name: "not checked", sink: mailtest.SinkConfig{Extensions: offers}, mode: smtpclient.Opportunistic, kind: queue.Fail, status: "5.7.10"},
		{name: "in clear", sink: mailtest.SinkConfig{Extensions: offers}, mode: smtpclient.Insecure, kind: queue.Fail, status: "5.7.10"},
		{name: "socket", sink: mailtest.SinkConfig{LMTP: true}, kind: queue.Done},
		{name: "without a sender, not offered", mode: smtpclient.Required, null: true, kind: queue.Done},
		{name: "without a sender, in clear", mode: smtpclient.Insecure, null: true, kind: queue.Done},
		{name: "without a sender, in clear, offered there", sink: mailtest.SinkConfig{Extensions: offers}, mode: smtpclient.Insecure, null: true, kind: queue.Done},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.sink.LMTP {
				c.sink.Socket = filepath.Join(t.TempDir(), "lmtp")
			}
			sink, pool := tlsSink(t, c.sink)
			s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
				b[mail.Old].Target = outTarget(sink)
				b[mail.Old].Target.Mode, b[mail.Old].Target.TLS = c.mode, &tls.Config{RootCAs: pool}
				if c.sink.LMTP {
					b[mail.Old].Target.Network, b[mail.Old].Target.LMTP = "unix", true
				}
			})
			id := s.q.put(outBody, mail.Old, func(m *outMessage) {
				m.env.RequireTLS, m.env.Ret = true, mail.RetFull
				if c.null {
					m.env.From = mail.Address{}
				}
			}, "a@b.test")
			r := s.q.outKinds(t, id)[0]
			if r.kind != c.kind {
				t.Fatalf("%s: %s", r.kind, r.last)
			}
			got := sink.Messages()
			if (len(got) == 1) != (c.kind == queue.Done) {
				t.Fatalf("%d messages arrived", len(got))
			}
			if c.kind == queue.Done {
				if slices.Contains(got[0].FromParams, "REQUIRETLS") != c.param || slices.Contains(got[0].FromParams, "RET=FULL") {
					t.Errorf("MAIL with %q", got[0].FromParams)
				}
				return
			}
			n := s.q.notices()
			if len(n) != 1 || !n[0].Envelope.RequireTLS || !strings.Contains(string(n[0].Body), "Status: "+c.status) || strings.Contains(string(n[0].Body), "\r\n\r\ntext\r\n") {
				t.Errorf("the report: %+v\n%s", n, n[0].Body)
			}
			if s.alarmCount() != 1 {
				t.Errorf("%d alarms", s.alarmCount())
			}
			// The connection and the backend are as good as before.
			plain := s.q.put(outBody, mail.Old, nil, "a@b.test")
			if r := s.q.outKinds(t, plain)[0]; r.kind != queue.Done {
				t.Errorf("the next message: %s: %s", r.kind, r.last)
			}
			if total, _ := sink.Connections(); total != 1 {
				t.Errorf("%d connections", total)
			}
		})
	}
}

// What may have arrived at an earlier attempt, or wants a policy that is not to be had
// now, is tried again.
func TestDeliverRequireTLSLater(t *testing.T) {
	outNoLeaks(t)
	sink, pool := tlsSink(t, mailtest.SinkConfig{}) // without REQUIRETLS
	gone := func(context.Context) (smtpclient.Rule, error) { return smtpclient.Rule{}, nil }
	for _, c := range []struct {
		name   string
		mode   smtpclient.Mode
		policy func(context.Context) (smtpclient.Rule, error)
		item   queue.Item
		says   string
	}{
		{"it was in doubt", smtpclient.Required, nil, queue.Item{Doubt: queue.Doubt{Route: mail.Old, At: time.Now(), Since: time.Now()}}, "does not support REQUIRETLS"},
		{"an earlier attempt", smtpclient.Required, nil, queue.Item{Attempts: 1, LastReply: "451 later"}, "does not support REQUIRETLS"},
		{"no policy", smtpclient.Opportunistic, gone, queue.Item{}, "cannot be reached over TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
				b[mail.Old].Target = outTarget(sink)
				b[mail.Old].Target.Mode, b[mail.Old].Target.TLS, b[mail.Old].Target.Policy = c.mode, &tls.Config{RootCAs: pool}, c.policy
			})
			c.item.Since = time.Now()
			id := s.q.put(outBody, mail.Old, func(m *outMessage) { m.env.RequireTLS, m.rcpts[0].item = true, c.item }, "a@b.test")
			r := s.q.wait(t, id, func(rs []outRcpt) bool { return strings.Contains(rs[0].last, c.says) })[0]
			if r.kind != queue.Retry || len(s.q.notices()) != 0 || sink.Count() != 0 || s.alarmCount() != 1 {
				t.Errorf("%s: %s; %d notices, %d messages, %d alarms", r.kind, r.last, len(s.q.notices()), sink.Count(), s.alarmCount())
			}
		})
	}
}

// TLS-Required: No sets aside what the server's owner publishes, for this message
// alone, and never what the operator wants.
func TestDeliverTLSOptional(t *testing.T) {
	outNoLeaks(t)
	sink, _ := tlsSink(t, mailtest.SinkConfig{})
	policy := func(context.Context) (smtpclient.Rule, error) {
		return smtpclient.Rule{Name: "tlsa", Require: true, Alone: true, Verify: func(tls.ConnectionState) error { return errors.New("another key") }}, nil
	}
	for _, mode := range []smtpclient.Mode{smtpclient.Opportunistic, smtpclient.Required} {
		var counted atomic.Int64
		s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
			b[mail.Old].Target = outTarget(sink)
			b[mail.Old].Target.Mode, b[mail.Old].Target.Policy, b[mail.Old].Failures = mode, policy, 100
			b[mail.Old].Target.TLSResult = func(rule string, _ error) {
				if counted.Add(1); rule != "tlsa" {
					t.Errorf("a connection under the policy %q is counted: nobody asked for one", rule)
				}
			}
		})
		for _, c := range []struct {
			optional bool
			want     queue.Kind
		}{{false, queue.Retry}, {true, queue.Done}, {false, queue.Retry}} {
			want := c.want
			if mode == smtpclient.Required { // its certificate is nobody's, and the operator wants it checked
				want = queue.Retry
			}
			id := s.q.put(outBody, mail.Old, func(m *outMessage) { m.env.TLSOptional = c.optional }, "a@b.test")
			if r := s.q.outKinds(t, id)[0]; r.kind != want {
				t.Errorf("%s, optional %t: %s: %s", mode, c.optional, r.kind, r.last)
			}
		}
		if counted.Load() < 3 {
			t.Errorf("%d connections were counted", counted.Load())
		}
	}
}

// REQUIRETLS is offered under TLS alone, taken there alone, and kept; TLS-Required
// counts without it.
func TestRequireTLSOffered(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ca.ServerConfig("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false} {
		s := newSite(t, router.PolicyReject, func(c *ServerConfig) {
			c.TLS, c.RequireTLS = func() *tls.Config { return conf }, on
		})
		c := s.dial()
		if strings.Contains(c.want("220")+c.cmd("EHLO client.example", "250"), "REQUIRETLS") {
			t.Error("REQUIRETLS is offered in clear")
		}
		if on {
			c.cmd("MAIL FROM:<a@client.example> REQUIRETLS", "555 5.5.4")
			c.cmd("RSET", "250")
		}
		c.startTLS(&tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example.org"})
		if got := c.cmd("EHLO client.example", "250"); strings.Contains(got, "REQUIRETLS") != on {
			t.Errorf("offered: %q, want %t", got, on)
		}
		if !on {
			c.cmd("MAIL FROM:<a@client.example> REQUIRETLS", "504")
			continue
		}
		for header, want := range map[string][2]bool{"": {true, false}, "TLS-Required: No\r\n": {true, false}} {
			c.cmd("MAIL FROM:<a@client.example> REQUIRETLS", "250")
			c.cmd("RCPT TO:<ann@example.org>", "250")
			c.cmd("DATA", "354")
			c.send(header + "Subject: x\r\n\r\nx\r\n.\r\n")
			c.want("250")
			if env := s.queue.last(t).env; env.RequireTLS != want[0] || env.TLSOptional != want[1] {
				t.Errorf("%q: %t, %t", header, env.RequireTLS, env.TLSOptional)
			}
		}
		for header, want := range map[string]bool{"tls-required:\r\n  NO \r\n": true, "TLS-Required: yes\r\n": false, "": false, "X: TLS-Required: no\r\n": false} {
			c.cmd("MAIL FROM:<a@client.example>", "250")
			c.cmd("RCPT TO:<ann@example.org>", "250")
			c.cmd("DATA", "354")
			c.send(header + "Subject: x\r\n\r\nTLS-Required: No\r\n.\r\n")
			c.want("250")
			if env := s.queue.last(t).env; env.RequireTLS || env.TLSOptional != want {
				t.Errorf("%q: %t, %t", header, env.RequireTLS, env.TLSOptional)
			}
		}
	}
}
