package arc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"crossfade/relay/authn/dkim"
)

// MaxSets is the number of sets in a chain (RFC 8617, 4.2.1).
const MaxSets = 50

// The fields of a set, in the order in which a seal covers them (RFC 8617,
// 5.1.1).
var fieldNames = [3]string{"arc-authentication-results", "arc-message-signature", "arc-seal"}

const (
	fieldAAR = iota
	fieldAMS
	fieldAS
)

// set is one set of a chain, as its header fields say it.
type set struct {
	fields  [3]*dkim.Field
	results string // of the AAR, behind the instance

	ams, as    *dkim.Signature
	amsErr     error // the AMS cannot be read: it does not verify
	cv         string
	amsDigest  []byte
	sealDigest []byte
}

// chain is what a header says of a chain, with every digest that needs the
// header.
type chain struct {
	sets  []*set // by instance, from 1
	count int    // the highest instance that any field names; 0: there is no chain
	ended bool   // the newest set says that the chain failed
}

// errChain is what makes a chain fail whatever its signatures are.
type errChain struct{ reason string }

func (e *errChain) Error() string { return e.reason }

func failed(format string, args ...any) error { return &errChain{fmt.Sprintf(format, args...)} }

// collector puts the fields of a header into sets.
type collector struct {
	sets  map[int]*set
	count int
	err   error // the first
}

// collect reads the sets of a header (RFC 8617, 5.2, steps 1 to 3). The chain is
// never nil; an error is an [*errChain].
func collect(f *dkim.Fields) (*chain, error) {
	c := collector{sets: map[int]*set{}}
	for kind, name := range fieldNames {
		fields := f.Named(name)
		if len(fields) > MaxSets {
			c.note(failed("more than %d %s fields", MaxSets, name))
			fields = fields[:MaxSets]
		}
		for _, field := range fields {
			c.add(kind, field)
		}
	}
	if c.count > MaxSets {
		c.note(failed("instance %d is above %d", c.count, MaxSets))
	}
	out := &chain{count: c.count, ended: sealFailed(c.sets[c.count])}
	if c.err != nil || c.count == 0 {
		return out, c.err
	}
	if out.ended {
		return out, failed("the seal of instance %d says that the chain failed", c.count)
	}
	return out, out.assemble(c.sets)
}

func (c *collector) note(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *collector) add(kind int, field *dkim.Field) {
	n, rest, err := instance(kind, field.Text())
	if err != nil {
		c.note(failed("%s: %v", fieldNames[kind], err))
		return
	}
	c.count = max(c.count, n)
	s := c.sets[n]
	if s == nil {
		s = &set{}
		c.sets[n] = s
	}
	if s.fields[kind] != nil {
		c.note(failed("%s is there twice with i=%d", fieldNames[kind], n))
		return
	}
	s.fields[kind] = field
	if kind == fieldAAR {
		s.results = rest
	}
}

// sealFailed tells whether a set's seal has cv=fail.
func sealFailed(s *set) bool {
	if s == nil || s.fields[fieldAS] == nil {
		return false
	}
	tags, err := dkim.ParseTags(s.fields[fieldAS].Text())
	if err != nil {
		return false
	}
	cv, _ := tags.Get("cv")
	return cv == string(Fail)
}

// assemble checks the structure and reads the signatures.
func (c *chain) assemble(byInstance map[int]*set) error {
	for n := 1; n <= c.count; n++ {
		s := byInstance[n]
		if s == nil {
			return failed("there is no set with i=%d", n)
		}
		for kind, name := range fieldNames {
			if s.fields[kind] == nil {
				return failed("the set with i=%d has no %s", n, name)
			}
		}
		if err := s.parse(); err != nil {
			return failed("i=%d: %v", n, err)
		}
		want := string(Pass)
		if n == 1 {
			want = string(None)
		}
		if s.cv != want {
			return failed("the seal of instance %d says cv=%s", n, printable(s.cv))
		}
		c.sets = append(c.sets, s)
	}
	return nil
}

// parse reads the two signatures. An AMS that cannot be read is an error for the
// newest set only, which is for the verifier to say.
func (s *set) parse() error {
	s.ams, s.amsErr = parseAMS(s.fields[fieldAMS].Text())
	as, err := dkim.ParseSeal(s.fields[fieldAS].Text())
	if err != nil {
		return fmt.Errorf("arc-seal: %w", err)
	}
	if _, ok := as.Tags.Get("h"); ok {
		return errors.New("arc-seal: tag h= is not allowed") // RFC 8617, 4.1.3
	}
	cv, ok := as.Tags.Get("cv")
	if !ok {
		return errors.New("arc-seal: tag cv= is missing")
	}
	s.as, s.cv = as, cv
	return nil
}

func parseAMS(text string) (*dkim.Signature, error) {
	ams, err := dkim.ParseMessageSignature(text)
	if err != nil {
		return nil, err
	}
	if ams.Partial {
		// What stands behind the end is nobody's word, and trust in the sealer would
		// cover it too.
		return nil, errors.New("tag l= leaves out the end of the body")
	}
	for _, name := range ams.Signed {
		// Other fields of a chain and Authentication-Results must not be signed either
		// (RFC 8617, 4.1.2), but that harms those alone who did it.
		if name == fieldNames[fieldAS] {
			return nil, errors.New("tag h= names ARC-Seal")
		}
	}
	return ams, nil
}

// digest computes what the signatures are of, as far as the header goes, and lets
// go of the header. Each seal covers what the one before it covers, and more, so
// that all of them together cost one pass.
func (c *chain) digest(f *dkim.Fields) {
	before := sha256.New()
	for _, s := range c.sets {
		s.sealDigest = s.digestSeal(before)
		for _, field := range s.fields {
			_, _ = before.Write(field.Relaxed())
		}
		if s.amsErr == nil {
			s.amsDigest = f.Digest(s.fields[fieldAMS], s.ams)
		}
	}
	for _, s := range c.sets {
		s.fields = [3]*dkim.Field{}
	}
}

// digestSeal is the digest that the seal signs; before has hashed the sets below.
func (s *set) digestSeal(before hash.Hash) []byte {
	h := fork(before)
	_, _ = h.Write(s.fields[fieldAAR].Relaxed())
	_, _ = h.Write(s.fields[fieldAMS].Relaxed())
	s.fields[fieldAS].WriteUnsigned(h, dkim.Relaxed, s.as.Tags)
	return h.Sum(nil)
}

// fork gives a hash that has hashed what h has.
func fork(h hash.Hash) hash.Hash {
	if c, ok := h.(hash.Cloner); ok {
		if other, err := c.Clone(); err == nil {
			return other
		}
	}
	// SHA-256 of the standard library can be cloned; without that there is no digest,
	// and no signature verifies.
	return sha256.New()
}

// instance reads the number of a field, and gives what stands behind it in an
// AAR, which is no tag list: the number comes first there, with comments around
// its parts (RFC 8617, 4.1.1).
func instance(kind int, text string) (n int, rest string, err error) {
	if kind != fieldAAR {
		tags, err := dkim.ParseTags(text)
		if err != nil {
			return 0, "", err
		}
		v, ok := tags.Get("i")
		if !ok {
			return 0, "", errors.New("there is no instance")
		}
		n, err = position(v)
		return n, "", err
	}
	s := skipCFWS(text)
	if s == "" || s[0] != 'i' {
		return 0, "", errors.New("the instance does not come first")
	}
	if s = skipCFWS(s[1:]); s == "" || s[0] != '=' {
		return 0, "", errors.New("the instance does not come first")
	}
	s = skipCFWS(s[1:])
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if n, err = position(s[:digits]); err != nil {
		return 0, "", err
	}
	rest = skipCFWS(s[digits:])
	if rest == "" || rest[0] != ';' {
		return 0, "", errors.New("no semicolon behind the instance")
	}
	return n, strings.TrimSpace(rest[1:]), nil
}

// position reads 1*2DIGIT. What is above 50 is for the caller.
func position(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || len(v) > 2 || n < 1 || v[0] == '+' {
		return 0, errors.New("the instance is not a number from 1 to 50")
	}
	return n, nil
}

// skipCFWS leaves out white space and comments at the beginning (RFC 5322,
// 3.2.2).
func skipCFWS(s string) string {
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" || s[0] != '(' {
			return s
		}
		end := commentEnd(s)
		if end < 0 {
			return s
		}
		s = s[end:]
	}
}

// commentEnd is where a comment that begins s is over; -1: never.
func commentEnd(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// printable makes a short piece of a stranger's text fit for a log and a header.
func printable(s string) string {
	if len(s) > 32 {
		s = s[:32]
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`"\();`, r) {
			return '?'
		}
		return r
	}, s)
}
