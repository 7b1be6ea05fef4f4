package daemon_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"crossfade/config"
	"crossfade/internal/daemon"
	"crossfade/internal/mailtest"
)

// TestCheckAsksForNobody: a side that takes mail for an address that cannot exist is told of, with what it means for
// routing.unknown; so is one that does not say.
func TestCheckAsksForNobody(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	side := func(reply func() mailtest.Action) string {
		s, err := mailtest.NewSink(mailtest.SinkConfig{Hook: func(e mailtest.Event) mailtest.Action {
			if e.Step != mailtest.StepRcpt {
				return mailtest.Action{}
			}
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, e.Addr)
			return reply()
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s.URL("")
	}
	takes := func() mailtest.Action { return mailtest.Action{} }
	refuses := func() mailtest.Action { return mailtest.Reply(550, "5.1.1 no such user") }
	waits := func() mailtest.Action { return mailtest.Reply(450, "4.2.0 greylisted") }
	for _, tt := range []struct {
		unknown  string
		old, new func() mailtest.Action
		want     [2]string
	}{
		{"verify", takes, refuses, [2]string{"import all users; routing.unknown: verify takes mail for any address", "refused: 550 5.1.1"}},
		{"reject", refuses, takes, [2]string{"refused: 550 5.1.1", "verify cannot tell users apart on this side, import all users"}},
		{"verify", waits, refuses, [2]string{"neither takes nor knows it to be unknown: 450 4.2.0", "refused"}},
	} {
		cfg, err := config.Parse(t.TempDir()+"/crossfade.yaml", fmt.Appendf(nil, `hostname: mx.company.test
domains: [company.test]
routing: {unknown: %s}
backends:
  old: {smtp: "%s"}
  new: {smtp: "%s"}
`, tt.unknown, side(tt.old), side(tt.new)))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range daemon.Check(t.Context(), cfg, "") {
			if strings.HasSuffix(f.What, "an address that cannot exist") {
				got = append(got, f.Text)
			}
		}
		if len(got) != 2 || !strings.Contains(got[0], tt.want[0]) || !strings.Contains(got[1], tt.want[1]) || strings.Contains(got[1], "routing.unknown") {
			t.Errorf("%s: %q, want %q", tt.unknown, got, tt.want)
		}
	}
	if len(asked) != 6 || asked[0] == asked[1] || !strings.HasPrefix(asked[0], "crossfade-check-") || !strings.HasSuffix(asked[0], "@company.test") {
		t.Errorf("asked for %q", asked)
	}
}
