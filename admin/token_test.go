package admin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLoadOrCreateToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	made, created, err := LoadOrCreateToken(path)
	check(t, err)
	if !created || len(made) != 1 || made[0].Role != RoleAdmin || len(made[0].Value()) != 47 {
		t.Errorf("made %v, created %v", made, created)
	}
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	read, created, err := LoadOrCreateToken(path)
	check(t, err)
	if created || read[0] != made[0] {
		t.Errorf("read another token, created %v", created)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".token-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", made, made[0], made[0], made[0]); strings.Contains(s, made[0].Value()) {
		t.Errorf("the token prints: %s", s)
	}
	check(t, os.Chmod(path, 0o666))
	if _, _, err := LoadOrCreateToken(path); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a file that others may write: %v", err)
	}
	if _, _, err := LoadOrCreateToken(filepath.Join(path, "x", "y")); err == nil {
		t.Error("a token file was made where there is no directory")
	}
}

func TestParseTokens(t *testing.T) {
	got, err := ParseTokens("# tokens\n\nrita read 0123456789abcdef\r\nada\tadmin  fedcba9876543210\n")
	check(t, err)
	if fmt.Sprint(got) != "[rita (read) ada (admin)]" {
		t.Errorf("%v", got)
	}
	for _, tt := range []struct{ text, want string }{
		{"", "no token"},
		{"# nothing", "no token"},
		{"short", "shorter"},
		{"two words0123456789", "line 1: expected"},
		{"x king 0123456789abcdef", "unknown role"},
		{"x read 0123456789abcdef\ny read 0123456789abcdef", "line 2"},
		{"x read 0123456789abcdef\nx read 0123456789abcdee", "line 2"},
		{"0123456789abcdef\nx read 0123456789abcdee", "stands alone"},
		{"x read 0123456789abcd\xff\xff", "header"},
		{"x read sha256:0123", "64 hexadecimal"},
		{"x king sha256:" + strings.Repeat("0a", 32), "unknown role"},
		{"x read sha256:" + strings.Repeat("0a", 33), "64 hexadecimal"},
		{"x read 0123456789abcdef tomorrow", "no end of a token"},
		{"x read 0123456789abcdef\ny read " + mustToken("y", RoleRead, "0123456789abcdef").hashText(), "line 2"},
	} {
		if _, err := ParseTokens(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

func mustToken(name string, role Role, value string) Token {
	t, err := NewToken(name, role, value)
	if err != nil {
		panic(err)
	}
	return t
}

// TestHashedTokenFile: a file that has hashes alone knows its tokens, gives none of
// them away, and may be read by others.
func TestHashedTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	ops, err := MakeToken("ops", RoleOperate)
	check(t, err)
	ops.Expires = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	mon, err := MakeToken("mon", RoleRead)
	check(t, err)
	for _, tok := range []Token{ops, mon} {
		check(t, AddTokenLine(path, tok))
	}
	if err := AddTokenLine(path, mon); err == nil || !strings.Contains(err.Error(), "given before") {
		t.Errorf("the same name again: %v", err)
	}
	text, err := os.ReadFile(path)
	check(t, err)
	if strings.Contains(string(text), ops.Value()[:20]) {
		t.Errorf("the token is in the file:\n%s", text)
	}
	check(t, os.Chmod(path, 0o644))
	tokens, err := LoadTokens(path)
	check(t, err)
	got, ok := tokens.find(ops.Value())
	if !ok || got.Name != "ops" || !got.Expires.Equal(ops.Expires) || got.Value() != "" {
		t.Errorf("found %v %v", got, ok)
	}
	if _, ok := tokens.find(got.hashText()); ok {
		t.Error("the hash is taken for the token")
	}
	check(t, os.WriteFile(path, []byte(mon.Value()+"\n"), 0o600))
	check(t, os.Chmod(path, 0o644))
	if _, err := LoadTokens(path); err == nil || !strings.Contains(err.Error(), "everybody") {
		t.Errorf("a token that everybody can read: %v", err)
	}
	check(t, os.Chmod(path, 0o600))
	check(t, AddTokenLine(path, ops)) // the file of a first start, with its bare token
	tokens, err = LoadTokens(path)
	check(t, err)
	if bare, ok := tokens.find(mon.Value()); !ok || bare.Name != "admin" || bare.Role != RoleAdmin || len(tokens) != 2 {
		t.Errorf("a line beside a bare token: %v", tokens)
	}
	for _, name := range []string{"", "two words", "-x", strings.Repeat("x", 65), "a\x1b[0m"} {
		if _, err := MakeToken(name, RoleRead); err == nil {
			t.Errorf("%q was taken as a name", name)
		}
	}
}

func FuzzParseTokens(f *testing.F) {
	f.Add("rita read 0123456789abcdef")
	f.Add("0123456789abcdef")
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := ParseTokens(text)
		if err == nil && len(tokens) == 0 {
			t.Error("no token and no error")
		}
	})
}

// TestTokenFileKeepsItsOwner: the relay, which is another user than the operator, can
// read the file that a line was added to, and a file that stands behind a link stays
// there.
func TestTokenFileKeepsItsOwner(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "tokens"), filepath.Join(dir, "link")
	check(t, os.WriteFile(path, nil, 0o640))
	check(t, os.Symlink(path, link))
	owner := uint32(os.Geteuid())
	if owner == 0 {
		owner = 12345
		check(t, os.Chown(path, int(owner), int(owner)))
	}
	ops, err := MakeToken("ops", RoleOperate)
	check(t, err)
	check(t, AddTokenLine(link, ops))
	info, err := os.Lstat(path)
	check(t, err)
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != owner || info.Mode() != 0o640 {
		t.Errorf("the file belongs to %d and has the mode %v", uid, info.Mode())
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link: %v %v", info, err)
	}
	if os.Geteuid() != 0 {
		return
	}
	check(t, os.Chown(dir, int(owner), int(owner)))
	check(t, AddTokenLine(filepath.Join(dir, "new"), ops))
	info, err = os.Stat(filepath.Join(dir, "new"))
	check(t, err)
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != owner || info.Mode() != 0o600 {
		t.Errorf("a new file belongs to %d and has the mode %v", uid, info.Mode())
	}
	// The owner of the directory may have made the link, to a file that is not his.
	before, err := os.ReadFile(path)
	check(t, err)
	more, err := MakeToken("more", RoleRead)
	check(t, err)
	err = AddTokenLine(link, more)
	after, _ := os.ReadFile(path)
	if err == nil || !strings.Contains(err.Error(), "symbolic link") || string(after) != string(before) {
		t.Errorf("root followed the link: %v, %q", err, after)
	}
}
