package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Answer is what the DNS says to a question. No records is an answer too: the name exists, without any of that type.
type Answer[T any] struct {
	Records []T
	// Name is the one that has the records, in lower case without the final dot: that at the end of the CNAMEs, or the
	// one that was asked.
	Name string
	// Authentic says that the resolver validated the whole answer with DNSSEC, CNAMEs included, and may be believed.
	Authentic bool
	// TTL is how long the answer is kept in the cache from now on.
	TTL time.Duration
}

// MX is one mail exchanger of a domain. Host is in lower case, without the final dot.
type MX struct {
	Host       string
	Preference uint16
}

// TLSA is a TLSA record (RFC 6698, 2.1). Certificate is in hexadecimal.
type TLSA struct {
	Usage, Selector, MatchingType uint8
	Certificate                   string
}

// The kinds of failure, to be told apart with errors.Is.
var (
	// ErrNoName says that the name does not exist: NXDOMAIN, or what can be no name at all.
	ErrNoName = errors.New("no such name")
	// ErrTemporary says that nobody could tell. Nothing may be concluded from it.
	ErrTemporary = errors.New("temporary failure")
	// ErrPermanent says that there is an answer which asking again will not make better: too many records, CNAMEs in a
	// circle.
	ErrPermanent = errors.New("the answer is of no use")
)

// Error is why a lookup gave nothing. It is a net.Error.
type Error struct {
	Question string // "example.org. TXT"
	Kind     error  // ErrNoName, ErrTemporary or ErrPermanent
	Detail   string // what the servers said
}

// Error gives question, kind and detail.
func (e *Error) Error() string {
	s := "look up " + e.Question + ": " + e.Kind.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Unwrap gives the kind.
func (e *Error) Unwrap() error { return e.Kind }

// Temporary tells whether asking again may help.
func (e *Error) Temporary() bool { return errors.Is(e.Kind, ErrTemporary) }

// Timeout is the same: most often nobody answered in time.
func (e *Error) Timeout() bool { return e.Temporary() }

type question struct {
	name string // canonical once it is asked
	typ  uint16
}

func (q question) String() string { return q.name + " " + dns.TypeToString[q.typ] }

func (q question) failed(kind error, format string, args ...any) *Error {
	return &Error{Question: q.String(), Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// canonical is a name in lower case with the final dot. Names come from strangers: what is no name of printable ASCII is
// not asked for, and a backslash is no escape.
func canonical(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return "", false
	}
	label := 0
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.' && label == 0:
			return "", false
		case c == '.':
			label = -1
		case c <= ' ' || c > '~' || c == '\\' || c == '"' || c == '(' || c == ')' || c == ';' || c == '@':
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	return strings.ToLower(name) + ".", true
}

// bare is a name as people write it.
func bare(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// ReverseName is the name at which the PTR records of an address are (RFC 1035, 3.5; RFC 3596, 2.5).
func ReverseName(ip netip.Addr) (string, error) {
	name, err := dns.ReverseAddr(ip.Unmap().WithZone("").String())
	if err != nil {
		return "", &Error{Question: ip.String() + " PTR", Kind: ErrNoName, Detail: "it is no address"}
	}
	return name, nil
}

func address(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		return netip.AddrFromSlice(rr.A.To4())
	case *dns.AAAA:
		return netip.AddrFromSlice(rr.AAAA)
	}
	return netip.Addr{}, false
}

// text joins the strings of a record. The library writes what is not printable as \DDD, and a backslash before quotes and
// backslashes; the octets themselves are wanted.
func text(t *dns.TXT) string {
	s := strings.Join(t.Txt, "")
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if i+3 < len(s) && digits(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')*100 + (s[i+2]-'0')*10 + s[i+3] - '0')
			i += 3
			continue
		}
		i++
		b.WriteByte(s[i])
	}
	return b.String()
}

func digits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
