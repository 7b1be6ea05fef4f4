package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/limit"
	"crossfade/relay/wire"
	"crossfade/router"

	"github.com/emersion/go-smtp"
)

// session is one connection. Its methods run one after the other in the
// connection's goroutine: wire gives the library BDAT as DATA.
type session struct {
	srv  *Server
	conn *wire.Conn

	env    *mail.Envelope // of the open transaction; nil: none
	given  int            // RCPT commands accepted for it
	places map[string]int // key of an address -> its place in env.Recipients
	body   bodyReader

	messages int // accepted
	refused  int // commands and messages
	tls      string
}

func (s *Server) newSession(c *smtp.Conn) (smtp.Session, error) {
	conn, ok := c.Conn().(*wire.Conn)
	if !ok {
		return nil, smtpError(fmt.Errorf("relay: connection of type %T under the library", c.Conn()))
	}
	return &session{srv: s, conn: conn}, nil
}

// Reset drops the open transaction.
func (s *session) Reset() {
	s.env, s.given = nil, 0
	clear(s.places)
}

// Logout writes the summary of the connection. A connection of which everything
// was accepted has said all that with its messages.
func (s *session) Logout() error {
	level := slog.LevelDebug
	if s.refused > 0 {
		level = slog.LevelInfo
	}
	if !s.srv.log.Enabled(s.srv.ctx, level) {
		return nil
	}
	info := s.conn.Info()
	s.srv.loud.LogAttrs(s.srv.ctx, level, "connection ended", slog.Uint64("conn", info.Number), slog.Any("peer", info.Remote),
		slog.String("helo", info.Helo), slog.String("tls", tlsName(info.TLS)), slog.Int("messages", s.messages),
		slog.Int("refused", s.refused), slog.Duration("time", time.Since(info.Start)))
	return nil
}

// Mail opens a transaction.
func (s *session) Mail(from string, opts *smtp.MailOptions) error {
	if s.env != nil {
		return s.refuse("mail", "", mail.Replyf(503, mail.Enhanced{5, 5, 1}, "a transaction is open, RSET ends it"))
	}
	addr, err := s.path(from)
	if err != nil {
		return s.refuse("mail", from, badPath(553, mail.Enhanced{5, 1, 7}, "the sender", err))
	}
	if opts.RequireTLS && s.conn.Info().TLS == nil {
		return s.refuse("mail", from, mail.Replyf(555, mail.Enhanced{5, 5, 4}, "REQUIRETLS is for sessions under TLS"))
	}
	limit := s.srv.cfg.Limits.MaxMessageSize
	if opts.Size > limit {
		return s.refuse("mail", from, mail.Replyf(552, mail.Enhanced{5, 3, 4}, "the message is larger than %d octets", limit))
	}
	if !addr.IsASCII() && !opts.UTF8 {
		return s.refuse("mail", from, errNeedUTF8)
	}
	if err := s.mayMail(addr); err != nil {
		return s.refuse("mail", from, err)
	}
	if err := s.srv.cfg.Queue.Room(opts.Size); err != nil {
		return s.refuse("mail", from, putError(err))
	}
	s.env = &mail.Envelope{
		From: addr, Body: mail.Body(opts.Body), UTF8: opts.UTF8, Ret: mail.Ret(opts.Return), EnvID: opts.EnvelopeID,
		RequireTLS: opts.RequireTLS,
	}
	return nil
}

var errNeedUTF8 = mail.Replyf(553, mail.Enhanced{5, 6, 7}, "an address that is not ASCII needs SMTPUTF8")

// path makes an address of what the library read. The library has removed the
// quotes of the local part, and takes some paths without quotes that need them:
// dots in odd places, which are in use and harmless, and <a@b@c>, which is read
// in two ways.
func (s *session) path(unquoted string) (mail.Address, error) {
	a, err := mail.FromUnquoted(unquoted)
	if err != nil {
		return mail.Address{}, err
	}
	if strings.Contains(a.Local, "@") && !strings.Contains(s.conn.LastPath(), `"`) {
		return mail.Address{}, fmt.Errorf("address %q: the local part has characters that need quoting", unquoted)
	}
	return a, nil
}

func badPath(code int, e mail.Enhanced, what string, err error) error {
	return fmt.Errorf("%w: %w", mail.Replyf(code, e, "%s is not a mailbox address", what), err)
}

// refuse writes the event line of a refusal and gives the library its reply. err
// is or wraps a *mail.Reply; anything else is unknown, and so 451.
func (s *session) refuse(stage, what string, err error) error {
	s.refused++
	out := smtpError(err)
	var reply *smtp.SMTPError
	if !errors.As(out, &reply) {
		return out
	}
	if f := s.srv.cfg.Metrics.Refused; f != nil {
		f(stage, reply.Code)
	}
	level := slog.LevelInfo
	if reply.Code == 451 && !errors.Is(err, errBrokenOff) {
		level = slog.LevelError
	}
	if s.srv.log.Enabled(s.srv.ctx, level) {
		info := s.conn.Info()
		s.srv.loud.LogAttrs(s.srv.ctx, level, "refused "+stage, slog.Uint64("conn", info.Number), slog.Any("peer", info.Remote),
			slog.String("from", s.from()), slog.String("given", what), slog.Int("code", reply.Code), slog.String("reason", err.Error()))
	}
	return out
}

func (s *session) from() string {
	if s.env == nil {
		return ""
	}
	return "<" + s.env.From.String() + ">"
}

// Rcpt adds the recipients that an address stands for.
func (s *session) Rcpt(to string, opts *smtp.RcptOptions) error {
	if s.env == nil {
		return s.refuse("rcpt", to, mail.Replyf(503, mail.Enhanced{5, 5, 1}, "MAIL is wanted first"))
	}
	if s.given >= s.srv.cfg.Limits.MaxRecipients {
		return s.refuse("rcpt", to, errManyRcpts)
	}
	addr, err := s.path(to)
	if err != nil {
		return s.refuse("rcpt", to, badPath(553, mail.Enhanced{5, 1, 3}, "the recipient", err))
	}
	if !addr.IsASCII() && !s.env.UTF8 {
		return s.refuse("rcpt", to, errNeedUTF8)
	}
	orcpt, err := originalRcpt(opts)
	if err != nil {
		return s.refuse("rcpt", to, err)
	}
	if err := s.mayAddress(addr); err != nil {
		return s.refuse("rcpt", to, err)
	}
	rcpts, err := s.recipients(addr)
	if err != nil {
		return s.refuse("rcpt", to, err)
	}
	if have := len(s.env.Recipients); have > 0 && have+len(rcpts) > s.srv.cfg.Limits.MaxRecipients+router.MaxMembers {
		return s.refuse("rcpt", to, errManyRcpts)
	}
	notify := notifySet(opts.Notify)
	for _, r := range rcpts {
		r.ORcpt, r.Notify = orcpt, notify
		s.add(r)
	}
	s.given++
	return nil
}

var errManyRcpts = mail.Replyf(452, mail.Enhanced{4, 5, 3}, "too many recipients, send to the rest in another transaction")

// resolve finds the recipients of addr, asking the backends about an address in
// no table.
func (s *session) resolve(addr mail.Address) ([]mail.Recipient, error) {
	ctx, cancel := context.WithTimeout(s.srv.ctx, s.srv.cfg.Limits.ResolveTimeout)
	defer cancel()
	res, err := s.srv.cfg.Router.Resolve(ctx, addr)
	if err != nil {
		return nil, err
	}
	switch {
	case res.Status == router.NotOurs && s.srv.mayRelay(s.conn.Info(), addr):
		return []mail.Recipient{{Addr: addr, Hint: mail.Out}}, nil
	case res.Status == router.NotOurs:
		return nil, errRelaying
	case res.Status == router.Known:
		return res.Recipients, nil
	case res.Policy == router.PolicyReject:
		return nil, errNoUser
	}
	v := Verdict{Exists: true, Hint: mail.Old}
	if s.srv.cfg.Verifier != nil {
		v = s.srv.cfg.Verifier.Verify(ctx, res.Recipients[0].Addr)
	}
	if !v.Exists {
		return nil, errNoUser
	}
	for i := range res.Recipients {
		res.Recipients[i].Hint = v.Hint
	}
	return res.Recipients, nil
}

var (
	errNoUser   = mail.Replyf(550, mail.Enhanced{5, 1, 1}, "no such user here")
	errRelaying = mail.Replyf(550, mail.Enhanced{5, 7, 1}, "relaying denied")
)

// add takes a recipient into the envelope, or merges it with one that is there.
func (s *session) add(r mail.Recipient) {
	if len(s.env.Recipients) == 0 {
		s.env.Recipients = append(s.env.Recipients, r)
		return
	}
	if len(s.env.Recipients) == 1 {
		if s.places == nil {
			s.places = make(map[string]int)
		}
		s.places[s.env.Recipients[0].Addr.Key()] = 0
	}
	key := r.Addr.Key()
	if i, there := s.places[key]; there {
		have := &s.env.Recipients[i]
		have.Notify = mergeNotify(have.Notify, r.Notify)
		return
	}
	s.places[key] = len(s.env.Recipients)
	s.env.Recipients = append(s.env.Recipients, r)
}

// mergeNotify is what two requests for the same recipient ask for together.
func mergeNotify(a, b mail.Notify) mail.Notify {
	if a == b {
		return a
	}
	var sum mail.Notify
	for _, n := range []mail.Notify{a, b} {
		for _, bit := range []mail.Notify{mail.NotifySuccess, mail.NotifyFailure, mail.NotifyDelay} {
			if n.Wants(bit) {
				sum |= bit
			}
		}
	}
	return sum
}

func notifySet(values []smtp.DSNNotify) (set mail.Notify) {
	for _, v := range values {
		switch v {
		case smtp.DSNNotifyNever:
			set |= mail.NotifyNever
		case smtp.DSNNotifySuccess:
			set |= mail.NotifySuccess
		case smtp.DSNNotifyFailure:
			set |= mail.NotifyFailure
		case smtp.DSNNotifyDelayed:
			set |= mail.NotifyDelay
		}
	}
	return set
}

// originalRcpt is ORCPT as the envelope keeps it.
func originalRcpt(opts *smtp.RcptOptions) (string, error) {
	if opts.OriginalRecipient == "" {
		return "", nil
	}
	if printable(opts.OriginalRecipient) != opts.OriginalRecipient || len(opts.OriginalRecipient) > 500 {
		return "", mail.Replyf(501, mail.Enhanced{5, 5, 4}, "malformed ORCPT")
	}
	return strings.ToLower(string(opts.OriginalRecipientType)) + ";" + opts.OriginalRecipient, nil
}

// Data stores the message and answers with its id. The body is read past the
// library. Whatever happens to the connection meanwhile is an error of that
// read, and then nothing is queued.
func (s *session) Data(io.Reader) error {
	env := s.env
	if env == nil || len(env.Recipients) == 0 {
		return s.refuse("data", "", mail.Replyf(503, mail.Enhanced{5, 5, 1}, "RCPT is wanted first"))
	}
	s.env = nil
	env.ID = mail.NewID()
	env.Received = s.srv.cfg.Now()
	info := s.conn.Info()
	s.setClient(env, info)
	s.body.start(s, env, info)
	defer s.body.release()
	if err := s.srv.cfg.Queue.Put(s.srv.ctx, env, &s.body); err != nil {
		return s.refuse("data", string(env.ID), s.bodyError(err))
	}
	if !s.body.done {
		// A store that stops before the end of the body has half a message.
		return s.refuse("data", string(env.ID), errors.New("relay: the store did not read the message to its end"))
	}
	s.received(env)
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "queued as " + string(env.ID)}
}

// setClient notes who the client is. EHLO and STARTTLS may have changed it
// since the last message.
func (s *session) setClient(env *mail.Envelope, info wire.Info) {
	if info.TLS != nil && s.tls == "" {
		s.tls = tlsName(info.TLS)
	}
	env.Client = mail.Client{Addr: info.Remote, Helo: info.Helo, ESMTP: info.ESMTP, TLS: s.tls}
}

// received writes the event line of an accepted message.
func (s *session) received(env *mail.Envelope) {
	s.messages++
	s.srv.cfg.Guard.Accepted(env.Client.Addr.Addr(), s.given)
	s.countMessage(env)
	wait := time.Since(s.body.ended)
	if f := s.srv.cfg.Metrics.Received; f != nil {
		f(env.Size, len(env.Recipients), wait)
	}
	s.noteForged(env)
	if !s.srv.log.Enabled(s.srv.ctx, slog.LevelInfo) {
		return
	}
	s.srv.log.LogAttrs(s.srv.ctx, slog.LevelInfo, "received", slog.String("id", string(env.ID)),
		slog.String("from", "<"+env.From.String()+">"), slog.Int("rcpts", len(env.Recipients)), slog.Int64("size", env.Size),
		slog.String("msgid", env.MessageID), slog.Any("peer", env.Client.Addr), slog.String("helo", env.Client.Helo), slog.String("user", s.conn.Info().User),
		slog.Int("settled", s.conn.LineEndsSettled()), slog.Duration("wait", wait))
}

// noteForged counts the verdicts and the results in our name that the message came with, and says
// who sent it.
func (s *session) noteForged(env *mail.Envelope) {
	if s.body.forged == nil {
		return
	}
	if n := s.body.forged.taken; n > 0 && s.srv.cfg.Metrics.Stripped != nil {
		s.srv.cfg.Metrics.Stripped(n)
	}
	if s.body.forged.removed == 0 {
		return
	}
	if f := s.srv.cfg.Metrics.Forged; f != nil {
		f(s.body.forged.removed)
	}
	s.srv.log.LogAttrs(s.srv.ctx, slog.LevelInfo, "forged Authentication-Results were taken out", slog.String("id", string(env.ID)),
		slog.Int("fields", s.body.forged.removed), slog.Any("peer", env.Client.Addr), slog.String("from", "<"+env.From.String()+">"))
}

// bodyError says what a failed Put means: what the body's reader said comes
// first, for the store may have wrapped it.
func (s *session) bodyError(err error) error {
	var reply *mail.Reply
	var lib *smtp.SMTPError
	var refused *wire.RefusedError
	switch body := s.body.err; {
	case body == nil || body == io.EOF:
		return putError(err)
	case errors.Is(body, errHeaderFields):
		return s.limited(limit.HeaderFields, body)
	case errors.As(body, &reply) || errors.As(body, &lib):
		return body
	case errors.As(body, &refused): // wire has the words for the client
		return fmt.Errorf("%w: %w", mail.Replyf(refused.Code(), mail.Enhanced{refused.Code() / 100, 6, 0}, "refused for its bytes"), body)
	default:
		return fmt.Errorf("%w: %w", errBrokenOff, body)
	}
}

// errBrokenOff is a message that the client did not finish.
var errBrokenOff = errors.New("the message broke off")

// putError gives a full queue its reply; all else is unknown.
func putError(err error) error {
	if errors.Is(err, queue.ErrFull) {
		return fmt.Errorf("%w: %w", mail.Replyf(452, mail.Enhanced{4, 3, 1}, "not enough room for the message, try again later"), err)
	}
	return fmt.Errorf("queue the message: %w", err)
}
