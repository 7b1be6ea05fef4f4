package mail

import (
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// ID names a queued message. It is a ULID in its 26 characters, so ids sort by
// the time of their making.
type ID string

// NewID makes an id that no other message has, on any node.
func NewID() ID { return ID(ulid.Make().String()) }

// Valid tells whether id has the form that [NewID] gives.
func (id ID) Valid() bool {
	_, err := ulid.ParseStrict(string(id))
	return err == nil
}

// Route says which way a recipient's mail goes.
type Route string

// The routes. Out is for what is not ours to keep: bounces to senders outside.
const (
	Old Route = "old"
	New Route = "new"
	Out Route = "out"
)

// Other gives the opposite mail system of Old or New, and r itself otherwise.
func (r Route) Other() Route {
	switch r {
	case Old:
		return New
	case New:
		return Old
	}
	return r
}

// Body is the content declared at MAIL (RFC 6152); empty means 7BIT.
type Body string

// The body types that are accepted.
const (
	Body7Bit     Body = "7BIT"
	Body8BitMIME Body = "8BITMIME"
)

// Ret is what of the message a DSN returns (RFC 3461, 4.3); empty leaves the
// choice to us.
type Ret string

// The values of RET.
const (
	RetFull Ret = "FULL"
	RetHdrs Ret = "HDRS"
)

// Notify is the set of occasions on which a sender wants a DSN (RFC 3461,
// 4.1). The zero value is "not said": a failure, and a delay where that is the
// custom.
type Notify uint8

// The members of Notify.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Wants tells whether a DSN for the occasion what should be sent.
func (n Notify) Wants(what Notify) bool {
	if n == 0 {
		return what == NotifyFailure || what == NotifyDelay
	}
	return n&what != 0 && n&NotifyNever == 0
}

// Client is what was known of the peer that handed the message over.
type Client struct {
	Addr  netip.AddrPort `json:"addr,omitzero"`
	Helo  string         `json:"helo,omitempty"`
	ESMTP bool           `json:"esmtp,omitempty"`
	TLS   string         `json:"tls,omitempty"` // version and cipher suite; empty in clear
}

// Envelope is everything about an accepted message but its bytes. It does not
// change once the message is queued.
type Envelope struct {
	ID         ID          `json:"id"`
	From       Address     `json:"from,omitzero"`
	Recipients []Recipient `json:"rcpts"`
	Received   time.Time   `json:"received"`
	Size       int64       `json:"size"` // octets of the stored body, trace headers included; set by the store
	Body       Body        `json:"body,omitempty"`
	UTF8       bool        `json:"utf8,omitempty"` // SMTPUTF8 was given (RFC 6531)
	Ret        Ret         `json:"ret,omitempty"`
	EnvID      string      `json:"envid,omitempty"` // decoded ENVID
	Client     Client      `json:"client,omitzero"`
	MessageID  string      `json:"msgid,omitempty"` // of the header, for people who search; never an identity
	Passage    Passage     `json:"passage,omitzero"`
	// Trace is what the relay learnt of the message only after its header had
	// passed by: whole header lines in ASCII, each with its CRLF, that go on top of
	// the stored body wherever the message is sent or shown (Authentication-Results,
	// an ARC set, the headers of a content filter). Size does not count it.
	Trace string `json:"trace,omitempty"`
	// RequireTLS says that REQUIRETLS was given (RFC 8689).
	RequireTLS bool `json:"requiretls,omitempty"`
	// TLSOptional says that the header has TLS-Required: No (RFC 8689, 3): what the
	// owner of the next server publishes about TLS is not to be in the way.
	TLSOptional bool `json:"tlsoptional,omitempty"`
}

// Whole is the message as it is sent on: Trace, and then the stored body, which
// it is read from.
func (e *Envelope) Whole(body io.Reader) io.Reader {
	if e.Trace == "" {
		return body
	}
	return io.MultiReader(strings.NewReader(e.Trace), body)
}

// WholeSize is the number of octets of Whole.
func (e *Envelope) WholeSize() int64 { return e.Size + int64(len(e.Trace)) }

// Passage is what the trace headers of a message tell of its earlier ways
// through this relay. The zero value says that it was never here.
type Passage struct {
	// From is the mail system that handed the message over, as far as its
	// address tells.
	From Route `json:"from,omitempty"`
	Hops int   `json:"hops,omitempty"` // Received fields that it came with
	Ours int   `json:"ours,omitempty"` // of those, written here
	// IDs and For are what ours say, the latest first, ten at most: queue ids, and
	// the keys of the recipients where there was only one.
	IDs []string `json:"ids,omitempty"`
	For []string `json:"for,omitempty"`
}

// IsZero tells whether the message was never here.
func (p Passage) IsZero() bool { return p.Hops == 0 && p.Ours == 0 && p.From == "" }

// Recipient is one address that the message has to reach.
type Recipient struct {
	// Addr is where it is sent: aliases are resolved when it arrives.
	Addr Address `json:"addr"`
	// Orig is the address of the RCPT command when it differs from Addr.
	Orig Address `json:"orig,omitzero"`
	// User is the key in the state table; empty when the address is not ours.
	User string `json:"user,omitempty"`
	// Hint is the route when the table has no such user: the side that said it
	// knows the address.
	Hint   Route  `json:"hint,omitempty"`
	ORcpt  string `json:"orcpt,omitempty"` // "type;address", decoded (RFC 3461, 4.2)
	Notify Notify `json:"notify,omitempty"`
}

// Given is the address as the sender wrote it.
func (r Recipient) Given() Address {
	if r.Orig.IsNull() {
		return r.Addr
	}
	return r.Orig
}
