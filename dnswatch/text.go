package dnswatch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxText bounds what is shown of a record, in octets.
const maxText = 400

// bare takes the final dot off a name.
func bare(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

// line is a record as a zone file has it, with single blanks.
func line(rr dns.RR) string { return cut(strings.Join(strings.Fields(rr.String()), " ")) }

// record writes a record line to put into a zone.
func record(name string, ttl time.Duration, typ, value string) string {
	return fmt.Sprintf("%s. %d IN %s %s", bare(name), int(ttl.Seconds()), typ, value)
}

// value is the data of a record without its owner and TTL, in a form that can be compared.
func value(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.MX:
		return fmt.Sprintf("%d %s", rr.Preference, dns.CanonicalName(rr.Mx))
	case *dns.TXT:
		return strings.Join(rr.Txt, "")
	case *dns.A:
		return rr.A.String()
	case *dns.AAAA:
		return rr.AAAA.String()
	}
	head := rr.Header().String()
	return strings.ToLower(strings.Join(strings.Fields(strings.TrimPrefix(rr.String(), head)), " "))
}

// values are those of all records, sorted.
func values(rrs []dns.RR) []string {
	out := make([]string, 0, len(rrs))
	for _, rr := range rrs {
		out = append(out, value(rr))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// quoted writes text as the data of a TXT record: strings of at most 255 octets (RFC 1035, 3.3.14).
func quoted(s string) string {
	var parts []string
	for len(s) > 255 {
		parts, s = append(parts, `"`+s[:255]+`"`), s[255:]
	}
	return strings.Join(append(parts, `"`+s+`"`), " ")
}

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + " ..."
}

// list joins names for a sentence.
func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return cut(strings.Join(names, ", "))
}

// moment writes a time to the minute, in UTC.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// span writes a length of time as people say it.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", int(d.Seconds()))
}

func ttlOf(rrs []dns.RR) time.Duration {
	var ttl uint32
	for _, rr := range rrs {
		ttl = max(ttl, rr.Header().Ttl)
	}
	return lifetime(ttl)
}

// maxTTL is how long a cache keeps anything (RFC 8767, 4): a server that names more can at most be believed so far.
const maxTTL = 7 * 24 * time.Hour

// lifetime is the time that a TTL stands for; one with its highest bit set means 0 (RFC 2181, 8).
func lifetime(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return min(time.Duration(ttl)*time.Second, maxTTL)
}
