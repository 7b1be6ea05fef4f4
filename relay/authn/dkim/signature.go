package dkim

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// The algorithms of a= tags. rsa-sha1 is not among them (RFC 8301, 3.1).
const (
	RSASHA256     = "rsa-sha256"
	Ed25519SHA256 = "ed25519-sha256" // RFC 8463
)

// ErrBounds is a signature that is larger than what is looked at.
var ErrBounds = errors.New("it is not looked at")

// maxSigned is the number of names in one h= tag.
const maxSigned = 1000

// Signature is what the tags of a signature say.
type Signature struct {
	Tags      TagList
	Algorithm string // of a=
	Value     []byte // of b=
	Domain    string // of d=, in lower case, as A-labels
	Selector  string // of s=, likewise
	// Time and Expires are t= and x= in seconds since 1970; zero: not there.
	Time, Expires int64

	// The rest is of signatures that cover a message.

	BodyHash     []byte // of bh=
	Header, Body Canon  // of c=
	Signed       []string
	// Partial says that there is a tag l=: anybody can add to the end of the body. It
	// is for the caller to refuse.
	Partial bool
}

// KeyName is where the public key is to be found (RFC 6376, 3.6.2.1).
func (s *Signature) KeyName() string { return s.Selector + "._domainkey." + s.Domain }

// ParseSeal reads the tags that every signature has: a, b, d, s, t and x.
func ParseSeal(text string) (*Signature, error) {
	tags, err := ParseTags(text)
	if err != nil {
		return nil, err
	}
	return readSeal(tags)
}

func readSeal(tags TagList) (s *Signature, err error) {
	s = &Signature{Tags: tags}
	for _, name := range []string{"a", "b", "d", "s"} {
		if v, ok := tags.Get(name); !ok || v == "" {
			return nil, fmt.Errorf("tag %s= is missing", name)
		}
	}
	s.Algorithm, _ = tags.Get("a")
	if s.Algorithm != RSASHA256 && s.Algorithm != Ed25519SHA256 {
		return nil, errors.New("the algorithm of tag a= is not supported")
	}
	b, _ := tags.Get("b")
	if s.Value, err = Base64(b); err != nil || len(s.Value) == 0 {
		return nil, errors.New("tag b= is not base64")
	}
	if s.Domain, err = domainTag(tags, "d"); err != nil {
		return nil, err
	}
	if s.Selector, err = domainTag(tags, "s"); err != nil {
		return nil, err
	}
	if s.Time, err = timeTag(tags, "t"); err != nil {
		return nil, err
	}
	s.Expires, err = timeTag(tags, "x")
	return s, err
}

// ParseMessageSignature reads the tags of a signature that covers header and
// body: bh, c, h, l and q besides those of [ParseSeal]. From has to be signed
// (RFC 6376, 6.1.1).
func ParseMessageSignature(text string) (*Signature, error) {
	tags, err := ParseTags(text)
	if err != nil {
		return nil, err
	}
	return readMessageSignature(tags)
}

func readMessageSignature(tags TagList) (*Signature, error) {
	s, err := readSeal(tags)
	if err != nil {
		return nil, err
	}
	bh, ok := s.Tags.Get("bh")
	if s.BodyHash, err = Base64(bh); !ok || err != nil || len(s.BodyHash) == 0 {
		return nil, errors.New("tag bh= is missing or not base64")
	}
	if s.Header, s.Body, err = canonTag(s.Tags); err != nil {
		return nil, err
	}
	if s.Signed, err = signedTag(s.Tags); err != nil {
		return nil, err
	}
	if l, ok := s.Tags.Get("l"); ok {
		if _, err := number(l); err != nil {
			return nil, errors.New("tag l= is not a number")
		}
		s.Partial = true
	}
	if q, ok := s.Tags.Get("q"); ok && !hasWord(q, "dns/txt") {
		return nil, errors.New("tag q= names no way to find the key that is known")
	}
	if s.Expires > 0 && s.Time > s.Expires {
		return nil, errors.New("tag x= lies before t=")
	}
	return s, nil
}

// Expired tells whether x= is over.
func (s *Signature) Expired(now time.Time) bool { return s.Expires > 0 && now.Unix() > s.Expires }

// domainTag reads a domain, or a selector, which has the form of one.
func domainTag(tags TagList, name string) (string, error) {
	v, _ := tags.Get(name)
	domain, err := DomainName(v)
	if err != nil || name == "d" && !strings.Contains(domain, ".") {
		return "", fmt.Errorf("tag %s= is not a domain name", name)
	}
	return domain, nil
}

// DomainName is a domain or selector in lower case and A-labels (RFC 8616).
func DomainName(name string) (string, error) {
	ascii := true
	for i := range len(name) {
		ascii = ascii && name[i] < 0x80
	}
	if !ascii {
		var err error
		if name, err = idna.Lookup.ToASCII(name); err != nil {
			return "", fmt.Errorf("the name cannot be written in A-labels: %w", err)
		}
	}
	if name == "" || len(name) > 253 {
		return "", errors.New("a name has 1 to 253 octets")
	}
	name = strings.ToLower(name)
	for label := range strings.SplitSeq(name, ".") {
		if !labelForm(label) {
			return "", errors.New("a label of the name is not one")
		}
	}
	return name, nil
}

func labelForm(label string) bool {
	for i := range len(label) {
		switch c := label[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return label != "" && len(label) <= 63
}

func timeTag(tags TagList, name string) (int64, error) {
	v, ok := tags.Get(name)
	if !ok {
		return 0, nil
	}
	n, err := number(v)
	if err != nil {
		return 0, fmt.Errorf("tag %s= is not a time", name)
	}
	return n, nil
}

// number reads digits. RFC 6376, 3.5, allows more of them than anybody counts:
// what does not fit is as large as can be.
func number(s string) (int64, error) {
	if s == "" || len(s) > 76 || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("not a number")
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, nil
	}
	return n, nil
}

// canonTag reads c=. Without one, and for the body without a second name, the
// form is simple.
func canonTag(tags TagList) (header, body Canon, err error) {
	v, ok := tags.Get("c")
	if !ok {
		return Simple, Simple, nil
	}
	first, second, two := strings.Cut(v, "/")
	header, known := canonName(trimFWS(first))
	if two {
		body, ok = canonName(trimFWS(second))
		known = known && ok
	}
	if !known {
		return 0, 0, errors.New("tag c= names a canonical form that is not known")
	}
	return header, body, nil
}

func canonName(name string) (Canon, bool) {
	for _, c := range []Canon{Simple, Relaxed} {
		if name == c.String() {
			return c, true
		}
	}
	return 0, false
}

// signedTag reads h=.
func signedTag(tags TagList) ([]string, error) {
	v, ok := tags.Get("h")
	if !ok {
		return nil, errors.New("tag h= is missing")
	}
	if strings.Count(v, ":") >= maxSigned {
		return nil, fmt.Errorf("%w: tag h= names more than %d fields", ErrBounds, maxSigned)
	}
	names := strings.Split(strings.ToLower(v), ":")
	from := false
	for i, name := range names {
		names[i] = trimFWS(name)
		if !fieldName([]byte(names[i])) {
			return nil, errors.New("tag h= names something that is no field")
		}
		from = from || names[i] == "from"
	}
	if !from {
		return nil, errors.New("tag h= does not name From")
	}
	return names, nil
}

// hasWord tells whether a list with colons has a word.
func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ":") {
		if strings.EqualFold(trimFWS(w), word) {
			return true
		}
	}
	return false
}
