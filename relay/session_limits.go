package relay

import (
	"fmt"

	"crossfade/mail"
	"crossfade/relay/limit"
)

// The replies of limits for one client. The peer learns what to do, not which
// limit it was: that is in the log.
var (
	errManyMessages   = mail.Replyf(450, mail.Enhanced{4, 7, 1}, "too many messages in too short a time, try again later")
	errManyRecipients = mail.Replyf(450, mail.Enhanced{4, 7, 1}, "too many recipients in too short a time, try again later")
	errBusyMailbox    = mail.Replyf(450, mail.Enhanced{4, 2, 1}, "the mailbox gets too many messages in too short a time, try again later")
	errHarvest        = mail.Replyf(421, mail.Enhanced{4, 7, 0}, "too many unknown recipients, closing connection")
)

// limited notes that a client has reached a limit; reply is what it is told.
func (s *session) limited(name string, reply error) error {
	if f := s.srv.cfg.Metrics.Limited; f != nil {
		f(name)
	}
	return fmt.Errorf("%w: %s", reply, name)
}

// mayMail counts a message of the client. Who has logged in, or shows a certificate
// that counts, is exempt as trusted networks are.
func (s *session) mayMail(from mail.Address) error {
	if s.srv.trusts(s.conn.Info()) {
		return nil
	}
	if reason := s.srv.cfg.Guard.Mail(s.conn.Info().Remote.Addr(), from.Domain); reason != "" {
		return s.limited(reason, errManyMessages)
	}
	return nil
}

// recipients finds the recipients of addr within the client's limits.
func (s *session) recipients(addr mail.Address) ([]mail.Recipient, error) {
	info := s.conn.Info()
	if s.srv.trusts(info) {
		return s.resolve(addr)
	}
	guard, client := s.srv.cfg.Guard, info.Remote.Addr()
	if reason := guard.Rcpt(client, s.env.From.Domain); reason != "" {
		return nil, s.limited(reason, errManyRecipients)
	}
	rcpts, err := s.resolve(addr)
	if err != nil {
		return nil, s.slowDown(err)
	}
	for i := range rcpts {
		if reason := guard.Busy(client, rcpts[i].Given().Key()); reason != "" {
			return nil, s.limited(reason, errBusyMailbox)
		}
	}
	return rcpts, nil
}

// countMessage counts a message that was taken, once for each address that was
// given. It is not done at RCPT: anybody could then keep the mail of others from
// a mailbox by naming it often enough.
func (s *session) countMessage(env *mail.Envelope) {
	last := ""
	for i := range env.Recipients { // members of a group stand together
		key := env.Recipients[i].Given().Key()
		if key != last {
			s.srv.cfg.Guard.Message(env.Client.Addr.Addr(), key)
		}
		last = key
	}
}

// slowDown makes it expensive to find out who is there: the refusal of a
// recipient who does not exist is kept back for longer and longer, and then the
// connection ends.
func (s *session) slowDown(err error) error {
	if err != error(errNoUser) && err != error(errRelaying) || s.srv.trusts(s.conn.Info()) {
		return err
	}
	delay, cut := s.srv.cfg.Guard.Failed(s.conn.Info().Remote.Addr())
	if delay > 0 {
		if f := s.srv.cfg.Metrics.Limited; f != nil {
			f(limit.Slowed)
		}
		s.conn.Pause(delay)
	}
	if cut {
		return s.limited(limit.FailedRecipients, errHarvest)
	}
	return err
}
