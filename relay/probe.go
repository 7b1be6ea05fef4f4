package relay

import (
	"context"
	"errors"
	"time"

	"crossfade/mail"
	"crossfade/relay/smtpclient"
)

// askTime bounds one question of Ask.
const askTime = 5 * time.Second

// Probe asks the backend whether it knows an address; see [Backend.Ask]. It
// makes a Backend a [Prober].
func (b *Backend) Probe(ctx context.Context, addr mail.Address) Knows {
	knows, reply := b.Ask(ctx, addr)
	if knows == Unsure {
		b.log.Debug("backend could not say whether it knows an address", "rcpt", addr.String(), "reply", reply.String())
	}
	return knows
}

// Ask asks the backend by MAIL FROM:<> and RCPT whether it knows an address,
// over connections of its own and in 5 seconds at most. The answer is sure
// only when it is a 2xx, or a 5xx that says that there is no such mailbox; a
// backend that is paused or down is not asked. The reply is the backend's, or
// says in its text why there is none.
func (b *Backend) Ask(ctx context.Context, addr mail.Address) (Knows, mail.Reply) {
	if !b.gate.serving() {
		return Unsure, mail.Reply{Code: 451, Text: "the backend is out of service and was not asked"}
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	select {
	case b.asking <- struct{}{}:
		defer func() { <-b.asking }()
	case <-ctx.Done():
		return Unsure, mail.Reply{Code: 451, Text: "too many questions are being asked"}
	}
	a, err := b.ask(ctx, addr)
	switch {
	case err != nil:
		return Unsure, unasked(err)
	case a.Step == smtpclient.StepRcpt && a.Reply.Positive():
		return KnowsIt, a.Reply
	case a.Step == smtpclient.StepRcpt && a.Reply.UnknownUser():
		return KnowsNo, a.Reply
	}
	return Unsure, a.Reply
}

func unasked(err error) mail.Reply {
	var r *mail.Reply
	if errors.As(err, &r) {
		return *r
	}
	return mail.Reply{Code: 451, Text: err.Error()}
}

// ask uses a kept connection where there is one. A server may leave an idle
// client at any time, so a kept connection that fails proves nothing.
func (b *Backend) ask(ctx context.Context, addr mail.Address) (smtpclient.Answer, error) {
	if c := b.probes.take(smtpclient.Origin{}); c != nil {
		a, err := c.Verify(ctx, addr)
		if err == nil || ctx.Err() != nil {
			b.probes.put(ctx, c)
			return a, err
		}
	}
	c, err := b.probes.dial(ctx, b.currentTarget, smtpclient.Origin{})
	if err != nil {
		return smtpclient.Answer{}, err
	}
	a, err := c.Verify(ctx, addr)
	b.probes.put(ctx, c)
	return a, err
}
