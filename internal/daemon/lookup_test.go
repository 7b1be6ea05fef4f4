package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/config"
)

// TestLookupKey: a key is made once, for its owner alone, and a weak one is
// refused without being shown.
func TestLookupKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "below", "lookup.token")
	first, err := lookupKey(path)
	if err != nil || len(first.Reveal()) < 16 {
		t.Fatalf("%d octets, %v", len(first.Reveal()), err)
	}
	if again, err := lookupKey(path); err != nil || again.Reveal() != first.Reveal() {
		t.Errorf("another key at the second start: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, bad := range []string{"", "hunter2\n", "hunter2 hunter2 hunter2\n", "hunter2-hunter2-hunter2\nhunter2"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := lookupKey(path); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestCheckLookup: a check tells what is wrong, and makes no key.
func TestCheckLookup(t *testing.T) {
	cfg := config.Default()
	if got := checkLookup(cfg); len(got) != 0 {
		t.Errorf("nothing is configured: %+v", got)
	}
	cfg.Lookup.HTTP, cfg.Lookup.TokenFile = []string{"127.0.0.1:0", "unix:/no/such/directory/socket"}, filepath.Join(t.TempDir(), "key")
	got := checkLookup(cfg)
	if len(got) != 2 || !got[0].OK || got[1].OK || got[1].Hint == "" {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(cfg.Lookup.TokenFile); err == nil {
		t.Error("the check made a key")
	}
	if err := os.WriteFile(cfg.Lookup.TokenFile, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := checkLookup(cfg); got[0].OK {
		t.Errorf("a weak key: %+v", got[0])
	}
}

// TestLookupSocket: what a process that died left behind is replaced, what
// somebody answers on is not, and a file is never removed.
func TestLookupSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "cf-sock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "lookup")
	l, err := listenLookup("unix:"+path, "0660")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := listenLookup("unix:"+path, "0660"); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if l, err = listenLookup("unix:"+path, "0600"); err != nil {
		t.Fatalf("a socket that is left: %v", err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenLookup("unix:"+path, "0600"); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q, %v", b, err)
	}
}
