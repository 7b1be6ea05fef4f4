package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func TestPasswordFile(t *testing.T) {
	for content, want := range map[string]string{
		"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", " spaces \n": " spaces ", "pässword\n": "pässword",
	} {
		got, err := (&Login{PasswordFile: writeFile(t, "pw", content, 0o600)}).Password()
		if err != nil || got.Reveal() != want {
			t.Errorf("%q: %q, %v", content, got.Reveal(), err)
		}
	}
	for _, content := range []string{"", "\n", "\r\n", "hunter2\n\n", "one\nhunter2\n", "hunter2\x00", strings.Repeat("x", maxPassword+1)} {
		got, err := (&Login{PasswordFile: writeFile(t, "pw", content, 0o600)}).Password()
		if err == nil {
			t.Errorf("%.20q accepted: %q", content, got.Reveal())
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the message shows the password: %v", err)
		}
	}
	if _, err := (&Login{PasswordFile: "absent"}).Password(); err == nil {
		t.Error("an absent file gave a password")
	}
	if _, err := (&Login{}).Password(); err == nil {
		t.Error("no source gave a password")
	}
}

func TestPasswordEnv(t *testing.T) {
	l := &Login{PasswordEnv: "CROSSFADE_TEST_PASSWORD"}
	if _, err := l.Password(); err == nil || !strings.Contains(err.Error(), "is not set") {
		t.Errorf("not set: %v", err)
	}
	t.Setenv("CROSSFADE_TEST_PASSWORD", "")
	if _, err := l.Password(); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("empty: %v", err)
	}
	t.Setenv("CROSSFADE_TEST_PASSWORD", "hunter2")
	if got, err := l.Password(); err != nil || got.Reveal() != "hunter2" {
		t.Errorf("%q, %v", got.Reveal(), err)
	}
}

func TestPasswordsFile(t *testing.T) {
	content := "\ufeffaddress,login,password\n# a comment\n" +
		"Ann@Example.org,,pw1\r\nbob@bücher.example,DOM\\bob,\"p,w\"\"2\"\ncc@example.org, ccc , pw3 \n"
	logins, err := (&Login{PasswordsFile: writeFile(t, "pw.csv", content, 0o600)}).Passwords()
	if err != nil || logins.Len() != 3 {
		t.Fatalf("%v, %d", err, logins.Len())
	}
	for address, want := range map[string][2]string{
		"ann@example.org": {"Ann@Example.org", "pw1"}, "BOB@xn--bcher-kva.example": {`DOM\bob`, `p,w"2`}, "cc@EXAMPLE.org": {"ccc", " pw3 "},
	} {
		got, ok := logins.Lookup(address)
		if !ok || got.Login != want[0] || got.Password.Reveal() != want[1] {
			t.Errorf("%s: %v %q %q", address, ok, got.Login, got.Password.Reveal())
		}
	}
	if _, ok := logins.Lookup("nobody@example.org"); ok {
		t.Error("found nobody")
	}
	if text := fmt.Sprintf("%+v %#v", logins, logins); strings.Contains(text, "pw1") {
		t.Errorf("passwords show: %s", text)
	}
}

func TestPasswordsFileErrors(t *testing.T) {
	for content, want := range map[string]string{
		"a@b.example,l,hunter2\na@b.example,l,hunter2\n":      "line 2: the same address as in line 1",
		"# x\n\na@b.example,hunter2\n":                        "line 3: 2 fields instead of 3",
		"a@b.example,l,hunter2,hunter2\n":                     "line 1: 4 fields",
		"hunter2,l,x\n":                                       "line 1: the first field is not an address",
		"a@b.example,l,\n":                                    "line 1: the password is empty",
		"a@b.example,l,\"hunter2\nhunter2\"\n":                "line 1: the password holds more than one line",
		"a@b.example,l,x\nb@b.example,l,hunter2\"hunter2\n":   "line 2",
		"a@b.example,l,x\nb@b.example,l,\"hunter2 no end\n\n": "line 2",
	} {
		_, err := (&Login{PasswordsFile: writeFile(t, "pw.csv", content, 0o600)}).Passwords()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", content, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the message shows the line: %v", err)
		}
	}
	if _, err := (&Login{}).Passwords(); err == nil {
		t.Error("no file gave logins")
	}
}

func FuzzPasswords(f *testing.F) {
	f.Add("address,login,password\na@b.example,l,p\n")
	f.Add("a@b,\"\",\"x\"\n#\n")
	f.Fuzz(func(t *testing.T, text string) {
		logins, err := parsePasswords(strings.NewReader(text))
		if err == nil {
			for address, login := range logins.byAddress {
				if got, ok := logins.Lookup(address); !ok || got != login || login.Password.IsZero() || login.Login == "" {
					t.Fatalf("%q: %v %+v", address, ok, login)
				}
			}
		}
	})
}

func TestWarnings(t *testing.T) {
	open := writeFile(t, "open.pw", "x", 0o644)
	closed := writeFile(t, "closed.pw", "x", 0o640)
	c := mustParse(t, fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
smtp: {tls: {cert: c.pem, key: %[1]s}}
admin: {listen: "0.0.0.0:8025", insecure: true}
backends:
  old: {smtp: "smtp://old.internal", imap: "imap+insecure://old.internal", imap_login: {user: m, password_file: %[1]s}, tls: {insecure_skip_verify: true}}
  new: {smtp: "smtp://new.internal", imap: "imap+insecure://127.0.0.1", imap_login: {user: m, password_file: %[2]s}}
queue: {expire: 1h}
`, open, closed))
	var keys []string
	for _, w := range c.Warnings() {
		key, _, _ := strings.Cut(w, ":")
		keys = append(keys, key)
	}
	want := "backends.old.imap_login.password_file backends.old.tls.insecure_skip_verify backends.old.imap smtp.tls.key admin.insecure queue.expire"
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if w := mustParse(t, minimal).Warnings(); w != nil {
		t.Errorf("warnings without reason: %q", w)
	}
}
