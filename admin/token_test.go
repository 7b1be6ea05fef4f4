package admin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadOrCreateToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	made, created, err := LoadOrCreateToken(path)
	check(t, err)
	if !created || len(made) != 1 || made[0].Role != RoleAdmin || len(made[0].Value()) != 43 {
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
	} {
		if _, err := ParseTokens(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
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
