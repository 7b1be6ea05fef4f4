package smtpclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"crossfade/mail"
)

// errTLS marks a failure of STARTTLS that an opportunistic target may answer
// with clear text.
var errTLS = errors.New("TLS could not be started")

// Dial connects to the target and greets it, up to the point where a
// transaction may begin. Its error is an [*Error]; [Error.Reply] tells whether
// the server itself refused. ctx bounds the dialling only.
func Dial(ctx context.Context, target Target) (*Conn, error) {
	return dialFor(ctx, target, Origin{})
}

func dialFor(ctx context.Context, target Target, o Origin) (*Conn, error) {
	t, err := target.filled()
	if err != nil {
		return nil, &Error{Step: StepConnect, Target: target.String(), Err: err}
	}
	if t.rule, err = t.ask(ctx); err != nil {
		return nil, &Error{Step: StepPolicy, Target: target.String(), Err: err}
	}
	c, err := dial(ctx, t, o)
	if err == nil || t.Mode != Opportunistic || t.rule.Require || !errors.Is(err, errTLS) || ctx.Err() != nil {
		return c, err
	}
	t.Logger.Warn("STARTTLS failed, sending in clear; use smtp+starttls:// to forbid that, or smtp+insecure:// to skip the attempt",
		"target", t.String(), "error", err)
	t.Mode = Insecure
	c, err = dial(ctx, t, o)
	if err == nil {
		c.name = target.String()
	}
	return c, err
}

func dial(ctx context.Context, t Target, o Origin) (*Conn, error) {
	name := t.String()
	dctx, cancel := context.WithTimeout(ctx, t.Timeouts.Connect)
	raw, err := t.DialContext(dctx, t.Network, t.Address)
	cancel()
	if err != nil {
		return nil, &Error{Step: StepConnect, Target: name, Err: err}
	}
	c := &Conn{t: t, name: name, raw: raw, nc: raw}
	stop := c.watch(ctx)
	defer stop()
	if t.Origin == OriginProxyV1 || t.Origin == OriginProxyV2 {
		if err := c.sendProxy(ctx, o); err != nil {
			return nil, c.fail(StepConnect, SentNothing, err)
		}
		c.identity = t.identity(o)
	}
	if step, err := c.open(ctx); err != nil {
		return nil, c.fail(step, SentNothing, c.aboutClient(step, err))
	}
	if t.Login != nil {
		if err := c.login(ctx); err != nil {
			return nil, c.fail(StepAuth, SentNothing, err)
		}
	}
	c.used = time.Now()
	return c, nil
}

// open runs the session up to a usable EHLO and names the step that failed.
func (c *Conn) open(ctx context.Context) (Step, error) {
	c.br = bufio.NewReaderSize(c.raw, maxReplyLine)
	if c.t.Mode == Implicit {
		err := c.handshake(ctx)
		c.counted(err)
		if err != nil {
			return StepConnect, err
		}
	}
	r, err := c.reply(ctx, c.t.Timeouts.Greeting)
	if err == nil && r.Code != 220 {
		err = unwelcome(r)
	}
	if err != nil {
		return StepGreeting, err
	}
	if err := c.hello(ctx); err != nil {
		return StepHello, err
	}
	if c.t.Mode == Implicit || c.t.Mode == Insecure || c.t.Network == "unix" {
		return "", nil
	}
	err = ErrNoTLS
	if c.caps.StartTLS {
		err = c.startTLS(ctx)
	}
	c.counted(err)
	switch {
	case err == nil:
	case c.t.rule.Require && c.t.Mode == Opportunistic:
		return StepSTARTTLS, fmt.Errorf("%w: %w", ErrPolicy, err)
	case c.caps.StartTLS || c.t.Mode == Required:
		return StepSTARTTLS, err
	default:
		return "", nil
	}
	if err := c.hello(ctx); err != nil {
		return StepHello, err
	}
	return "", nil
}

// unwelcome makes an error of a reply that is not the one to go on with. A
// reply that is neither 4xx nor 5xx has no meaning there.
func unwelcome(r mail.Reply) error {
	if r.Code >= 400 {
		return &r
	}
	return fmt.Errorf("%w: it said %q where that means nothing", ErrProtocol, r.String())
}

// hello says EHLO, or HELO to a server that does not know EHLO (RFC 5321,
// 3.2), or LHLO.
func (c *Conn) hello(ctx context.Context) error {
	verb := "EHLO "
	if c.t.LMTP {
		verb = "LHLO "
	}
	r, err := c.command(ctx, verb+c.t.Hello+"\r\n", c.t.Timeouts.Hello)
	if err == nil && r.Permanent() && !c.t.LMTP {
		if r, err = c.command(ctx, "HELO "+c.t.Hello+"\r\n", c.t.Timeouts.Hello); err == nil && r.Positive() {
			c.caps = Caps{}
			return nil
		}
	}
	if err != nil {
		return err
	}
	if !r.Positive() {
		return unwelcome(r)
	}
	c.caps = parseCaps(r.Text)
	return nil
}

func (c *Conn) startTLS(ctx context.Context) error {
	r, err := c.command(ctx, "STARTTLS\r\n", c.t.Timeouts.Hello)
	if err != nil {
		return fmt.Errorf("%w: %w", errTLS, err)
	}
	if r.Code != 220 {
		return fmt.Errorf("%w: %w", errTLS, unwelcome(r))
	}
	if c.br.Buffered() > 0 {
		// Bytes from before the handshake would be taken for replies of the
		// encrypted session (CVE-2021-33515 and its kin).
		return fmt.Errorf("%w: %w: it sent clear text behind its reply to STARTTLS", errTLS, ErrProtocol)
	}
	if err := c.handshake(ctx); err != nil {
		return fmt.Errorf("%w: %w", errTLS, err)
	}
	return nil
}

func (c *Conn) handshake(ctx context.Context) error {
	conf := c.t.tlsConfig()
	c.t.rule.apply(conf, &c.tested)
	tc := tls.Client(c.raw, conf)
	if err := c.raw.SetDeadline(until(ctx, c.t.Timeouts.Hello)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := tc.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", causeOf(ctx, err))
	}
	c.verified = !conf.InsecureSkipVerify || c.t.rule.Proves || c.t.Pinned && c.t.Mode != Opportunistic
	c.nc = tc
	c.br = bufio.NewReaderSize(tc, maxReplyLine)
	return nil
}
