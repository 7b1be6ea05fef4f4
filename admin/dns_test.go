package admin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"crossfade/dnswatch"
)

type memDNS struct {
	st  dnswatch.Status
	err error
}

func (m *memDNS) Status(context.Context) (dnswatch.Status, error) { return m.st, m.err }

func TestDNS(t *testing.T) {
	m := &memDNS{st: dnswatch.Status{Watching: true, Text: "still given out", Lines: []dnswatch.Line{{Domain: "example.org", What: dnswatch.LineDNS, Until: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)}}}}
	r := newRig(t, func(c *Config) { c.DNS = m })
	got, err := r.client(readToken).DNS(t.Context())
	if err != nil || !got.Watching || got.MayClose || len(got.Lines) != 1 || !got.Lines[0].Until.Equal(m.st.Lines[0].Until) {
		t.Errorf("%+v, %v", got, err)
	}
	m.err = errors.New("the counts are away")
	_, err = r.client(readToken).DNS(t.Context())
	wantProblem(t, err, ProblemInternal)
	_, err = r.client("").DNS(t.Context())
	wantProblem(t, err, ProblemUnauthorized)
}

func TestDNSNotWatched(t *testing.T) {
	got, err := newRig(t, nil).client(readToken).DNS(t.Context())
	if err != nil || got.Watching || !got.MayClose || !strings.Contains(got.Text, "dns.watch") {
		t.Errorf("%+v, %v", got, err)
	}
}
