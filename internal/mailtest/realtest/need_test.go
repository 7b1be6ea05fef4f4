package realtest_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"crossfade/internal/mailtest/realtest"
)

// recorder notes how a test would have ended.
type recorder struct {
	testing.TB
	verdict string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.verdict = "fatal: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Skipf(format string, args ...any) {
	r.verdict = "skip: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestNeed(t *testing.T) {
	for ci, want := range map[string]string{"true": "fatal: ", "": "skip: SKIPPED"} {
		t.Setenv("CI", ci)
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			realtest.Need(r, "no-such-program")
		}()
		<-done
		if !strings.HasPrefix(r.verdict, want) || !strings.Contains(r.verdict, "no-such-program") {
			t.Errorf("CI=%q: %q, want %s", ci, r.verdict, want)
		}
	}
}
