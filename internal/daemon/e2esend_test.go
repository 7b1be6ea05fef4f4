package daemon_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// smtpSession is a client that knows whether a lost connection left a message
// in doubt.
type smtpSession struct {
	conn net.Conn
	text *textproto.Conn
}

// dialSMTP connects and says EHLO.
func dialSMTP(addr string) (*smtpSession, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s := &smtpSession{conn: conn, text: textproto.NewConn(conn)}
	if _, _, err := s.text.ReadResponse(220); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := s.cmd(250, "EHLO client.outside.test"); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *smtpSession) close() error { return s.text.Close() }

func (s *smtpSession) cmd(code int, format string, args ...any) error {
	id, err := s.text.Cmd(format, args...)
	if err != nil {
		return err
	}
	s.text.StartResponse(id)
	defer s.text.EndResponse(id)
	_, _, err = s.text.ReadResponse(code)
	return err
}

// send sends one message. doubt tells that the end of data was on its way and
// no reply came: the message may have been taken.
func (s *smtpSession) send(from string, to []string, body []byte) (reply string, doubt bool, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", false, err
	}
	if err := s.cmd(250, "MAIL FROM:<%s> BODY=8BITMIME", from); err != nil {
		return "", false, err
	}
	for _, rcpt := range to {
		if err := s.cmd(250, "RCPT TO:<%s>", rcpt); err != nil {
			return "", false, err
		}
	}
	if err := s.cmd(354, "DATA"); err != nil {
		return "", false, err
	}
	dots := s.text.DotWriter()
	if _, err := dots.Write(body); err != nil {
		return "", false, errors.Join(err, s.conn.Close(), dots.Close())
	}
	if err := dots.Close(); err != nil { // writes the dot
		return "", true, err
	}
	_, reply, err = s.text.ReadResponse(250)
	var refused *textproto.Error
	return reply, err != nil && !errors.As(err, &refused), err
}

// refusedForGood tells a reply of the class 5.
func refusedForGood(err error) bool {
	var refused *textproto.Error
	return errors.As(err, &refused) && refused.Code >= 500
}

// stream sends mail to all users without pause until its context ends.
type stream struct {
	addr    string
	users   []string
	aliases map[string]string // address -> user
	book    *book
	senders int
	pause   time.Duration
	bodies  bool // no message without a body: Dovecot gives it an empty line when it writes an mbox
	retry   bool // the relay dies now and then: try again, as a mail server would

	hot       atomic.Pointer[string] // the user who is being flipped gets more mail than others
	next      atomic.Int64
	accepted  atomic.Int64 // messages
	copies    atomic.Int64 // messages times recipients
	attempts  atomic.Int64
	doubtful  atomic.Int64 // the reply was lost
	failures  chan error   // what must never happen
	waitGroup sync.WaitGroup
}

// start begins to send; wait ends when ctx has ended and every sender has.
func (s *stream) start(ctx context.Context) (wait func() error) {
	s.failures = make(chan error, s.senders)
	for i := range s.senders {
		s.waitGroup.Go(func() {
			if err := s.sender(ctx, i%2 == 0); err != nil {
				s.failures <- err
			}
		})
	}
	return func() error {
		s.waitGroup.Wait()
		close(s.failures)
		var errs []error
		for err := range s.failures {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
}

// sender sends one message after the other, over a connection that it keeps or
// over a new one for each.
func (s *stream) sender(ctx context.Context, keep bool) error {
	var session *smtpSession
	hangUp := func() {
		if session != nil {
			_ = session.close() // a connection may be gone: the next message tells
			session = nil
		}
	}
	defer hangUp()
	tick := time.NewTicker(s.pause)
	defer tick.Stop()
	for ctx.Err() == nil {
		n := int(s.next.Add(1))
		if s.bodies && n%kinds == noBody {
			continue
		}
		for try := 0; ; try++ {
			var err error
			if session == nil {
				session, err = dialSMTP(s.addr)
			}
			if err == nil {
				err = s.one(session, n, try)
			}
			if err == nil {
				break
			}
			hangUp()
			if !s.retry || refusedForGood(err) {
				return fmt.Errorf("message %d: %w", n, err)
			}
			select {
			case <-ctx.Done():
				return nil // got no 250: nothing is owed
			case <-tick.C:
			}
		}
		if !keep {
			hangUp()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// one sends message n. Each try has a token of its own, so that a message
// that was taken while its reply was lost is told from a duplicate.
func (s *stream) one(session *smtpSession, n, try int) error {
	users, addrs := s.recipients(n)
	token := fmt.Sprintf("sent-%06d-%d", n, try)
	id := fmt.Sprintf("<%d.sent@outside.test>", n/2) // two share one
	body := compose(token, id, addrs[0], n)
	s.attempts.Add(1)
	reply, doubt, err := session.send(fmt.Sprintf("sender%d@outside.test", n%7), addrs, body)
	w := want{count: 1, sum: sha256.Sum256(lf(body))}
	if err != nil {
		if doubt {
			s.doubtful.Add(1)
			w.count, w.maybe = 0, 1
			for _, u := range users {
				s.book.note(u, token, w)
			}
		}
		return err
	}
	if !strings.Contains(reply, "queued as ") {
		return fmt.Errorf("a reply without a queue id: %q", reply)
	}
	s.accepted.Add(1)
	for _, u := range users {
		s.copies.Add(1)
		s.book.note(u, token, w)
	}
	return nil
}

// recipients gives the users who get message n, and the addresses to which it
// is sent.
func (s *stream) recipients(n int) (users, addrs []string) {
	add := func(user, addr string) {
		for _, u := range users {
			if u == user {
				return
			}
		}
		users, addrs = append(users, user), append(addrs, addr)
	}
	pick := func(k int) string { return s.users[k%len(s.users)] }
	local, domain, _ := strings.Cut(pick(n), "@")
	switch {
	case n%11 == 0:
		add(pick(n), local+"+tag@"+domain)
	case n%13 == 0:
		add(pick(n), strings.ToUpper(local)+"@"+strings.ToUpper(domain))
	case n%17 == 0 && len(s.aliases) > 0:
		for alias, user := range s.aliases {
			add(user, alias)
			break
		}
	default:
		add(pick(n), pick(n))
	}
	if hot := s.hot.Load(); hot != nil && n%3 == 0 {
		add(*hot, *hot)
	}
	if n%14 == 0 {
		for k := range 4 {
			u := pick(n*3 + k*len(s.users)/4)
			add(u, u)
		}
	}
	return users, addrs
}
