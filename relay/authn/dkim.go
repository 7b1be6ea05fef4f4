package authn

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"crossfade/relay/authn/dkim"
)

// signatures verifies the DKIM signatures of one message, with our own package dkim, which hashes the body as it comes, once
// for each canonical form, in linear time and without keeping it. go-msgauth 0.7.0 cannot be shown what strangers write
// without bounds that good mail meets too (docs/authentication.md); tests compare with it.
type signatures struct {
	k    *Check
	list []*signature
	more int // signatures that are not looked at

	bodies [2]*dkim.BodyHash // by canonical form: those that are wanted
}

// signature is one of those that are verified.
type signature struct {
	result DKIM
	field  field
	tags   dkim.TagList
	sig    *dkim.Signature
	digest []byte // of the header, as the signature covers it
	key    pending[key]
	public *dkim.Key // when it is known and good
}

// undecided tells whether the signature has still to be verified.
func (s *signature) undecided() bool { return s.result.Result == "" }

func (s *signature) judge(r Result, format string, args ...any) {
	s.result.Result, s.result.Reason = r, fmt.Sprintf(format, args...)
}

// begin chooses signatures and looks up their keys. Those that DMARC could count come first: others, put on top by
// whoever passed the message on, must not push them out.
func (v *signatures) begin(h *header) {
	for _, f := range h.fields {
		if f.name == "dkim-signature" && len(v.list) < maxParsed {
			v.list = append(v.list, newSignature(h, f))
		}
	}
	if len(v.k.author.domains) == 1 && len(v.list) > 1 {
		org := orgDomain(v.k.author.domains[0])
		slices.SortStableFunc(v.list, func(a, b *signature) int {
			return cmp.Compare(notAligned(a, org), notAligned(b, org))
		})
	}
	if len(v.list) > maxSignatures {
		v.list = v.list[:maxSignatures]
	}
	v.more = h.signed - len(v.list)
	if len(v.list) == 0 && h.signed > 0 { // none was kept
		v.list, v.more = []*signature{{}}, h.signed-1
	}
	if h.cut != "" {
		v.stop(!h.busy, h.cut)
		return
	}
	now := v.k.c.cfg.Now()
	for _, s := range v.list {
		s.examine(h, now)
		if s.undecided() {
			if v.bodies[s.sig.Body] == nil {
				v.bodies[s.sig.Body] = dkim.NewBodyHash(s.sig.Body)
			}
			s.lookUp(v.k)
		}
	}
}

func notAligned(s *signature, org string) int {
	if orgDomain(s.result.Domain) == org {
		return 0
	}
	return 1
}

// stop gives all signatures that are not decided yet the same result.
func (v *signatures) stop(forGood bool, why string) {
	r := Policy
	if !forGood {
		r = TempError
	}
	for _, s := range v.list {
		if s.undecided() {
			s.judge(r, "%s", why)
			s.result.skipped = true
		}
	}
}

// body takes the next octets of the body.
func (v *signatures) body(p []byte) {
	for _, b := range v.bodies {
		if b != nil {
			b.Write(p)
		}
	}
}

// end gives the results.
func (v *signatures) end() (out []DKIM) {
	for _, s := range v.list {
		if s.waitKey(&v.k.c.keys); s.undecided() {
			v.finish(s)
		}
		out = append(out, s.result)
	}
	return out
}

// finish verifies a signature whose body has come to its end.
func (v *signatures) finish(s *signature) {
	if err := s.sig.CheckBody(v.bodies[s.sig.Body]); err != nil {
		s.judge(Fail, "the body was changed")
		return
	}
	switch err := s.public.VerifySignature(s.sig, s.digest); {
	case err == nil:
		s.result.Result = Pass
	case errors.Is(err, dkim.ErrSignature):
		s.judge(Fail, "the signature does not fit")
	default:
		s.judge(PermError, "%s", err)
	}
}
