package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// domainProfile maps as a user agent does (case, full-width dots), and checks what comes out. Hyphens are checked by
// checkLabels: the profile would refuse names such as r3---x.example, which exist.
var domainProfile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.CheckHyphens(false), idna.VerifyDNSLength(true))

// NormalDomain returns the form in which domains are kept and compared: lower-case A-labels without a final dot.
// An IP address, an address literal, a single label, a wildcard and anything that is not a host name is an error.
func NormalDomain(name string) (string, error) {
	trimmed := strings.TrimSuffix(name, ".")
	switch {
	case trimmed == "":
		return "", errors.New("empty domain name")
	case !utf8.ValidString(trimmed): // the library maps each bad byte to the same valid name
		return "", fmt.Errorf("%q is not UTF-8", name)
	case strings.Contains(trimmed, "@"):
		return "", fmt.Errorf("%q is an address: write the domain alone", name)
	case strings.Contains(trimmed, "*"):
		return "", fmt.Errorf("%q is a wildcard: write each domain out", name)
	case looksLikeIP(strings.Trim(trimmed, "[]")):
		return "", fmt.Errorf("%q is an IP address, not a domain name", name)
	}
	ascii, err := domainProfile.ToASCII(trimmed)
	if err != nil {
		return "", fmt.Errorf("%q is not a domain name: %s", name, domainReason(trimmed, err))
	}
	if reason := checkLabels(ascii); reason != "" {
		return "", fmt.Errorf("%q is not a domain name: %s", name, reason)
	}
	if !strings.Contains(ascii, ".") {
		return "", fmt.Errorf("%q is not fully qualified: it needs a dot, as in %s.example.org", name, ascii)
	}
	return ascii, nil
}

// domainReason prefers our words over the library's ("idna: disallowed rune U+005F") where we find the same fault.
func domainReason(name string, err error) string {
	if isASCII(name) {
		if reason := checkLabels(strings.ToLower(name)); reason != "" {
			return reason
		}
	}
	return strings.TrimPrefix(err.Error(), "idna: ")
}

// checkLabels says what is wrong with an ASCII name by RFC 1035, 2.3.4 and RFC 5321, 4.1.2, or "".
func checkLabels(name string) string {
	if len(name) > 253 {
		return "longer than 253 characters"
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "two dots in a row, or one at an end"
		case len(label) > 63:
			return "a label longer than 63 characters"
		case strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-"):
			return "a label that begins or ends with a hyphen"
		}
		for _, r := range label {
			if r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
				return fmt.Sprintf("the character %q", r)
			}
		}
	}
	return ""
}

// looksLikeIP is true for IP addresses, IPv6 literals, and dotted names whose last label is all digits (1.2.3.999),
// which resolvers may take for an address.
func looksLikeIP(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	if len(name) > 5 && strings.EqualFold(name[:5], "ipv6:") {
		return true
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	return last != "" && strings.Trim(last, "0123456789") == "" && strings.Contains(name, ".")
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
