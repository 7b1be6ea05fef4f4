package authn

import (
	"strings"
	"testing"
)

// TestHostileValues: whatever strangers put into names and reasons, the field stays one field, of ASCII, with each value
// where it belongs.
func TestHostileValues(t *testing.T) {
	for _, evil := range []string{
		"x; dmarc=pass header.from=bank.com", "x\r\nSubject: evil", "x\r\n\r\nbody", `x" dkim=pass "`, `x\`, `x\" y`, "x (comment", "x)", "\x00", "\x7f", "böse", "\xff\xfe",
		strings.Repeat("x", 5000), strings.Repeat(`"\`, 3000), "", " ", "=?utf-8?q?x?=", "a=b", "a b",
	} {
		r := &Report{
			SPF: SPF{Result: TempError, Domain: evil, Sender: evil, Reason: evil},
			DKIM: []DKIM{{Result: Pass, Domain: evil, Selector: evil, Algorithm: evil, Signature: evil},
				{Result: Fail, Domain: evil, Reason: evil}},
			DMARC:       DMARC{Result: Fail, Author: evil, Reason: evil, Policy: PolicyReject, Record: Record{Policy: PolicyReject, Percent: 3}},
			Disposition: EnforceQuarantine, Domain: evil, VouchedBy: evil,
		}
		checkField(t, r.Trace("mx.example.org"))
	}
}

// checkField tells whether text is X-Crossfade-Quarantine and Authentication-Results, in the grammar of RFC 8601, 2.2, with
// the methods that the test put in.
func checkField(t *testing.T, text string) {
	t.Helper()
	top, rest, ok := strings.Cut(text, "Authentication-Results: mx.example.org;\r\n\t")
	if !ok || !strings.HasPrefix(top, quarantineField+": ") || strings.Count(top, "\r\n") != 1 || !strings.HasSuffix(rest, "\r\n") {
		t.Fatalf("%.500q", text)
	}
	for _, line := range strings.Split(strings.TrimSuffix(rest, "\r\n"), "\r\n") {
		if len(line) > 998 {
			t.Errorf("a line of %d octets", len(line))
		}
		for i := range len(line) {
			if line[i] != '\t' && (line[i] < ' ' || line[i] > '~') {
				t.Fatalf("octet %#x in %q", line[i], line)
			}
		}
	}
	for n, line := range strings.Split(rest, "\r\n")[1:] {
		if line != "" && line[0] != '\t' {
			t.Fatalf("line %d begins a field: %q", n, line)
		}
	}
	var methods []string
	for _, part := range topLevel(strings.ReplaceAll(rest, "\r\n\t", " ")) {
		methods = append(methods, strings.Fields(part)[0])
	}
	if got := strings.Join(methods, " "); got != "spf=temperror dkim=pass dkim=fail dmarc=fail" {
		t.Errorf("methods %s of %.2000s", got, text)
	}
}

// topLevel parts at semicolons outside of quotes and comments.
func topLevel(s string) (out []string) {
	depth, quoted, from := 0, false, 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && (quoted || depth > 0):
			i++
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(' && !quoted:
			depth++
		case c == ')' && !quoted:
			depth--
		case c == ';' && depth == 0 && !quoted:
			out = append(out, s[from:i])
			from = i + 1
		}
	}
	return append(out, s[from:])
}

// FuzzField does the same with values that nobody thought of.
func FuzzField(f *testing.F) {
	f.Add("example.com", "a@b.c", `reason "x"`)
	f.Fuzz(func(t *testing.T, domain, sender, reason string) {
		r := &Report{
			SPF:   SPF{Result: TempError, Domain: domain, Sender: sender, Reason: reason},
			DKIM:  []DKIM{{Result: Pass, Domain: domain, Selector: sender, Algorithm: reason, Signature: reason}, {Result: Fail, Domain: sender, Reason: reason}},
			DMARC: DMARC{Result: Fail, Author: domain, Reason: reason, Policy: PolicyReject}, Disposition: EnforceQuarantine, Domain: domain, VouchedBy: reason,
		}
		checkField(t, r.Trace("mx.example.org"))
	})
}

func TestFieldForms(t *testing.T) {
	for name, tt := range map[string]struct {
		report Report
		want   string
	}{
		"nothing": {Report{SPF: SPF{Result: None}, DMARC: DMARC{Result: PermError, Reason: "no From field"}},
			"spf=none;\r\n\tdkim=none;\r\n\tdmarc=permerror reason=\"no From field\"\r\n"},
		"helo": {Report{SPF: SPF{Result: Fail, Helo: true, Domain: "mx.example.com"}, DMARC: DMARC{Result: None, Author: "example.com"}},
			"spf=fail smtp.helo=mx.example.com;\r\n\tdkim=none;\r\n\tdmarc=none header.from=example.com\r\n"},
	} {
		if got := tt.report.Trace("h"); got != "Authentication-Results: h;\r\n\t"+tt.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
