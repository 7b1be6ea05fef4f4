package arc

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"time"

	"crossfade/relay/authn/dkim"
)

// SealerConfig is what a Sealer works with. Domain, Selector and Key
// are needed.
type SealerConfig struct {
	// Domain and Selector are where the public key is published.
	Domain, Selector string
	// Key gives the private key, RSA or Ed25519, for one message.
	Key func() crypto.Signer
	// MaxHeader is how much of a header is looked at, in octets; zero is
	// [dkim.DefaultMaxHeader]. A message with more is not sealed.
	MaxHeader int
	// Budget bounds what is held of the headers of all messages; nil does not.
	// Messages for which there is no room are not sealed.
	Budget *dkim.Budget
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Sealer adds sets to messages. It may be used by many at once.
type Sealer struct{ cfg SealerConfig }

// NewSealer makes a Sealer.
func NewSealer(cfg SealerConfig) (*Sealer, error) {
	if cfg.Key == nil {
		return nil, errors.New("arc: a sealer needs a key")
	}
	var err error
	if cfg.Domain, err = dkim.DomainName(cfg.Domain); err != nil {
		return nil, fmt.Errorf("arc: domain: %w", err)
	}
	if cfg.Selector, err = dkim.DomainName(cfg.Selector); err != nil {
		return nil, fmt.Errorf("arc: selector: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sealer{cfg: cfg}, nil
}

// KeyName is the DNS name at which the public key has to be.
func (s *Sealer) KeyName() string { return s.cfg.Selector + "._domainkey." + s.cfg.Domain }

// ErrNotSealed is a message that gets no set; what it is wrapped in says why. It
// is no fault of the message that it comes through.
var ErrNotSealed = errors.New("not sealed")

func notSealed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNotSealed, fmt.Sprintf(format, args...))
}

// Sealing is the work on one message.
type Sealing struct {
	s      *Sealer
	header dkim.Header
	looked bool
	err    error // why it cannot be sealed, as far as the header goes

	count  int       // sets that are there
	before hash.Hash // of those, as a seal covers them
	head   hash.Hash // of the header fields that are signed
	signed []string  // their names
	guard  []string  // names that are signed once more than there are fields of them
	body   *dkim.BodyHash
}

// Begin begins with a message.
func (s *Sealer) Begin() *Sealing {
	return &Sealing{s: s, header: dkim.Header{Max: s.cfg.MaxHeader, Budget: s.cfg.Budget}, body: dkim.NewBodyHash(dkim.Relaxed)}
}

// Close lets go of what is held. It is called last, and always.
func (x *Sealing) Close() { x.header.Release() }

// Write takes the next octets of the message as it will be sent on, below what
// goes on top of it, with CRLF line ends.
func (x *Sealing) Write(p []byte) {
	if !x.header.Over() {
		p = x.header.Write(p)
		if !x.header.Over() {
			return
		}
		x.look()
	}
	if x.err == nil {
		x.body.Write(p)
	}
}

// look reads the header when it is over, and keeps digests of it.
func (x *Sealing) look() {
	x.looked = true
	defer x.header.Release() // digests are all that is kept
	fields, err := x.header.Fields()
	switch {
	case err != nil:
		x.err = notSealed("%v", err)
		return
	case fields.Count("from") == 0:
		x.err = notSealed("the message has no From")
		return
	}
	x.signed, x.guard = signedNames(fields)
	x.head = sha256.New()
	fields.WriteSigned(x.head, dkim.Relaxed, x.signed)
	c, err := collect(fields)
	x.count, x.before = c.count, sha256.New()
	if err != nil {
		return // the chain fails, and is not covered by our seal
	}
	for _, s := range c.sets {
		for _, f := range s.fields {
			_, _ = x.before.Write(f.Relaxed())
		}
	}
}

// The fields that are signed where they are there: what people read, and what
// says how the body is read (RFC 6376, 5.4.1). Signed once more than they are
// there, so that no second one can be put on top. Neither Received, nor
// Authentication-Results, nor anything of ARC is among them (RFC 8617, 4.1.2).
var once = []string{
	"from", "to", "cc", "subject", "date", "message-id", "reply-to", "sender", "in-reply-to", "references",
	"mime-version", "content-type", "content-transfer-encoding",
}

// more are signed as often as they are there.
var more = []string{
	"resent-date", "resent-from", "resent-to", "resent-cc", "list-id", "list-help", "list-unsubscribe", "list-unsubscribe-post",
	"list-subscribe", "list-post", "list-owner", "list-archive", "dkim-signature",
}

// maxOfOneName bounds the length of h=; of fields that come more often the lowest
// are signed.
const maxOfOneName = 10

// signedNames gives what goes into h= of the fields that are there, and the names
// that go into it once more behind them.
func signedNames(f *dkim.Fields) (names, guard []string) {
	for _, name := range once {
		n := f.Count(name)
		for range min(n, maxOfOneName) {
			names = append(names, name)
		}
		if n > 0 && n <= maxOfOneName {
			guard = append(guard, name)
		}
	}
	for _, name := range more {
		for range min(f.Count(name), maxOfOneName) {
			names = append(names, name)
		}
	}
	return names, guard
}

// signAbove adds to what is signed the fields that go on top of the message: those
// of names of which no field may be added. A scanner may write another Subject.
func (x *Sealing) signAbove(above string) error {
	var h dkim.Header
	defer h.Release()
	h.Write([]byte(above))
	h.Close()
	fields, err := h.Fields()
	if err != nil {
		return notSealed("what goes on top: %v", err)
	}
	var names []string
	for _, name := range x.guard {
		for range fields.Count(name) {
			names = append(names, name)
		}
	}
	fields.WriteSigned(x.head, dkim.Relaxed, names)
	x.signed = append(append(x.signed, names...), x.guard...)
	return nil
}

// Seal gives the header lines of a new set, which go on top of everything. chain is what the Verifier found, and results
// an authserv-id with the results of all that was found out here, as in
// Authentication-Results ([Results]). above has the header lines that go between
// the set and the message. A chain that fails is sealed as failed once (RFC 8617,
// 5.1.2), one that has ended or is full or could not be judged is left as it is. It
// is called once.
func (x *Sealing) Seal(chain Result, results, above string) (string, error) {
	if !x.looked {
		x.header.Close()
		x.look()
	}
	if x.err != nil {
		return "", x.err
	}
	switch {
	case chain.Sets != x.count:
		return "", notSealed("the chain of %d sets was judged as one of %d", x.count, chain.Sets)
	case chain.Status == TempError:
		return "", notSealed("the chain could not be judged: %s", chain.Reason)
	case chain.Ended:
		return "", notSealed("the chain has failed before us")
	case x.count >= MaxSets:
		return "", notSealed("the chain has %d sets already", x.count)
	}
	aar, err := x.results(results)
	if err != nil {
		return "", err
	}
	if err := x.signAbove(above); err != nil {
		return "", err
	}
	return x.set(aar, chain.Status)
}

// set makes the signatures.
func (x *Sealing) set(aar string, status Status) (string, error) {
	key := x.s.cfg.Key()
	if key == nil {
		return "", errors.New("arc: there is no key to seal with")
	}
	ams, err := x.sign(amsName, x.messageTags(key), key, x.head)
	if err != nil {
		return "", err
	}
	if status != Pass {
		x.before = sha256.New()
	}
	_, _ = x.before.Write(relaxed(aar))
	_, _ = x.before.Write(relaxed(ams))
	as, err := x.sign(asName, x.sealTags(key, status), key, x.before)
	if err != nil {
		return "", err
	}
	return as + ams + aar, nil
}

// The names as they are written.
const (
	aarName = "ARC-Authentication-Results"
	amsName = "ARC-Message-Signature"
	asName  = "ARC-Seal"
)

// results is the AAR.
func (x *Sealing) results(text string) (string, error) {
	if strings.TrimSpace(text) == "" {
		return "", notSealed("there are no authentication results")
	}
	f := newFolder(aarName)
	f.word("i=" + strconv.Itoa(x.count+1) + ";")
	for w := range strings.FieldsSeq(text) {
		if len(w) > maxWord {
			return "", notSealed("the authentication results have a word of %d octets", len(w))
		}
		for i := range len(w) {
			if w[i] <= ' ' || w[i] > '~' {
				return "", notSealed("the authentication results are not ASCII")
			}
		}
		f.word(w)
	}
	return f.end(), nil
}

// messageTags are those of the AMS, but for b=.
func (x *Sealing) messageTags(key crypto.Signer) *folder {
	f := x.firstTags(amsName, key)
	f.word("c=relaxed/relaxed;")
	x.place(f)
	f.word("h=" + x.signed[0])
	for _, name := range x.signed[1:] {
		f.glue(":" + name)
	}
	f.glue(";")
	f.word("bh=" + base64.StdEncoding.EncodeToString(x.body.Sum()) + ";")
	return f
}

// sealTags are those of the AS, but for b=.
func (x *Sealing) sealTags(key crypto.Signer, status Status) *folder {
	f := x.firstTags(asName, key)
	f.word("cv=" + string(status) + ";")
	x.place(f)
	return f
}

func (x *Sealing) firstTags(name string, key crypto.Signer) *folder {
	algorithm := dkim.RSASHA256
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		algorithm = dkim.Ed25519SHA256
	}
	f := newFolder(name)
	f.word("i=" + strconv.Itoa(x.count+1) + ";")
	f.word("a=" + algorithm + ";")
	return f
}

func (x *Sealing) place(f *folder) {
	f.word("d=" + x.s.cfg.Domain + ";")
	f.word("s=" + x.s.cfg.Selector + ";")
	f.word("t=" + strconv.FormatInt(x.s.cfg.Now().Unix(), 10) + ";")
}

// sign ends a field with its signature; h has hashed what comes before the field.
func (x *Sealing) sign(name string, f *folder, key crypto.Signer, h hash.Hash) (string, error) {
	f.word("b=")
	own := relaxed(f.end())
	_, _ = h.Write(own[:len(own)-2])
	digest := h.Sum(nil)
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0) // the digest is the message (RFC 8463, 3)
	}
	value, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return "", fmt.Errorf("arc: make the signature of %s: %w", name, err)
	}
	text := base64.StdEncoding.EncodeToString(value)
	for len(text) > 0 {
		n := min(len(text), 16)
		f.glue(text[:n])
		text = text[n:]
	}
	return f.end(), nil
}

// relaxed is the canonical form of a field that we made.
func relaxed(field string) []byte {
	name, text, _ := strings.Cut(field, ":")
	return dkim.AppendRelaxed(nil, strings.ToLower(name), []byte(text))
}
