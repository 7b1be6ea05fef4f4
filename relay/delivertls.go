package relay

import (
	"context"
	"errors"
	"fmt"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

// errUnprotected marks why a message that requires TLS (RFC 8689) is not sent over
// a connection.
var errUnprotected = errors.New("the message requires TLS (REQUIRETLS)")

// unprotectedError is the reason, with the code that the sender is told.
type unprotectedError struct {
	status mail.Enhanced
	why    string
	later  bool // it may be otherwise soon, without anybody's doing
}

func (e *unprotectedError) Error() string { return errUnprotected.Error() + ", and " + e.why }
func (e *unprotectedError) Unwrap() error { return errUnprotected }

// unprotected tells why the message may not go over a connection; nil: it may.
// A report without a sender goes as well protected as it can (RFC 8689, 5), and a
// socket leaves nobody in between.
func (x *delivery) unprotected(c *backendConn) error {
	env := x.lease.Envelope
	switch {
	case !env.RequireTLS || env.From.IsNull() || c.Local():
		return nil
	case !c.Verified():
		// What is published is what proves such a server, and it could not be had now.
		published := x.w.b.currentTarget().Policy != nil
		return &unprotectedError{mail.Enhanced{5, 7, 10}, "the next mail system cannot be reached over TLS with a certificate that is checked", published}
	case !c.Caps().RequireTLS:
		return &unprotectedError{mail.Enhanced{5, 7, 30}, "the next mail system does not support REQUIRETLS", false}
	}
	return nil
}

// unprotected decides about a recipient of such a message. Its sender wants to know
// and not to have it sent (RFC 8689, 4.2.1 and 5), so it is given up at once, unless
// more is known of it already: an earlier attempt may have arrived, and whoever took
// the message over checked TLS then lacks that for a while.
func (r deliverRules) unprotected(v *deliverVerdict, item queue.Item, rcpt mail.Recipient, e *unprotectedError) {
	v.status, v.reason, v.Reply = e.status, "Your message asks to be sent over TLS only (REQUIRETLS), and "+e.why+".", "not sent: "+e.Error()
	v.alarm = fmt.Sprintf("%s cannot take a message that requires TLS: %s", r.route, e.why)
	if e.later || item.LastReply != "" {
		v.status[0] = 4
		r.again(v, item, rcpt)
	} else {
		v.reason += " It was not sent."
		r.fail(v, item, rcpt)
	}
}

// dialFree makes a connection for a message whose sender wants what is published
// about the TLS of servers left aside (RFC 8689, 4.2.2). What the operator wants
// holds. It serves one message.
func (b *Backend) dialFree(ctx context.Context, o smtpclient.Origin) (*backendConn, error) {
	b.makeRoom()
	t := b.currentTarget()
	t.Policy, t.TLSResult = nil, nil // nor counted for the owner of a policy that was not asked (RFC 8460, 3)
	c, err := smtpclient.DialAs(ctx, t, o)
	if errors.Is(err, smtpclient.ErrOrigin) {
		b.originRefused(o, err)
		c, err = smtpclient.DialAs(ctx, t, smtpclient.Origin{})
	}
	if err != nil {
		return nil, err
	}
	return &backendConn{c, -1}, nil // of no generation: it is not kept
}
