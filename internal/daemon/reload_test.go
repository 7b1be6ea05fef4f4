package daemon

import (
	"net"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/config"
)

const reloadConfig = `hostname: mx.example.org
domains: [example.org]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: ["127.0.0.1:1"]}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old: {smtp: "smtp+insecure://127.0.0.1:1"}
  new: {smtp: "smtp+insecure://127.0.0.1:2"}
queue: {min_free: 0}
`

// parse reads a configuration as if it lay in dir.
func parse(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse(dir+"/crossfade.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestReloadTwice: a key that needs a restart is not in force after the first
// reload, so the second has to name it again, and what depends on it stays as
// it was at the start.
func TestReloadTwice(t *testing.T) {
	dir := t.TempDir()
	d, ctx := serveTest(t, dir, reloadConfig), t.Context()
	changed := strings.NewReplacer("mx.example", "mx2.example", "[example.org]", "[example.org, example.net]").Replace(reloadConfig) +
		"backfill: {connections: 5, patience: 9s, delete_ceiling: never, rates: {old: {user_bytes: 1MiB}}, filter: {exclude: [Junk]}}\n"
	before := d.copier.now.Load()
	for n := range 2 {
		later, err := d.Reload(ctx, parse(t, dir, changed))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(later, []string{"hostname"}) {
			t.Errorf("reload %d names %q as waiting for a restart, want hostname", n+1, later)
		}
	}
	if got := d.mailboxes.sides.Load().host; got != "mx.example.org" {
		t.Errorf("the backfill goes by the host name %s, the SMTP server by mx.example.org", got)
	}
	if !d.router.Ours("example.net") {
		t.Error("a new domain is not in force")
	}
	c := d.copier.now.Load()
	if c.Connections != 5 || c.Patience != 9*time.Second || c.SourceRates.User.Bytes != 1<<20 || c.DeleteCeiling >= 0 || len(c.Filter.Exclude) != 1 {
		t.Errorf("the section backfill is not in force: %+v", c)
	}
	if c.TempDir != d.cfg.Store {
		t.Errorf("large messages wait in %q while they are copied, and not beside the store", c.TempDir)
	}
	if c.Shared == nil || c.Shared != before.Shared {
		t.Error("passes that run and passes to come have no memory in common")
	}
}

// TestReloadLimits: limits of senders follow a reload, for connections that are
// open too.
func TestReloadLimits(t *testing.T) {
	dir := t.TempDir()
	d, ctx := serveTest(t, dir, reloadConfig), t.Context()
	conn, err := net.Dial("tcp", d.SMTPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := textproto.NewConn(conn)
	say := func(line string, want int) {
		t.Helper()
		if line != "" {
			if _, err := r.Cmd("%s", line); err != nil {
				t.Fatal(err)
			}
		}
		if code, text, err := r.ReadResponse(want); err != nil {
			t.Fatalf("%q: %d %s: %v", line, code, text, err)
		}
	}
	say("", 220)
	say("EHLO c.example", 250)
	say("MAIL FROM:<a@b.example>", 250)
	say("RSET", 250)
	limited := strings.Replace(reloadConfig, `smtp: {`, `smtp: {limits: {exempt: [], host: {messages: 1/d}}, `, 1)
	if later, err := d.Reload(ctx, parse(t, dir, limited)); err != nil || len(later) > 0 {
		t.Fatal(later, err)
	}
	say("MAIL FROM:<a@b.example>", 250)
	say("RSET", 250)
	say("MAIL FROM:<a@b.example>", 450)
	if _, err := d.Reload(ctx, parse(t, dir, reloadConfig)); err != nil {
		t.Fatal(err)
	}
	say("MAIL FROM:<a@b.example>", 250)
}

// TestReloadDNSBL: lists and the greet delay come into force with a reload, and
// loopback, which is exempt, has nothing to do with them.
func TestReloadDNSBL(t *testing.T) {
	dir := t.TempDir()
	d, ctx := serveTest(t, dir, reloadConfig), t.Context()
	if w, err := d.welcome(d.cfg.SMTP); err != nil || w.Lists != nil || w.GreetDelay != 0 {
		t.Errorf("the default asks lists or waits: %+v, %v", w, err)
	}
	greeted := func() time.Duration {
		began := time.Now()
		conn, err := net.Dial("tcp", d.SMTPAddrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if code, text, err := textproto.NewConn(conn).ReadResponse(220); err != nil {
			t.Fatal(code, text, err)
		}
		return time.Since(began)
	}
	changed := strings.Replace(reloadConfig, `smtp: {`, `smtp: {greet_delay: 200ms, dnsbl: {lists: [bl.invalid]}, limits: {exempt: []}, `, 1)
	if later, err := d.Reload(ctx, parse(t, dir, changed)); err != nil || len(later) > 0 {
		t.Fatal(later, err)
	}
	if took := greeted(); took < 200*time.Millisecond {
		t.Errorf("greeted after %v", took)
	}
	if _, err := d.Reload(ctx, parse(t, dir, strings.NewReplacer("200ms", "1m", "exempt: []", "exempt: [127.0.0.0/8]").Replace(changed))); err != nil {
		t.Fatal(err)
	}
	if took := greeted(); took > 30*time.Second {
		t.Errorf("an exempt client waited %v", took)
	}
}
