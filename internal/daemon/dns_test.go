package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"crossfade/dnswatch"
	"crossfade/internal/mailtest/realtest"
)

const dnsZone = `$TTL 300
@ SOA ns.example.org. hostmaster.example.org. 1 3600 600 604800 300
@ NS ns.example.org.
@ 3600 MX 10 %s
mx A 192.0.2.25
`

// TestDNSWatch: the daemon watches by itself, keeps what it saw over a restart, shows it in API and metrics, and
// objects to closing windows while the old MX is given out.
func TestDNSWatch(t *testing.T) {
	ns := realtest.StartNSD(t, map[string]string{"example.org": fmt.Sprintf(dnsZone, "mail.old.example.")})
	s := newSite(t, fmt.Sprintf("dns: {watch: true, interval: 1s, resolvers: [%q], nameservers: [%q]}\n", ns.Addr, ns.Addr))
	s.start()
	seen := func(what string, ok func(dnswatch.Status) bool) (st dnswatch.Status) {
		t.Helper()
		eventually(t, 15*time.Second, what, func() bool {
			var err error
			st, err = s.client.DNS(s.limit())
			return err == nil && st.State != nil && !st.State.LastAnswer.IsZero() && st.Report != nil && ok(st)
		})
		return st
	}
	first := seen("the old MX is seen", func(st dnswatch.Status) bool {
		return strings.Contains(st.Text, "mail.old.example. is still given out")
	})
	if first.MayClose || first.Phase != dnswatch.BeforeRelay {
		t.Errorf("%+v", first)
	}
	if err := s.d.dnsMayClose(t.Context()); err == nil || !strings.Contains(err.Error(), "still given out") {
		t.Errorf("windows may close: %v", err)
	}
	s.d.strays.note(3, []string{"192.0.2.9", "192.0.2.9"})
	metrics := ""
	eventually(t, 15*time.Second, "the stragglers are counted", func() bool {
		metrics = scrape(t, s.d.AdminURL())
		return strings.Contains(metrics, "crossfade_dns_stragglers_today 3")
	})
	for _, want := range []string{"crossfade_dns_window_may_close 0", `crossfade_dns_old_until_timestamp_seconds{domain="example.org",what="dns"} +Inf`,
		`crossfade_dns_servers{kind="resolver",state="answering"} 1`, `crossfade_dns_findings{severity="stop"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	s.stop()

	ns.Write(t, map[string]string{"example.org": strings.Replace(fmt.Sprintf(dnsZone, "mx"), " 1 3600", " 2 3600", 1)})
	ns.Restart(t)
	s.start()
	later := seen("the new MX is seen", func(st dnswatch.Status) bool { return st.Phase == dnswatch.Relay })
	if !later.State.Since.Equal(first.State.Since) || later.MayClose || !strings.Contains(later.Text, `"10 mail.old.example."`) || later.Closes.IsZero() {
		t.Errorf("%s: %+v", later.Text, later)
	}
	day := time.Now().UTC().Format(time.DateOnly)
	if got := fmt.Sprint(later.Stragglers); !strings.Contains(got, "{"+day+" 192.0.2.9 2} {"+day+" unknown 1}") {
		t.Errorf("stragglers: %s", got)
	}
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDNSOff: without a watch nothing is asked, nothing is objected to, and the status says so.
func TestDNSOff(t *testing.T) {
	s := newSite(t, "").start()
	st, err := s.client.DNS(s.limit())
	if err != nil || st.Watching || !st.MayClose || s.d.dnsMayClose(t.Context()) != nil {
		t.Errorf("%+v, %v", st, err)
	}
	s.d.strays.note(1, nil) // must not fail
	if strings.Contains(scrape(t, s.d.AdminURL()), "crossfade_dns_") {
		t.Error("metrics of a watch that is not there")
	}
}

// memRecords is a ledger in memory.
type memRecords struct {
	records map[string][]byte
	err     error
}

func (m *memRecords) LoadLedger(context.Context, string) (map[string][]byte, error) {
	return m.records, m.err
}

func (m *memRecords) SaveLedger(_ context.Context, _, name string, data []byte) error {
	if m.err == nil {
		m.records[name] = data
	}
	return m.err
}

// TestStrayBook: counts of several nodes, days and sources, within bounds, and not lost when they cannot be saved.
func TestStrayBook(t *testing.T) {
	m := &memRecords{records: map[string][]byte{"stragglers/b": []byte(`{"2026-11-20":{"h1":2},"2026-11-21":{"h2":1}}`), "state": []byte("x")}}
	now := time.Date(2026, 11, 21, 23, 0, 0, 0, time.UTC)
	b := &strayBook{ledger: m, node: "a", log: slog.New(slog.DiscardHandler), now: func() time.Time { return now }, days: map[string]map[string]int{}, wake: make(chan struct{}, 1)}
	b.note(2, []string{"h1"})
	m.err = errors.New("away")
	b.flush(t.Context())
	m.err = nil
	b.note(1, []string{"h2", "one too many"})
	now = now.Add(2 * time.Hour)
	b.note(1, []string{"h3"})
	b.flush(t.Context())
	got, err := b.Stragglers(t.Context(), time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC))
	if want := "[{2026-11-21 h2 2} {2026-11-21 h1 1} {2026-11-21 unknown 1} {2026-11-22 h3 1}]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v\nwant %s", got, err, want)
	}
	for i := range 200 {
		b.note(1, []string{fmt.Sprint("host", i)})
	}
	now = now.AddDate(0, 0, strayDays+1)
	b.note(1, nil)
	b.flush(t.Context())
	got, err = b.Stragglers(t.Context(), now.AddDate(0, 0, -1000))
	sum := 0
	for _, c := range got {
		sum += c.Messages
	}
	if err != nil || len(got) > 4 || sum != 4 { // what is old is forgotten, but for the other node's
		t.Errorf("%d of %v, %v", sum, got, err)
	}
	m.records["stragglers/b"] = []byte("{")
	if _, err := b.Stragglers(t.Context(), now); err == nil {
		t.Error("a damaged record is not told of")
	}
}
