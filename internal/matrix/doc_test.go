// Package matrix copies a mailbox with everything that is odd about real ones
// between every ordered pair of the servers that a migration meets, and counts.
//
// Each pair goes the same way (matrix_test.go): fill the source, copy, compare;
// change the source, copy again, compare; a third pass and one without a ledger
// must find nothing to copy. What is compared (read_test.go) is read by a client
// of the tests' own and hashed here: nothing of it is the engine's. mbsync is
// asked too (mbsync_test.go). Each pair is a row of the table that is printed in
// the end.
//
// The short form takes a minute; CROSSFADE_MATRIX=long (make matrix) copies
// more messages.
package matrix

import (
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
func long() bool { return os.Getenv("CROSSFADE_MATRIX") == "long" }
