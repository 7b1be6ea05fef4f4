package relay

import (
	"strings"
	"testing"
	"testing/iotest"

	"crossfade/mail"
	"crossfade/router"
)

// A message whose first line begins with a blank would go on where our trace
// header ends: a stranger would write in it. Its bytes stay as they are.
func TestTraceHeaderIsFenced(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	for body, fenced := range map[string]bool{
		"\tby evil.test (forged)\r\nSubject: x\r\n\r\nbody\r\n": true,
		" x\r\n":                          true,
		"Subject: x\r\n\ty\r\n\r\n z\r\n": false,
		"\r\n\tbody\r\n":                  false,
	} {
		c := s.hello()
		c.deliver(body, "ann@example.org")
		got := s.queue.last(t).body
		header := strings.TrimSuffix(got, body)
		if header == got {
			t.Errorf("%q is stored as %q", body, got)
		}
		if has := strings.HasSuffix(header, foldFence); has != fenced {
			t.Errorf("%q is stored as %q", body, got)
		}
	}
}

// The fence comes whole, however little is read at once.
func TestFenceInPieces(t *testing.T) {
	const body = " x\r\n\r\ny\r\n"
	b := &bodyReader{r: strings.NewReader(body), env: &mail.Envelope{}, scan: headerScan{over: true}}
	if err := iotest.TestReader(iotest.OneByteReader(b), []byte(foldFence+body)); err != nil {
		t.Error(err)
	}
}
