package backfill

import (
	"strings"
	"testing"

	"crossfade/backfill/imapconn"
)

// TestOtherNames: names that a server may refuse for what is in them, for their
// length and for their depth become others, which stay different.
func TestOtherNames(t *testing.T) {
	ns := imapconn.Namespaces{Prefix: "INBOX.", Delim: "."}
	long := strings.Repeat("ü", 100)
	if got := otherNames("INBOX.a/b", ns); len(got) != 2 || got[0] != "INBOX.a_b" || !strings.HasPrefix(got[1], "INBOX.a_b-") {
		t.Errorf("%q", got)
	}
	a, b := otherNames("INBOX.x."+long+"1", ns), otherNames("INBOX.x."+long+"2", ns)
	if len(a) != 2 || len(b) != 2 || a[1] == b[1] {
		t.Errorf("%q, %q", a, b)
	}
	for _, level := range strings.Split(imapconn.EncodeName(a[1]), ".") {
		if len(level) > shortLevel {
			t.Errorf("%q is too long", level)
		}
	}
	deep, other := otherNames("INBOX.1.2.3.4.5.6.7", ns), otherNames("INBOX.1.2.3.4.5.6-7", ns)
	if len(deep) != 3 || strings.Count(deep[1], ".") != fewLevels || !strings.HasPrefix(deep[1], "INBOX.1.2.3-4-5-6-7_-") || deep[1] == other[1] {
		t.Errorf("%q, %q", deep, other)
	}
	for _, name := range []string{deep[2], otherNames("INBOX.a/b", ns)[1], otherNames("INBOX.x."+strings.Repeat("x", shortLevel), ns)[1]} {
		for _, level := range strings.Split(name, ".") {
			if len(level) > shortLevel {
				t.Errorf("%q is too long", level)
			}
		}
	}
	if got := otherNames("plain", imapconn.Namespaces{}); len(got) != 2 || got[0] != "plain_" {
		t.Errorf("%q", got)
	}
}
