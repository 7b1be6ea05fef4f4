package mail

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"
)

// Limits in octets. RFC 5321, 4.5.3.1, has 64 for a local part and 254 for an
// address, and asks to take more where that is possible: the bounce addresses of
// mailing services (VERP, SRS, BATV) are often longer, and a refusal would lose mail
// that the systems behind us take.
const (
	maxLocal  = 256
	maxDomain = 255
)

// Address is a mailbox address in normal form. The zero value is the null
// reverse-path (RFC 5321, 4.5.5), which prints as the empty string.
//
// Local is the local part with its quoting removed and its case kept. Domain
// is lower-case and in A-labels (RFC 5890), or an address literal with its
// brackets. Because Local is unquoted, never build a command from the two
// fields: [Address.String] quotes again where RFC 5321 asks for it.
type Address struct {
	Local  string
	Domain string
}

// ParseAddress reads addr as it stands between the angle brackets of a path,
// without source route: a dot-string or a quoted-string, "@", a domain. The
// empty string is the null reverse-path.
func ParseAddress(addr string) (Address, error) {
	if addr == "" {
		return Address{}, nil
	}
	local, domain, err := splitPath(addr)
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", addr, err)
	}
	a, err := newAddress(local, domain)
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", addr, err)
	}
	return a, nil
}

// FromUnquoted makes an address of a path whose quoting was already removed,
// as go-smtp hands it to a session. It splits at the last "@", because an
// unquoted local part may hold more of them.
func FromUnquoted(path string) (Address, error) {
	if path == "" {
		return Address{}, nil
	}
	at := strings.LastIndexByte(path, '@')
	if at < 0 {
		return Address{}, fmt.Errorf("address %q: it has no domain", path)
	}
	a, err := newAddress(path[:at], path[at+1:])
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", path, err)
	}
	return a, nil
}

// splitPath cuts addr at the "@" that ends its local part and removes the
// quoting of that part.
func splitPath(addr string) (local, domain string, err error) {
	if addr[0] != '"' {
		at := strings.LastIndexByte(addr, '@')
		if at < 0 {
			return "", "", errors.New("it has no domain")
		}
		local = addr[:at]
		if !isDotString(local) {
			return "", "", errors.New("the local part has characters that need quoting")
		}
		return local, addr[at+1:], nil
	}
	var b strings.Builder
	for i := 1; i < len(addr); i++ {
		switch c := addr[i]; c {
		case '\\':
			i++
			if i == len(addr) {
				return "", "", errors.New("it ends inside a quoted pair")
			}
			b.WriteByte(addr[i])
		case '"':
			if i+1 >= len(addr) || addr[i+1] != '@' {
				return "", "", errors.New("a quoted local part is not followed by @")
			}
			return b.String(), addr[i+2:], nil
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("the quoted local part does not end")
}

func newAddress(local, domain string) (Address, error) {
	if local == "" {
		return Address{}, errors.New("the local part is empty")
	}
	if len(local) > maxLocal {
		return Address{}, fmt.Errorf("the local part is longer than %d octets", maxLocal)
	}
	if !utf8.ValidString(local) {
		return Address{}, errors.New("the local part is not UTF-8")
	}
	for _, r := range local {
		if unicode.IsControl(r) {
			return Address{}, errors.New("the local part holds a control character")
		}
	}
	domain, err := NormalDomain(domain)
	if err != nil {
		return Address{}, err
	}
	return Address{Local: local, Domain: domain}, nil
}

// NormalDomain gives the normal form of a domain: lower-case A-labels without
// a final dot, or an address literal as it stands.
func NormalDomain(domain string) (string, error) {
	if strings.HasPrefix(domain, "[") {
		return normalLiteral(domain)
	}
	domain = strings.TrimSuffix(domain, ".")
	if domain == "" {
		return "", errors.New("the domain is empty")
	}
	if d, ok := plainDomain(domain); ok {
		return d, nil
	}
	d, err := idna.Lookup.ToASCII(domain)
	if err != nil {
		return "", fmt.Errorf("the domain %q is not a host name: %w", domain, err)
	}
	d, ok := plainDomain(d)
	if !ok {
		return "", fmt.Errorf("the domain %q is not a host name", domain)
	}
	return d, nil
}

// plainDomain is the common case: ASCII letters, digits, hyphens, underscores.
// Underscores are no host names, but they are seen in mail domains.
func plainDomain(domain string) (string, bool) {
	if len(domain) > maxDomain {
		return "", false
	}
	label, upper := 0, false
	for i := 0; i < len(domain); i++ {
		c := domain[i]
		switch {
		case c == '.':
			if label == 0 || domain[i-1] == '-' {
				return "", false
			}
			label = 0
			continue
		case c >= 'A' && c <= 'Z':
			upper = true
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_':
		case c == '-' && label > 0:
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	if label == 0 || domain[len(domain)-1] == '-' {
		return "", false
	}
	if upper {
		domain = strings.ToLower(domain)
	}
	return domain, true
}

func normalLiteral(domain string) (string, error) {
	inner, ok := strings.CutSuffix(domain[1:], "]")
	if !ok {
		return "", errors.New("the address literal does not end with ]")
	}
	text := inner
	if len(inner) > 5 && strings.EqualFold(inner[:5], "IPv6:") {
		text = inner[5:]
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || ip.Is6() == (text == inner) {
		return "", fmt.Errorf("the address literal %q is not an IP address", domain)
	}
	if ip.Is6() {
		return "[IPv6:" + ip.String() + "]", nil
	}
	return "[" + ip.String() + "]", nil
}

// IsNull tells whether a is the null reverse-path.
func (a Address) IsNull() bool { return a == Address{} }

// IsASCII tells whether the address can be sent without SMTPUTF8 (RFC 6531).
func (a Address) IsASCII() bool {
	for i := 0; i < len(a.Local); i++ {
		if a.Local[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// String gives the address as it may stand in a path, its local part quoted
// where it has to be (RFC 5321, 4.1.2).
func (a Address) String() string {
	if a.IsNull() {
		return ""
	}
	if isDotString(a.Local) {
		return a.Local + "@" + a.Domain
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(a.Local); i++ {
		if c := a.Local[i]; c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(a.Local[i])
	}
	b.WriteString(`"@`)
	b.WriteString(a.Domain)
	return b.String()
}

// Key is the form under which an address is looked up: the local part in lower
// case and composed (NFC). Case matters in theory (RFC 5321, 2.4), but no
// mail system that people move from or to tells users apart by case.
func (a Address) Key() string {
	if a.IsNull() {
		return ""
	}
	local := strings.ToLower(a.Local)
	if !a.IsASCII() {
		local = norm.NFC.String(local)
	}
	return Address{Local: local, Domain: a.Domain}.String()
}

// MarshalText writes the form of [Address.String].
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the form of [Address.String].
func (a *Address) UnmarshalText(b []byte) (err error) {
	*a, err = ParseAddress(string(b))
	return err
}

// isDotString reports whether s is a Dot-string of RFC 5321, 4.1.2 with the
// characters that RFC 6531 adds.
func isDotString(s string) bool {
	prev := byte('.')
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '.' && prev == '.' || c != '.' && !isAtext(c) {
			return false
		}
		prev = c
	}
	return prev != '.'
}

func isAtext(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c >= utf8.RuneSelf:
		return true
	}
	return strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}
