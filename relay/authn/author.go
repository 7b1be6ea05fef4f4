package authn

import (
	"bytes"
	"io"
	"mime"
	"net/mail"
	"slices"
	"strings"
)

// author is what the From fields of a message say.
type author struct {
	// domains that it may be from: one in a message that is as RFC 5322 wants it.
	domains []string
	// wrong says why the author cannot be told; empty: it is the one domain.
	wrong string
}

// readFrom finds the domain of the author (RFC 7489, 6.6.1). A message with several From fields, with none, or with one
// that is not understood has no author that could be authenticated. All domains are given then which somebody might take
// for the author's, so that what is forged so does not get round a policy.
func readFrom(froms [][]byte, over bool) author {
	switch {
	case len(froms) == 0:
		return author{wrong: "no From field"}
	case over || len(froms) > 1:
		return author{candidates(froms), "several From fields, or a very long one"}
	}
	if len(froms[0]) > maxFrom {
		return author{candidates(froms), "the From field is very long"}
	}
	text := strings.ToValidUTF8(string(bytes.TrimSpace(unfold(froms[0]))), "?")
	list, err := addresses.ParseList(text)
	if err != nil {
		return author{candidates(froms), "the From field cannot be read"}
	}
	var domains []string
	for _, a := range list {
		_, d, _ := cutLast(a.Address, "@")
		d, ok := domainName(d)
		if !ok {
			return author{candidates(froms), "the From field has no domain that there can be"}
		}
		if !slices.Contains(domains, d) {
			domains = append(domains, d)
		}
	}
	switch {
	case len(domains) == 0:
		return author{wrong: "the From field has no address"}
	case len(domains) > 1:
		return author{fewer(domains), "the From field has addresses of several domains"}
	}
	return author{domains: domains}
}

// addresses reads address lists. Names in character sets that it does not know are no reason to refuse an address.
var addresses = mail.AddressParser{WordDecoder: &mime.WordDecoder{
	CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil },
}}

// candidates are all domains that follow an @ in fields, by no grammar at all.
func candidates(froms [][]byte) (out []string) {
	for _, f := range froms {
		text := strings.ToValidUTF8(string(unfold(f)), "?")
		for {
			i := strings.IndexByte(text, '@')
			if i < 0 {
				break
			}
			text = text[i+1:]
			end := strings.IndexFunc(text, func(r rune) bool { return r < 0x80 && !plainDomainByte(byte(r)) })
			if end < 0 {
				end = len(text)
			}
			d, ok := domainName(strings.Trim(text[:min(end, 1000)], ".-"))
			if ok && !slices.Contains(out, d) {
				out = append(out, d)
			}
			if len(out) > 100 {
				return fewer(out)
			}
		}
	}
	return fewer(out)
}

// fewer keeps the first and the last domains: those that readers show.
func fewer(domains []string) []string {
	if n := len(domains); n > maxAuthors {
		return slices.Concat(domains[:maxAuthors/2], domains[n-maxAuthors/2:])
	}
	return domains
}

func plainDomainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

// unfold takes the line ends out of a field.
func unfold(b []byte) []byte {
	if !bytes.ContainsAny(b, "\r\n") {
		return b
	}
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c != '\r' && c != '\n' {
			out = append(out, c)
		}
	}
	return out
}

// cutLast parts s at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
