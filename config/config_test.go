package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

const minimal = `hostname: mx.example.org
domains: [example.org]
backends:
  old: {smtp: "smtp://old.internal"}
  new: {smtp: "smtp://new.internal"}
`

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("crossfade.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestContractExample takes the file of the contract, with what is not built yet left out.
func TestContractExample(t *testing.T) {
	c := mustParse(t, `
hostname: mx.example.org            # greeting
domains: [example.org, example.net]
store: ./data
smtp:
  listen: ["0.0.0.0:25"]
  tls: {cert: c.pem, key: k.pem}
  max_message_size: 50MiB
  trusted: [10.0.0.0/8]
admin:
  listen: 127.0.0.1:8025
  token_file: ./admin.token
backends:
  old:
    smtp: smtp+starttls://old.internal:25
    imap: imaps://old.internal:993
    imap_login: {user: master, password_file: ./old.pw, as: authzid}
  new: {smtp: "lmtp+unix:///run/lmtp"}
routing:
  unknown: verify
  subaddress: "+"
cutover:
  approve: manual
  max_hold: 10m
  window: 7d
queue:
  expire: 5d
  delay_notice: 4h
`)
	want := Default()
	want.Hostname, want.Domains = "mx.example.org", []string{"example.org", "example.net"}
	if got := Changed(want, c); !cmp.Equal(got, []string{
		"store", "smtp.tls.cert", "smtp.tls.key", "smtp.trusted", "admin.token_file", "backends.old.smtp", "backends.old.imap",
		"backends.old.imap_login.user", "backends.old.imap_login.password_file", "backends.new.smtp", "lookup.token_file",
	}) {
		t.Errorf("keys that differ from the defaults: %q", got)
	}
	if time.Duration(c.Cutover.Window) != 7*24*time.Hour || int64(c.SMTP.MaxMessageSize) != 50<<20 {
		t.Errorf("window %v, size %v", c.Cutover.Window, c.SMTP.MaxMessageSize)
	}
}

func TestPathsAreRelativeToTheFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "etc", "crossfade.yaml")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(minimal, `"smtp://old.internal"`, `"smtp://old.internal", imap: "imaps://old.internal", imap_login: {user: m, password_file: ../pw}, tls: {ca: /abs/ca.pem}`, 1)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		c.Store:                               filepath.Join(dir, "etc", "data"),
		c.Admin.TokenFile:                     filepath.Join(dir, "etc", "admin.token"),
		c.Backends.Old.IMAPLogin.PasswordFile: filepath.Join(dir, "pw"),
		c.Backends.Old.TLS.CA:                 "/abs/ca.pem",
		c.SMTP.TLS.Cert:                       "",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "absent.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory was read")
	}
	huge := filepath.Join(dir, "huge.yaml")
	if err := os.WriteFile(huge, []byte(minimal+strings.Repeat("# padding\n", 1<<17)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(huge); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("huge file: %v", err)
	}
	if _, err := Parse("x", make([]byte, maxFile+1)); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("huge bytes: %v", err)
	}
}

// TestHostileFilesEndSoon: the library needs minutes for some of these (quadratic in nesting and in keys).
func TestHostileFilesEndSoon(t *testing.T) {
	var keys strings.Builder
	for i := range 12000 {
		fmt.Fprintf(&keys, "k%d: v\n", i)
	}
	for name, text := range map[string]string{
		"brackets": "a: " + strings.Repeat("[", 1<<17),
		"braces":   strings.Repeat("{a: ", 1<<15),
		"dashes":   strings.Repeat("- ", 1<<16),
		"question": strings.Repeat("? ", 1<<16),
		"anchors":  "a: " + strings.Repeat("&a ", 1<<15),
		"tags":     "a: " + strings.Repeat("!a ", 1<<15),
		"keys":     keys.String(),
		"nested":   strings.Repeat(" ", 1000) + "a:\n",
		"quote":    `a: "` + strings.Repeat("x", 1<<16),
		"spaces":   "a: " + strings.Repeat("x ", 1<<16),
		"entries":  minimal + "smtp:\n  listen:\n" + strings.Repeat("  - x\n", 1<<13),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			if _, err := Parse("x.yaml", []byte(text)); err == nil {
				t.Error("accepted")
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestValidateWithoutFile(t *testing.T) {
	c := Default()
	err := c.Validate()
	var keys []string
	for _, p := range Problems(err) {
		keys = append(keys, p.Key)
		if p.File != "" || p.Line != 0 || p.Excerpt != "" {
			t.Errorf("a place in no file: %+v", p)
		}
	}
	if !cmp.Equal(keys, []string{"hostname", "domains", "backends.old.smtp", "backends.new.smtp"}) {
		t.Errorf("keys: %q", keys)
	}
	c.Domains = []string{"Example.org"}
	if err := c.Validate(); !strings.Contains(err.Error(), `domains[0]: "Example.org" is not in its normal form: write "example.org"`) {
		t.Errorf("not normalised: %v", err)
	}
}

func TestAdminExposure(t *testing.T) {
	for listen, ok := range map[string]bool{
		"127.0.0.1:8025": true, "127.8.0.1:1": true, "[::1]:8025": true, "localhost:8025": true, "127.0.0.1:0": true,
		"[::ffff:127.0.0.1]:1": true, ":8025": false, "0.0.0.0:8025": false, "[::]:8025": false, "10.0.0.1:8025": false,
	} {
		text := minimal + fmt.Sprintf("admin: {listen: %q}\n", listen)
		if _, err := Parse("x", []byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", listen, err)
		}
		for _, extra := range []string{"insecure: true", "tls: {cert: c, key: k}"} {
			text := minimal + fmt.Sprintf("admin: {listen: %q, %s}\n", listen, extra)
			if _, err := Parse("x", []byte(text)); err != nil {
				t.Errorf("%s with %s: %v", listen, extra, err)
			}
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "90s": 90 * time.Second, "7d": 168 * time.Hour, "4h30m": 270 * time.Minute, "1d2h3m4s5ms": 93784005 * time.Millisecond,
		"48h": 48 * time.Hour, "007s": 7 * time.Second, "106751d": 106751 * day,
	} {
		if got, err := ParseDuration(text); err != nil || time.Duration(got) != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for text, offset := range map[string]int{
		"": 0, "5": 0, "-5s": 0, "s": 0, "5S": 1, "1.5h": 1, "1h1h": 3, "30m4h": 4, "1d 2h": 1, "5sx": 1, "7days": 1, "1w": 1,
		"106752d": 0, "106751d24h": 7, "99999999999999999999s": 0, "1h5": 2, "\u06611h": 0, "1e3s": 1,
	} {
		_, err := ParseDuration(text)
		var v *valueError
		if !errors.As(err, &v) || v.offset != offset {
			t.Errorf("%q: %v, offset %+v, want %d", text, err, v, offset)
		}
	}
	for _, d := range []Duration{0, 1e6, Duration(day), Duration(day + time.Second), Duration(math.MaxInt64 / time.Millisecond * time.Millisecond)} {
		if back, err := ParseDuration(d.String()); err != nil || back != d {
			t.Errorf("%d: %s: %v, %v", d, d, back, err)
		}
	}
	if got := Duration(36 * time.Hour).String(); got != "1d12h" {
		t.Error(got)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "50MiB": 50 << 20, "10MB": 10e6, "512k": 512 << 10, "512K": 512 << 10, "1g": 1 << 30, "2 TiB": 2 << 40, "7B": 7,
		"3kb": 3000, "8388607TiB": 8388607 << 40,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, int64(got), err)
		}
	}
	for text, offset := range map[string]int{
		"": 0, "-1": 0, "MB": 0, "1.5GB": 1, "5 megs": 1, "5  MB": 1, "1M2": 1, "8388608TiB": 0, "9223372036854775808": 0, "1Mib/s": 1,
	} {
		_, err := ParseSize(text)
		var v *valueError
		if !errors.As(err, &v) || v.offset != offset {
			t.Errorf("%q: %v, offset %+v, want %d", text, err, v, offset)
		}
	}
	for _, s := range []Size{0, 1, 1000, 1024, 10e6, 50 << 20, 1001, math.MaxInt64} {
		if back, err := ParseSize(s.String()); err != nil || back != s {
			t.Errorf("%d: %s: %v, %v", int64(s), s, back, err)
		}
	}
}

func TestSecretNeverShows(t *testing.T) {
	type holder struct {
		S  Secret
		P  *Secret
		In map[string]Secret
		in Secret // fmt calls no methods here
	}
	s := NewSecret("hunter2")
	h := holder{S: s, P: &s, In: map[string]Secret{"k": s}, in: s}
	var b strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T%v"} {
		fmt.Fprintf(&b, verb+"\n", s)
		fmt.Fprintf(&b, verb+"\n", h)
		fmt.Fprintf(&b, verb+"\n", &s)
	}
	for _, encode := range []func(any) ([]byte, error){json.Marshal, func(v any) ([]byte, error) { return yaml.Marshal(v) }} {
		out, err := encode(h)
		if err != nil || !strings.Contains(string(out), "redacted") {
			t.Errorf("%s: %v", out, err)
		}
		b.Write(out)
	}
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "secret", s, "holder", h)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "secret", s, "pointer", &s, "holder", h)
	fmt.Fprintln(&b, fmt.Errorf("wrapped %v: %w", s, errors.New(s.String())))
	if strings.Contains(b.String(), "hunter2") || strings.Contains(b.String(), fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("the secret shows:\n%s", b.String())
	}
	if s.Reveal() != "hunter2" || s.IsZero() || !(Secret{}).IsZero() {
		t.Error("Reveal or IsZero")
	}
}

func TestEndpoint(t *testing.T) {
	for text, want := range map[string]Endpoint{
		"smtp://old.internal":              {"smtp", "smtp", TLSOpportunistic, "tcp", "old.internal:25", "old.internal"},
		"SMTP+StartTLS://OLD.internal.":    {"smtp+starttls", "smtp", TLSRequired, "tcp", "old.internal:25", "old.internal"},
		"smtps://192.0.2.1/":               {"smtps", "smtp", TLSImplicit, "tcp", "192.0.2.1:465", "192.0.2.1"},
		"smtp+insecure://[2001:DB8::1]:26": {"smtp+insecure", "smtp", TLSNone, "tcp", "[2001:db8::1]:26", "2001:db8::1"},
		"smtp://[::1]":                     {"smtp", "smtp", TLSOpportunistic, "tcp", "[::1]:25", "::1"},
		"lmtp://mail_store":                {"lmtp", "lmtp", TLSOpportunistic, "tcp", "mail_store:24", "mail_store"},
		"lmtp+unix:///run/dovecot/lmtp":    {"lmtp+unix", "lmtp", TLSNone, "unix", "/run/dovecot/lmtp", ""},
		"imaps://bücher.example":           {"imaps", "imap", TLSImplicit, "tcp", "xn--bcher-kva.example:993", "xn--bcher-kva.example"},
		"imap+starttls://h:1":              {"imap+starttls", "imap", TLSRequired, "tcp", "h:1", "h"},
		"imap+insecure://localhost":        {"imap+insecure", "imap", TLSNone, "tcp", "localhost:143", "localhost"},
	} {
		got, err := ParseEndpoint(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if again, err := ParseEndpoint(got.String()); err != nil || again != got {
			t.Errorf("%s: again from %s: %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", "old.internal:25", "smtp:", "smtp://", "smtp://:25", "smtp://h:", "smtp://h:0", "smtp://h:65536", "smtp://h:+25", "smtp://h:x", "smtp://a b",
		"smtp://u:p@h", "smtp://u@h", "smtp://h/path", "smtp://h?x=y", "smtp://h#f", "smtp://[::1", "smtp://::1:25", "smtp://1.2.3.999", "smtp://h..x",
		"smtp://-h", "imap://h", "lmtps://h", "unix:///x", "lmtp+unix://h/x", "lmtp+unix:///", "http://h", "smtp://h\x00", "smtp://[h]:25x",
	} {
		if got, err := ParseEndpoint(text); err == nil {
			t.Errorf("%q accepted: %+v", text, got)
		} else if strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: the message shows credentials: %v", text, err)
		}
	}
}

func TestNormalDomain(t *testing.T) {
	for name, want := range map[string]string{
		"example.org": "example.org", "EXAMPLE.Org.": "example.org", "Bücher.example": "xn--bcher-kva.example", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"straße.example": "xn--strae-oqa.example", "例え。テスト": "xn--r8jz45g.xn--zckzah", "r3---x.example": "r3---x.example", "1and1.com": "1and1.com",
		"bu\u0308cher.example": "xn--bcher-kva.example",
	} {
		if got, err := NormalDomain(name); err != nil || got != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{
		"", ".", "org", "a..b", ".a.b", "a.b..", "-a.b", "a-.b", "a_b.c", "a b.c", "1.2.3.4", "1.2.3.999", "[1.2.3.4]", "::1", "*.a.b", "x@a.b", "xn--a.example",
		strings.Repeat("a", 64) + ".b", strings.Repeat("a.", 127) + "b", "a\x00.b", "a\u200d.b", "\xff.example", "a.b/c", "a.b\n",
	} {
		if got, err := NormalDomain(name); err == nil {
			t.Errorf("%q accepted: %q", name, got)
		}
	}
}

func TestDiff(t *testing.T) {
	before := mustParse(t, minimal)
	if got := Diff(before, mustParse(t, "# moved a line\n"+minimal)); got != nil {
		t.Errorf("nothing changed, but %q", got)
	}
	after := mustParse(t, strings.Replace(minimal, "mx.", "mx2.", 1)+`
store: ./elsewhere
smtp: {listen: ["0.0.0.0:26"], max_connections: 5, max_recipients: 5, trusted: []}
admin: {listen: "127.0.0.1:9000", token_file: other}
queue: {expire: 6d}
routing: {unknown: reject}
`)
	if got, want := Diff(before, after), []string{"hostname", "store", "smtp.listen", "smtp.max_recipients", "admin.listen", "admin.token_file", "queue.expire"}; !cmp.Equal(got, want) {
		t.Errorf("Diff: %q", got)
	}
	if got, want := Changed(before, after), []string{"hostname", "store", "smtp.listen", "smtp.max_connections", "smtp.max_recipients", "admin.listen", "admin.token_file", "routing.unknown", "queue.expire"}; !cmp.Equal(got, want) {
		t.Errorf("Changed: %q", got)
	}
	login := mustParse(t, strings.Replace(minimal, `"smtp://old.internal"`, `"smtp://old.internal", imap: "imaps://h", imap_login: {user: m, password_env: E}`, 1))
	want := []string{"backends.old.imap", "backends.old.imap_login.user", "backends.old.imap_login.password_env"}
	if got := Changed(before, login); !cmp.Equal(got, want) {
		t.Errorf("added section: %q", got)
	}
	want = []string{"backends.old.imap", "backends.old.imap_login.password_env", "backends.old.imap_login.user"}
	if got := Changed(login, before); !cmp.Equal(got, want) {
		t.Errorf("removed section: %q", got)
	}
}

// TestTags proves that every key has its meaning, and that bounds and enumerations are usable and hold the default.
func TestTags(t *testing.T) {
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() {
				continue
			}
			key, doc := prefix+field.Tag.Get("yaml"), field.Tag.Get("doc")
			if field.Tag.Get("yaml") == "" || len(doc) < 15 || !strings.HasSuffix(doc, ".") {
				t.Errorf("%s (%s.%s): no key, or no meaning that is a sentence: %q", key, v.Type(), field.Name, doc)
			}
			value := v.Field(i)
			if value.Kind() == reflect.Pointer {
				value = reflect.New(value.Type().Elem()).Elem()
			}
			if isSection(value.Type()) {
				walk(value, key+".")
				continue
			}
			for _, bound := range []string{"min", "max"} {
				text := field.Tag.Get(bound)
				if text != "" && tagNumber(value, text) == 0 && text != "0" && text != "0s" {
					t.Errorf("%s: bound %s=%q cannot be read", key, bound, text)
				}
			}
			if value.CanInt() && field.Tag.Get("min") == "" {
				t.Errorf("%s: a number without a lower bound", key)
			}
		}
	}
	walk(reflect.ValueOf(Default()).Elem(), "")
	reference := Reference()
	for _, l := range leaves(reflect.ValueOf(Default()).Elem(), "") {
		if !strings.HasPrefix(l.key, "backends.new.") && !strings.HasPrefix(l.key, "backfill.rates.new.") && !strings.Contains(reference, "| `"+l.key+"` |") {
			t.Errorf("the reference lacks %s", l.key)
		}
	}
	for _, want := range []string{"`backends.old.imap_login.as` | `authzid`", "| `queue.expire` | `5d` | restart |", "| `store` | `./data` | restart |", "One of: verify, reject, old, new."} {
		if !strings.Contains(reference, want) {
			t.Errorf("the reference lacks %s", want)
		}
	}
	_, block, _ := strings.Cut(reference, "```yaml\n")
	block, _, _ = strings.Cut(block, "```")
	mustParse(t, block)
}

// TestExample parses the example as it is, and with every commented key switched on.
func TestExample(t *testing.T) {
	mustParse(t, Example())
	var all []string
	for line := range strings.Lines(Example()) {
		if rest, found := strings.CutPrefix(strings.TrimLeft(line, " "), "# "); found && strings.Contains(rest, ":") && rest[0] >= ' ' && (rest[0] == ' ' || rest[0] >= 'a') {
			line = strings.Replace(line, "# ", "", 1)
		}
		all = append(all, line)
	}
	c := mustParse(t, strings.Join(all, ""))
	if c.Backends.New.IMAPLogin == nil || c.Backends.New.IMAPLogin.As != (LoginAs{LoginSuffix, "*"}) || !c.SMTP.TLS.Enabled() {
		t.Errorf("the commented keys did not take: %+v", c)
	}
}

func TestNearest(t *testing.T) {
	for _, c := range []struct{ word, want string }{
		{"Domain", "domains"}, {"hostnmae", "hostname"}, {"host", ""}, {"xyz", ""}, {"loog", "log"}, {"backend", "backends"}, {strings.Repeat("a", 1000), ""},
	} {
		if got := nearest(c.word, knownKeys()[""]); got != c.want {
			t.Errorf("%s: %q, want %q", c.word, got, c.want)
		}
	}
}

// TestManyProblems: a file of another kind does not fill the terminal.
func TestManyProblems(t *testing.T) {
	for name, text := range map[string]string{
		"decode":   minimal + "smtp:\n  trusted:\n" + strings.Repeat("  - x\n", 200),
		"validate": minimal + "smtp:\n  listen:\n" + strings.Repeat("  - x\n", 200),
	} {
		_, err := Parse("x", []byte(text))
		all := Problems(err)
		if len(all) != maxProblems+1 || all[maxProblems].Text != "and 150 more problems" {
			t.Errorf("%s: %d problems, the last: %v", name, len(all), all[len(all)-1])
		}
	}
}

// FuzzParse: never a panic; what is accepted is valid, and stays so.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/bad/*.yaml", "testdata/good/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if data, err := os.ReadFile(file); err == nil {
				f.Add(data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("dir/fuzz.yaml", data)
		again, errAgain := Parse("dir/fuzz.yaml", data)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("two answers for one file:\n%v\n%v", err, errAgain)
		}
		if err != nil {
			if len(Problems(err)) == 0 {
				t.Fatalf("an error without a Problem: %v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("accepted, then refused: %v", err)
		}
		if diff := Changed(c, again); diff != nil {
			t.Fatalf("two readings differ: %q", diff)
		}
		for _, e := range []Endpoint{c.Backends.Old.SMTP, c.Backends.New.SMTP, c.Backends.Old.IMAP} {
			if back, err := ParseEndpoint(e.String()); !e.IsZero() && (err != nil || back != e) {
				t.Fatalf("%+v from %s: %+v, %v", e, e, back, err)
			}
		}
	})
}
