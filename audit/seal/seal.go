package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Signature is the member "signature" of a document.
type Signature struct {
	Alg string `json:"alg"` // Ed25519
	Key string `json:"key"` // public, in base64
	// Only are the members that it covers; absent: all.
	Only []string `json:"only,omitempty"`
	// Digests are the SHA-256, in hexadecimal, of the canonical form (RFC 8785) of each
	// part: a member, or what is right below one ("users/3", "journal/head"). The
	// members signature and sha256 are no parts.
	Digests map[string]string `json:"digests"`
	// Value is the signature, in base64, over "crossfade document\n" and the canonical
	// form of this object without it.
	Value string `json:"value,omitempty"`
}

const algorithm = "Ed25519"

// covers tells whether the signature is over a member.
func (s *Signature) covers(name string) bool {
	return name != "signature" && name != "sha256" && (len(s.Only) == 0 || slices.Contains(s.Only, name))
}

// Sign signs a document: anything that is encoded as a JSON object with whole
// numbers only. Its member signature, where it has one, does not matter. only names
// the members that are signed; none: all are.
func Sign(document any, k Key, only ...string) (*Signature, error) {
	if k.private == nil {
		return nil, errors.New("sign a document: there is no key")
	}
	data, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("sign a document: %w", err)
	}
	if err := strict(data); err != nil {
		return nil, fmt.Errorf("sign a document: %w", err)
	}
	s := &Signature{Alg: algorithm, Key: k.Public(), Only: only, Digests: map[string]string{}}
	err = s.digests(data, func(part, digest string, _ any) { s.Digests[part] = digest })
	if err != nil {
		return nil, fmt.Errorf("sign a document: %w", err)
	}
	text, err := s.signed()
	if err != nil {
		return nil, fmt.Errorf("sign a document: %w", err)
	}
	s.Value = base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, text))
	return s, nil
}

// signed is the text that the signature is over.
func (s Signature) signed() ([]byte, error) {
	s.Value = ""
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	object, err := Object(data)
	if err != nil {
		return nil, err
	}
	text, err := Canonical(object)
	return append([]byte("crossfade document\n"), text...), err
}

// digests gives the digest of each part that the signature covers.
func (s *Signature) digests(data []byte, f func(part, digest string, v any)) error {
	return eachPart(data, s.covers, func(part string, v any) error {
		text, err := Canonical(v)
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
		sum := sha256.Sum256(text)
		f(part, hex.EncodeToString(sum[:]), v)
		return nil
	})
}

// Result is what a check found.
type Result struct {
	Key string `json:"key,omitempty"` // that signed, public, in base64
	// Wrong says what does not match; empty: the document is what was signed.
	Wrong []string `json:"wrong,omitempty"`
	Parts int      `json:"parts"` // that were compared

	more int
}

// OK tells whether all matches.
func (r Result) OK() bool { return len(r.Wrong) == 0 }

// Check compares a document with its signature. key is the public key that has to
// have signed it; empty: whichever did, which the result names. The error is for
// what is no signed document, and for one that two readers may read differently,
// such as with a member that is there twice.
func Check(data []byte, key string) (Result, error) {
	var r Result
	if err := strict(data); err != nil {
		return r, err
	}
	var file struct {
		Signature *Signature `json:"signature"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return r, fmt.Errorf("its signature cannot be read: %w", err)
	}
	s := file.Signature
	if s == nil {
		return r, errors.New("it is not signed")
	}
	r.Key = s.Key
	if key != "" && key != s.Key {
		r.wrong("it was signed with the key %s, and not with %s", s.Key, key)
	}
	if err := s.verify(); err != nil {
		r.wrong("the signature: %v", err)
	}
	r.Parts = len(s.Digests)
	return r, r.compare(s, data)
}

// mostWrong bounds what is named.
const mostWrong = 100

func (r *Result) wrong(format string, args ...any) {
	if r.more++; r.more > mostWrong {
		r.Wrong = append(r.Wrong[:mostWrong], fmt.Sprintf("and %d more", r.more-mostWrong))
		return
	}
	r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...))
}

func (s *Signature) verify() error {
	key, err := base64.StdEncoding.DecodeString(s.Key)
	if s.Alg != algorithm || err != nil || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("%s with the key %q is not known: Ed25519 with 32 octets in base64 is", s.Alg, s.Key)
	}
	value, err := base64.StdEncoding.DecodeString(s.Value)
	if err != nil {
		return fmt.Errorf("its value is not base64: %w", err)
	}
	text, err := s.signed()
	if err != nil {
		return err
	}
	if !ed25519.Verify(key, text, value) {
		return errors.New("it does not fit the list of digests: the list, the key or the signature itself was changed")
	}
	return nil
}

// compare names the parts that differ. It takes the digests out of the signature.
func (r *Result) compare(s *Signature, data []byte) error {
	var changed, added []string
	left := s.Digests
	err := s.digests(data, func(part, digest string, v any) {
		signed, ok := left[part]
		delete(left, part)
		switch {
		case !ok:
			added = append(added, part+named(v)+" was added")
		case signed != digest:
			changed = append(changed, part+named(v)+" was changed")
		}
	})
	if err != nil {
		return err
	}
	for part := range left {
		changed = append(changed, part+" was signed and is not there")
	}
	slices.Sort(changed)
	slices.Sort(added)
	for _, text := range append(changed, added...) {
		r.wrong("%s", text)
	}
	return nil
}

// named says whom a part of a list is about, where it says so itself.
func named(v any) string {
	if m, ok := v.(map[string]any); ok && m["user"] != nil {
		return fmt.Sprintf(" (%v)", m["user"])
	}
	return ""
}
