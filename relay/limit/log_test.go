package limit

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestQuiet: a flood is a few lines, what was left out is told, and other kinds
// of lines are not held up by it.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(Quiet(slog.NewTextHandler(&out, nil))).With("conn", 1)
		for i := range 10_000 {
			log.Info("refused rcpt", "i", i)
		}
		log.Info("something else")
		time.Sleep(time.Second)
		log.WithGroup("g").Info("refused rcpt", "i", -1)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != logBurst+2 {
			t.Errorf("%d lines", len(lines))
		}
		if last := lines[len(lines)-1]; !strings.Contains(last, fmt.Sprintf("unlogged=%d", 10_000-logBurst)) || !strings.Contains(last, "conn=1") {
			t.Error(last)
		}
		for i := range 1000 {
			log.Info(fmt.Sprint("kind ", i))
		}
		if q := log.Handler().(*quiet); len(q.book.kinds) > logKinds+1 {
			t.Errorf("%d kinds are remembered", len(q.book.kinds))
		}
	})
}
