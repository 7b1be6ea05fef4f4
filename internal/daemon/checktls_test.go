package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckMakesNothing: a check that root runs leaves nothing behind that the relay, as
// another user, could not read: it once made an account for another authority, and the
// relay did not start any more.
func TestCheckMakesNothing(t *testing.T) {
	dir := t.TempDir()
	cfg := parse(t, dir, strings.Replace(reloadConfig, `resolvers:`, `tls: {acme: {directory: "https://ca.test/dir", http01: "127.0.0.2:0", accept_terms: true}}, resolvers:`, 1))
	if f := checkStore(cfg.Store); !f.OK {
		t.Error(f.Text)
	}
	if _, err := os.Stat(cfg.Store); err == nil {
		t.Error("there is a store now")
	}
	for _, want := range []string{"asked for at the start", "the log of crossfade serve says why"} {
		if f := checkTLS(cfg); len(f) != 1 || !f[0].OK || !strings.Contains(f[0].Text, want) {
			t.Errorf("check says %+v, want %q", f, want)
		}
		if err := os.MkdirAll(cfg.ACMEDir(), 0o700); err != nil { // what another authority leaves
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(cfg.ACMEDir()); err != nil || len(left) > 0 {
		t.Errorf("the check made %v, %v", left, err)
	}
}

// TestCheckTemp: on a Redis large messages wait in the system's directory, which an image
// may not have.
func TestCheckTemp(t *testing.T) {
	if f := checkTemp(); !f.OK {
		t.Error(f.Text)
	}
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "nothing"))
	if f := checkTemp(); f.OK || !strings.Contains(f.Hint, "TMPDIR") {
		t.Errorf("check says %+v", f)
	}
}
