package authn

import (
	"strconv"
	"strings"
)

// Bounds of the field: it is about strings that strangers chose.
const (
	foldAt   = 76  // columns
	maxValue = 200 // octets of one value
)

// quarantineField is put on messages that a policy wants set aside. Backends filter by it.
const quarantineField = "X-Crossfade-Quarantine"

// Trace gives the header fields for a message: Authentication-Results (RFC 8601) in the name of authserv, and for one that
// is to be set aside X-Crossfade-Quarantine above it. They are ASCII, and end in CRLF.
func (r *Report) Trace(authserv string) string {
	var b strings.Builder
	if r.Disposition == EnforceQuarantine {
		f := folder{b: &b}
		f.add(quarantineField + ": dmarc=fail policy.domain=" + value(r.Domain))
		f.end()
	}
	f := folder{b: &b}
	f.add("Authentication-Results: " + authserv + ";")
	f.line()
	f.method("spf", r.SPF.Result, r.SPF.Reason)
	r.spfProperties(&f)
	f.add(";")
	for _, d := range r.DKIM {
		f.line()
		f.method("dkim", d.Result, d.Reason)
		d.properties(&f)
		f.add(";")
	}
	if len(r.DKIM) == 0 {
		f.line()
		f.add("dkim=none;")
	}
	if r.Unverified > 0 {
		f.line()
		f.method("dkim", Policy, strconv.Itoa(r.Unverified)+" more signatures were not looked at")
		f.add(";")
	}
	for _, other := range r.Others {
		f.line()
		f.words(other)
		f.add(";")
	}
	f.line()
	r.dmarc(&f)
	f.end()
	return b.String()
}

func (r *Report) spfProperties(f *folder) {
	switch {
	case r.SPF.Domain == "":
	case r.SPF.Helo:
		f.word("smtp.helo=" + value(r.SPF.Domain))
	default:
		f.word("smtp.mailfrom=" + value(r.SPF.Sender))
	}
}

func (d *DKIM) properties(f *folder) {
	for _, p := range [][2]string{{"header.d", d.Domain}, {"header.s", d.Selector}, {"header.a", d.Algorithm}, {"header.b", d.Signature}} {
		if p[1] != "" {
			f.word(p[0] + "=" + value(p[1]))
		}
	}
}

// dmarc writes the result, and the policy as a comment: RFC 8601 has no properties for it.
func (r *Report) dmarc(f *folder) {
	d := r.DMARC
	f.method("dmarc", d.Result, d.Reason)
	if d.Policy != "" {
		f.word("(p=" + string(d.Record.Policy))
		if d.Record.Subdomain != "" {
			f.word("sp=" + string(d.Record.Subdomain))
		}
		if d.Record.Missing != "" {
			f.word("np=" + string(d.Record.Missing))
		}
		if d.Record.Percent < 100 {
			f.word("pct=" + strconv.Itoa(d.Record.Percent))
		}
		f.word("policy=" + string(d.Policy))
		f.word("done=" + string(r.Disposition) + ")")
	}
	if r.VouchedBy != "" {
		f.word("(not applied: " + comment(r.VouchedBy) + " vouches for it)")
	}
	if d.Author != "" {
		f.word("header.from=" + value(d.Author))
	}
}

// folder writes words, and breaks lines between them.
type folder struct {
	b   *strings.Builder
	col int
}

func (f *folder) add(s string) {
	f.b.WriteString(s)
	f.col += len(s)
}

func (f *folder) line() {
	f.b.WriteString("\r\n\t")
	f.col = 8
}

func (f *folder) word(w string) {
	if f.col+1+len(w) > foldAt {
		f.line()
	} else {
		f.add(" ")
	}
	f.add(w)
}

// words adds what begins a line.
func (f *folder) words(text string) {
	for i, w := range strings.Fields(text) {
		if i == 0 {
			f.add(w)
			continue
		}
		f.word(w)
	}
}

func (f *folder) method(name string, r Result, reason string) {
	f.add(name + "=" + string(r))
	if reason != "" {
		f.word("reason=" + quoted(reason))
	}
}

func (f *folder) end() { f.b.WriteString("\r\n") }

// value is s as a pvalue (RFC 8601, 2.2): as it is where it can be a token, a domain or an address, else in quotes.
func value(s string) string {
	if len(s) <= maxValue && plainValue(s) {
		return s
	}
	return quoted(s)
}

// plainValue tells whether s may stand without quotes: an address, a domain or a token.
func plainValue(s string) bool {
	local, domain, isAddress := cutLast(s, "@")
	if isAddress && domain == "" {
		return false
	}
	for i := 0; i < len(local); i++ {
		if !tokenByte(local[i]) && !(isAddress && (local[i] == '/' || local[i] == '?' || local[i] == '=') && i > 0) {
			return false
		}
	}
	for i := 0; i < len(domain); i++ {
		if !plainDomainByte(domain[i]) {
			return false
		}
	}
	return s != "" && (!isAddress || local != "")
}

// tokenByte tells whether c may be in a token (RFC 2045, 5.1).
func tokenByte(c byte) bool {
	return c > ' ' && c <= '~' && !strings.ContainsRune(`()<>@,;:\"/[]?=`, rune(c))
}

// quoted is s as a quoted-string of printable ASCII, cut to a bound.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < min(len(s), maxValue); i++ {
		switch c := s[i]; {
		case c < ' ' || c > '~':
			b.WriteByte('?')
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// comment makes of s something that can stand in a comment.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`()\`, r) {
			return '?'
		}
		return r
	}, s[:min(len(s), maxValue)])
}
