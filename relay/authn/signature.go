package authn

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"crossfade/relay/authn/dkim"
	"crossfade/relay/resolver"
)

func newSignature(h *header, f field) *signature {
	s := &signature{field: f}
	tags, err := dkim.ParseTags(string(afterColon(h.text(f))))
	if err != nil {
		s.judge(PermError, "the tags of the signature cannot be read: %s", err)
		return s
	}
	s.tags = tags
	s.result = DKIM{Domain: packed(tags, "d"), Selector: packed(tags, "s"), Algorithm: strings.ToLower(packed(tags, "a"))}
	if d, ok := domainName(s.result.Domain); ok {
		s.result.Domain = d
	}
	s.result.Signature = beginning(tags)
	return s
}

// beginning is what tells a signature from others of the same domain (RFC 8601, 2.7.1, header.b): eight octets of b=.
func beginning(tags dkim.TagList) string {
	v, _ := tags.Get("b")
	out := make([]byte, 0, 8)
	for i := 0; i < len(v) && len(out) < cap(out); i++ {
		if !strings.ContainsRune(" \t\r\n", rune(v[i])) {
			out = append(out, v[i])
		}
	}
	return string(out)
}

// packed is a tag without the white space that may be anywhere in it.
func packed(tags dkim.TagList, name string) string {
	v, _ := tags.Get(name)
	return strings.Join(strings.Fields(v), "")
}

// examine judges what needs neither key nor body, and prepares the header for the rest.
func (s *signature) examine(h *header, now time.Time) {
	if !s.undecided() {
		return
	}
	if s.result.Algorithm == "rsa-sha1" {
		s.judge(Policy, "rsa-sha1 must not be used (RFC 8301)")
		return
	}
	sig, err := dkim.ReadSignature(s.tags)
	switch {
	case errors.Is(err, dkim.ErrBounds):
		s.judge(Policy, "%s", err)
		s.result.skipped = true
	case err != nil:
		s.judge(PermError, "%s", err)
	case sig.Partial:
		s.judge(Policy, "it leaves out the end of the body (l=)")
	case sig.Expired(now):
		s.judge(Policy, "it expired at %s", time.Unix(sig.Expires, 0).UTC().Format(time.RFC3339))
	default:
		s.prepare(h, h.text(s.field), sig)
	}
}

// prepare computes what a signature signs of the header.
func (s *signature) prepare(h *header, text []byte, sig *dkim.Signature) {
	var named map[string]bool // of a header with very many fields only those are taken that are wanted
	if len(h.fields) > manyFields {
		named = make(map[string]bool, len(sig.Signed))
		for _, name := range sig.Signed {
			named[name] = true
		}
	}
	covered := make([][]byte, 0, min(len(h.fields), manyFields))
	for _, f := range h.fields {
		if f.name != "" && f.start != s.field.start && (named == nil || named[f.name]) {
			covered = append(covered, ended(h.text(f)))
		}
	}
	own, ok := dkim.FieldOf(ended(text))
	if !ok {
		s.judge(PermError, "the field of the signature cannot be read")
		return
	}
	s.sig, s.digest = sig, dkim.FieldsOf(covered).Digest(own, sig)
	s.result.Domain = sig.Domain // whose key is asked for
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
func (s *signature) lookUp(k *Check) {
	name := s.sig.KeyName()
	s.key = lookUp(k, k.inTime, func(ctx context.Context) key {
		a, err := k.c.cfg.Resolver.LookupTXT(ctx, name)
		return key{a.Records, err}
	})
}

// waitKey waits for the key, and judges it. The lookup ends by itself.
func (s *signature) waitKey(keys *keyCache) {
	if !s.undecided() {
		return
	}
	k := s.key.get()
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
		s.judgeKey(keys.parse(k.records[0]))
	}
}

// judgeKey takes the key that was found.
func (s *signature) judgeKey(key *dkim.Key, err error) {
	switch s.public = key; {
	case errors.Is(err, dkim.ErrKeySize):
		s.judge(Policy, "%s (RFC 8301)", err)
	case err != nil:
		s.judge(PermError, "%s", err)
	}
}
