package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"crossfade/mail"
)

// The envelope is stored as one blob: a version, then its fields in a fixed
// order, strings with their length in front. The sender, the id and the size
// have columns of their own. JSON costs ten times as much here.
const envelopeVersion = 1

// Flags of a recipient.
const (
	hasOrig = 1 << iota
	hasUser
	userIsAddr
	hasORcpt
)

// Flags at the end of an envelope.
const (
	requireTLS = 1 << iota
	tlsOptional
)

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendAddress(b []byte, a mail.Address) []byte {
	return appendString(appendString(b, a.Local), a.Domain)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// encodeEnvelope gives the blob.
func encodeEnvelope(env *mail.Envelope) []byte {
	b := make([]byte, 0, 128+96*len(env.Recipients))
	b = append(b, envelopeVersion)
	b = appendAddress(b, env.From)
	b = binary.AppendVarint(b, env.Received.UnixNano())
	b = appendString(b, string(env.Body))
	b = appendBool(b, env.UTF8)
	b = appendString(b, string(env.Ret))
	b = appendString(b, env.EnvID)
	b = appendString(b, env.MessageID)
	addr := ""
	if env.Client.Addr.IsValid() {
		addr = env.Client.Addr.String()
	}
	b = appendString(b, addr)
	b = appendString(b, env.Client.Helo)
	b = appendBool(b, env.Client.ESMTP)
	b = appendString(b, env.Client.TLS)
	b = binary.AppendUvarint(b, uint64(len(env.Recipients)))
	for i := range env.Recipients {
		b = appendRecipient(b, &env.Recipients[i])
	}
	return appendTail(b, env)
}

// appendTail adds what few messages have, as far as there is something: older
// versions wrote less, and do not read behind what they know.
func appendTail(b []byte, env *mail.Envelope) []byte {
	flags := byte(0)
	if env.RequireTLS {
		flags |= requireTLS
	}
	if env.TLSOptional {
		flags |= tlsOptional
	}
	if !env.Passage.IsZero() || env.Trace != "" || flags != 0 {
		b = appendPassage(b, &env.Passage)
	}
	if env.Trace != "" || flags != 0 {
		b = appendString(b, env.Trace)
	}
	if flags != 0 {
		b = append(b, flags)
	}
	return b
}

func appendPassage(b []byte, p *mail.Passage) []byte {
	b = appendString(b, string(p.From))
	b = binary.AppendUvarint(b, uint64(p.Hops))
	b = binary.AppendUvarint(b, uint64(p.Ours))
	for _, list := range [][]string{p.IDs, p.For} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			b = appendString(b, s)
		}
	}
	return b
}

func appendRecipient(b []byte, r *mail.Recipient) []byte {
	flags := byte(0)
	if !r.Orig.IsNull() {
		flags |= hasOrig
	}
	switch r.User {
	case "":
	case r.Addr.String():
		flags |= userIsAddr
	default:
		flags |= hasUser
	}
	if r.ORcpt != "" {
		flags |= hasORcpt
	}
	b = append(b, flags, byte(r.Notify))
	b = appendString(b, string(r.Hint))
	b = appendAddress(b, r.Addr)
	if flags&hasOrig != 0 {
		b = appendAddress(b, r.Orig)
	}
	if flags&hasUser != 0 {
		b = appendString(b, r.User)
	}
	if flags&hasORcpt != 0 {
		b = appendString(b, r.ORcpt)
	}
	return b
}

// reader takes a blob apart. After a mistake everything it gives is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) address() mail.Address {
	return mail.Address{Local: r.string(), Domain: r.string()}
}

// decodeEnvelope reads a blob of encodeEnvelope.
func decodeEnvelope(id mail.ID, size int64, blob []byte) (*mail.Envelope, error) {
	r := &reader{b: blob}
	if v := r.byte(); v != envelopeVersion {
		return nil, fmt.Errorf("envelope of %s: unknown version %d", id, v)
	}
	env := &mail.Envelope{ID: id, Size: size}
	env.From = r.address()
	env.Received = time.Unix(0, r.varint())
	env.Body = mail.Body(r.string())
	env.UTF8 = r.byte() != 0
	env.Ret = mail.Ret(r.string())
	env.EnvID = r.string()
	env.MessageID = r.string()
	if a := r.string(); a != "" {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return nil, fmt.Errorf("envelope of %s: %w", id, err)
		}
		env.Client.Addr = ap
	}
	env.Client.Helo = r.string()
	env.Client.ESMTP = r.byte() != 0
	env.Client.TLS = r.string()
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad = true
		n = 0
	}
	env.Recipients = make([]mail.Recipient, n)
	for i := range env.Recipients {
		r.recipient(&env.Recipients[i])
	}
	if len(r.b) > 0 {
		r.passage(&env.Passage)
	}
	if len(r.b) > 0 {
		env.Trace = r.string()
	}
	if len(r.b) > 0 {
		flags := r.byte()
		env.RequireTLS, env.TLSOptional = flags&requireTLS != 0, flags&tlsOptional != 0
	}
	if r.bad {
		return nil, fmt.Errorf("envelope of %s: %w", id, errors.New("it is cut short"))
	}
	return env, nil
}

func (r *reader) passage(p *mail.Passage) {
	p.From = mail.Route(r.string())
	p.Hops, p.Ours = int(r.uvarint()), int(r.uvarint())
	p.IDs, p.For = r.strings(), r.strings()
}

func (r *reader) strings() []string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	var list []string
	for range n {
		list = append(list, r.string())
	}
	return list
}

func (r *reader) recipient(rc *mail.Recipient) {
	flags := r.byte()
	rc.Notify = mail.Notify(r.byte())
	rc.Hint = mail.Route(r.string())
	rc.Addr = r.address()
	if flags&hasOrig != 0 {
		rc.Orig = r.address()
	}
	if flags&userIsAddr != 0 {
		rc.User = rc.Addr.String()
	}
	if flags&hasUser != 0 {
		rc.User = r.string()
	}
	if flags&hasORcpt != 0 {
		rc.ORcpt = r.string()
	}
}
