package authn

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"crossfade/relay/authn/dkim"
	"crossfade/relay/resolver"
)

// tags are those of a DKIM signature or a DKIM or DMARC record.
type tags map[string]string

// parseTags reads a list of tags (RFC 6376, 3.2), with names as they are and white space around values removed. It
// returns nil for what is none, a tag that comes twice included.
func parseTags(s string) tags {
	t := tags{}
	for part := range strings.SplitSeq(s, ";") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			if strings.TrimSpace(part) == "" {
				continue
			}
			return nil
		}
		name = strings.TrimSpace(name)
		if _, twice := t[name]; twice || len(t) == 50 {
			return nil
		}
		t[name] = strings.TrimSpace(value)
	}
	return t
}

// packed is a value without the white space that may be anywhere in it.
func (t tags) packed(name string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, t[name])
}

func newSignature(h *header, f field) *signature {
	_, value := splitField(h.text(f))
	s := &signature{field: f, tags: parseTags(string(value))}
	if s.tags == nil {
		s.judge(PermError, "the tags of the signature cannot be read")
		return s
	}
	s.result = DKIM{Domain: s.tags.packed("d"), Selector: s.tags.packed("s"), Algorithm: strings.ToLower(s.tags.packed("a"))}
	if d, ok := domainName(s.result.Domain); ok {
		s.result.Domain = d
	}
	b := s.tags.packed("b")
	s.result.Signature = b[:min(8, len(b))]
	return s
}

// examine judges what needs neither key nor body, and prepares the header for the rest.
func (s *signature) examine(h *header, now time.Time) {
	if !s.undecided() {
		return
	}
	d, ok := domainName(s.result.Domain)
	_, okSelector := domainName(s.result.Selector + "._domainkey." + d)
	switch {
	case !ok || !okSelector:
		s.judge(PermError, "d= and s= are no names that there can be")
		return
	case s.result.Algorithm == "rsa-sha1":
		s.judge(Policy, "rsa-sha1 must not be used (RFC 8301)")
		return
	}
	if _, has := s.tags["l"]; has {
		s.judge(Policy, "it leaves out the end of the body (l=)")
		return
	}
	if x, has := s.tags["x"]; has {
		if at, err := strconv.ParseInt(s.tags.packed("x"), 10, 64); err == nil && now.Unix() > at {
			s.judge(Policy, "it expired at %s", time.Unix(at, 0).UTC().Format(time.RFC3339))
			return
		}
		_ = x // what is no number is a syntax error to the library
	}
	s.prepare(h)
}

// prepare reads the signature, and computes what it signs of the header.
func (s *signature) prepare(h *header) {
	text := h.text(s.field)
	sig, err := dkim.ParseSignature(string(afterColon(text)))
	switch {
	case errors.Is(err, dkim.ErrBounds):
		s.judge(Policy, "%s", err)
		s.result.skipped = true
		return
	case err != nil:
		s.judge(PermError, "%s", err)
		return
	}
	names := map[string]struct{}{}
	for _, name := range sig.Signed {
		names[name] = struct{}{}
	}
	var covered [][]byte
	for _, f := range h.fields {
		if _, wanted := names[f.name]; wanted && f.name != "" && f.start != s.field.start {
			covered = append(covered, ended(h.text(f)))
		}
	}
	own := dkim.FieldsOf([][]byte{ended(text)}).Named("dkim-signature")
	if len(own) != 1 {
		s.judge(PermError, "the field of the signature cannot be read")
		return
	}
	s.sig, s.digest = sig, dkim.FieldsOf(covered).Digest(own[0], sig)
}

// ended is a field with the CRLF of its last line, which a header that the message ends in may lack.
func ended(text []byte) []byte {
	if bytes.HasSuffix(text, []byte("\n")) {
		return text
	}
	return append(bytes.Clone(text), "\r\n"...)
}

// afterColon is what stands behind the colon of a field.
func afterColon(text []byte) []byte {
	_, v := splitField(text)
	return v
}

// key is what a lookup of a key gave.
type key struct {
	records []string
	err     error
}

// lookUp begins to look up the key.
func (s *signature) lookUp(ctx context.Context, r *resolver.Resolver) {
	s.key = make(chan key, 1)
	name := s.result.Selector + "._domainkey." + s.result.Domain
	go func() {
		a, err := r.LookupTXT(ctx, name)
		s.key <- key{a.Records, err}
	}()
}

// waitKey waits for the key, and judges it. The lookup ends by itself.
func (s *signature) waitKey() {
	if !s.undecided() || s.text != "" {
		return
	}
	k := <-s.key
	switch {
	case errors.Is(k.err, resolver.ErrTemporary):
		s.judge(TempError, "the key could not be looked up")
	case errors.Is(k.err, resolver.ErrNoName) || k.err == nil && len(k.records) == 0:
		s.judge(PermError, "there is no key")
	case k.err != nil:
		s.judge(PermError, "the answer with the key is of no use")
	case len(k.records) > 1:
		s.judge(PermError, "there are %d records where the key should be", len(k.records))
	case k.records[0] == "":
		s.judge(PermError, "the key record is empty")
	default:
		s.text = k.records[0]
		s.measure()
	}
}

// measure judges what the library does not: how large the key is, and whether it may sign for subdomains.
func (s *signature) measure() {
	t := parseTags(s.text)
	if t == nil {
		s.judge(PermError, "the key record cannot be read")
		return
	}
	if flags := strings.Split(t.packed("t"), ":"); slices.Contains(flags, "s") {
		// RFC 6376, 3.6.1: the domain of i= must be that of d=.
		_, at, has := cutLast(s.tags.packed("i"), "@")
		if has && !strings.EqualFold(at, s.tags.packed("d")) {
			s.judge(PermError, "the key may not be used for subdomains (t=s)")
			return
		}
	}
	if k := t.packed("k"); k != "" && k != "rsa" {
		return
	}
	p := t.packed("p")
	if len(p) > 2*maxRSA/6+200 { // base64 of modulus and exponent with what is around them
		s.judge(Policy, "the key is larger than %d bits", maxRSA)
		return
	}
	der, err := base64.StdEncoding.DecodeString(p)
	if err != nil {
		return // the library says what is wrong
	}
	switch bits := rsaBits(der); {
	case bits == 0:
	case bits < minRSA:
		s.judge(Policy, "the key has %d bits, and less than %d are too few (RFC 8301)", bits, minRSA)
	case bits > maxRSA:
		s.judge(Policy, "the key is larger than %d bits", maxRSA)
	}
}

// rsaBits is the size of a key in either of the two forms that are in use (RFC 6376, erratum 3017); 0: it is none.
func rsaBits(der []byte) int {
	if pub, err := x509.ParsePKIXPublicKey(der); err == nil {
		if k, ok := pub.(*rsa.PublicKey); ok {
			return k.N.BitLen()
		}
		return 0
	}
	if k, err := x509.ParsePKCS1PublicKey(der); err == nil {
		return k.N.BitLen()
	}
	return 0
}
