package attack

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// TestPeer does the same to a Postfix, as Debian ships it, that stands where the
// relay stands: in front of another mail system. Nothing is demanded of it; what
// it does is a column of the table.
func TestPeer(t *testing.T) {
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	host, port, _ := strings.Cut(sink.Addr(), ":")
	p := realtest.StartPostfix(t, realtest.PostfixOptions{NextHop: fmt.Sprintf("smtp:[%s]:%s", host, port)})
	cases := slices.DeleteFunc(matrix(), smuggling.honest)
	if !long() {
		cases = slices.DeleteFunc(cases, func(c smuggling) bool { return c.group != groupEnds || len(c.name) > 10 })
	}
	var mu sync.Mutex
	refused := 0
	for _, err := range each(cases, 4, func(c smuggling) error {
		k, err := dialTalk(p.Addr)
		if err != nil {
			return err
		}
		replies, err := c.send(k, whole)
		mu.Lock()
		defer mu.Unlock()
		if err == nil && replies[0][0] != '2' {
			refused++
		}
		return err
	}) {
		t.Errorf("the test could not speak with Postfix: %v", err)
	}
	until(t, time.Minute, "Postfix to send everything on", func() error {
		if n := p.Queued(t); n > 0 {
			return fmt.Errorf("%d are queued", n)
		}
		return nil
	})
	got, err := sink.Wait(context.Background(), len(cases)-refused)
	if err != nil {
		t.Fatal(err)
	}
	smuggled := map[string]int{}
	for _, m := range got {
		id, inner := strings.CutPrefix(subject(append([]byte("\r\n"), m.Body...)), "smuggled in ")
		for _, c := range cases {
			if inner && c.id == id {
				smuggled[c.group]++
				t.Logf("smuggled: %s", c.name)
			}
		}
	}
	total := 0
	for _, g := range groups {
		total += smuggled[g]
	}
	if total == 0 {
		t.Error("Postfix let nothing through: either it is mended, or this test does not see what it looks for")
	}
	figure(t, "Postfix of Debian 12: %d cases, %d refused, %d became two messages behind it: %v", len(cases), refused, total, smuggled)
}
