// Package attack does to the relay what strangers do to a host on port 25, and
// counts what came of it: message smuggling, STARTTLS injection, addresses and
// parameters that want to be more than that, relaying; and what must go well
// while it is done: real senders, real backends, real messages unchanged.
//
// Start reading at cases_test.go, which makes the matrix of smuggled messages,
// and settle_test.go, which says what has to become of each of them without
// asking the code that is tested. us_test.go puts them to the server itself,
// backends_test.go through a whole relay into six real mail servers.
//
// docs/security-tests.md is the table; a test compares it with what was counted.
// The short form takes seconds; CROSSFADE_ATTACKS=long (make attacks) sends all
// cases and all messages of ../shared/corpus to all backends.
package attack

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain keeps the mail in memory where it can: what fsync is worth is not
// what is tested here, and it is most of the time.
func TestMain(m *testing.M) {
	if st, err := os.Stat(memoryDir); err == nil && st.IsDir() && os.Getenv("TMPDIR") == "" {
		if err := os.Setenv("TMPDIR", memoryDir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	goleak.VerifyTestMain(m)
}

// memoryDir is a file system in memory that every Linux has.
const memoryDir = "/dev/shm"

// long tells whether the long form was asked for.
func long() bool { return os.Getenv("CROSSFADE_ATTACKS") == "long" }

// figure reports a result that people want to see, as in internal/daemon.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	line := t.Name() + ": " + fmt.Sprintf(format, args...)
	fmt.Println(line)
	name := os.Getenv("CROSSFADE_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
	_, err = fmt.Fprintln(f, line)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
}
