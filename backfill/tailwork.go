package backfill

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
)

const (
	// lasting is how long a connection has to hold to count as a good one.
	lasting = time.Minute
	// manyFailures in a row that are not the server's, and a folder loses its
	// standing connection for benchTime: polling may work. It is the longest pause
	// between two tries of a mailbox, too.
	manyFailures = 5
	benchTime    = 15 * time.Minute
	// closeTime is how long a server that has few connections for us may take to
	// see that one of them is closed.
	closeTime = 50 * time.Millisecond
)

// stand watches a folder over a connection of its own until the connection
// fails, the place is another's, or nobody wants to know any more. run is the
// context of the connection: it outlives ctx, so that it can be closed in good
// order.
func (s *tailServer) stand(run, ctx context.Context, w *watching) {
	began := time.Now()
	session, err := s.t.cfg.Dialer.Open(run, w.acct)
	opened := err == nil
	if opened {
		s.connected(w)
		err = s.attend(ctx, session, w)
		session.Close()
	}
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	defer s.poke()
	delete(s.stands, w)
	w.cancel = nil
	if opened {
		s.up--
	}
	now := time.Now()
	if opened && now.Sub(began) >= lasting {
		w.failures = 0
	}
	switch {
	case w.gone:
		s.probing = s.probing && opened
	case run.Err() != nil:
		s.push(w, now) // for the next Run
	case err == nil:
		s.push(w, now.Add(s.t.cfg.Every)) // another has its place, or there is none
	default:
		s.judge(w, err, opened, now)
	}
}

// connected notes that the server takes connections.
func (s *tailServer) connected(w *watching) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.failures, s.probing = 0, false
	s.up++
	if s.up > s.bound || w.gone { // the bound was lowered meanwhile
		w.cancel()
	}
	s.poke()
}

// attend opens the folder, tells what happened since it was seen last, and waits
// for more.
func (s *tailServer) attend(ctx context.Context, session *imapconn.Session, w *watching) error {
	if ctx.Err() != nil {
		return nil
	}
	sel, err := session.Examine(w.folder)
	if err != nil {
		return err
	}
	s.saw(w, imapconn.Status{Messages: sel.Exists, UIDNext: sel.UIDNext, UIDValidity: sel.UIDValidity, ModSeq: sel.ModSeq}, true)
	return session.Watch(ctx, w.folder, sel.Exists, s.t.cfg.Watching, func(folder string) { s.heard(w, folder) })
}

// heard passes on what a server tells. What the folder holds is not known from
// then on.
func (s *tailServer) heard(w *watching, folder string) {
	s.t.mu.Lock()
	w.known, w.active = nil, time.Now()
	gone := w.gone
	s.changes++
	s.t.mu.Unlock()
	if !gone {
		w.changed(folder)
	}
}

// saw compares what a folder holds with what it held, and tells of a difference.
// A folder that was not seen before is told of when it gets a standing
// connection: something may have come between the caller's last look and this
// one, and the next one may be long in coming.
func (s *tailServer) saw(w *watching, now imapconn.Status, stands bool) {
	s.t.mu.Lock()
	tell := w.seen && (w.known == nil || !same(*w.known, now)) || !w.seen && stands
	alive := w.known != nil && !same(*w.known, now)
	w.known, w.seen = &now, true
	if alive {
		w.active = time.Now()
	}
	if tell {
		s.changes++
	}
	gone := w.gone
	s.t.mu.Unlock()
	if tell && !gone {
		w.changed(w.folder)
	}
}

// poll asks once how a folder is.
func (s *tailServer) poll(ctx context.Context, w *watching) {
	before := s.activeSince(w)
	opened, err := s.ask(ctx, w)
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	defer s.poke()
	s.polls--
	if s.lowered() {
		s.pollNext = time.Now().Add(closeTime)
	}
	s.polled++
	now := time.Now()
	switch {
	case w.gone:
		s.probing = s.probing && opened
	case ctx.Err() != nil:
		s.push(w, now) // for the next Run
	case err != nil:
		s.judge(w, err, opened, now)
	default:
		w.failures = 0
		s.push(w, now.Add(s.t.cfg.Every))
		if w.active.After(before) && !now.Before(w.benched) {
			s.makeRoom(w, now)
		}
	}
}

func (s *tailServer) activeSince(w *watching) time.Time {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return w.active
}

func (s *tailServer) ask(ctx context.Context, w *watching) (opened bool, err error) {
	session, err := s.t.cfg.Dialer.Open(ctx, w.acct)
	if err != nil {
		return false, err
	}
	defer session.Close()
	s.t.mu.Lock()
	s.failures, s.probing = 0, false
	s.t.mu.Unlock()
	stats, errs, err := session.Statuses([]string{w.folder})
	if err == nil {
		err = errs[w.folder]
	}
	if err == nil {
		s.saw(w, stats[w.folder], false)
	}
	return true, err
}

// judge decides what follows from an error, with Tail.mu held. opened tells
// whether the login had gone through.
func (s *tailServer) judge(w *watching, err error, opened bool, now time.Time) {
	s.probing = s.probing && opened
	w.failures++
	log := s.t.cfg.Log.With("user", w.acct.Login.String(), "server", s.address, "err", err)
	switch wait, throttled := imapconn.Throttled(err); {
	case throttled && !unavailable(err):
		s.refused(w, wait, now, err)
		s.push(w, now.Add(s.backoff(w.failures))) // soon: it waited for its turn already
	case !offline(err) && !unavailable(err): // the server is there; it is this mailbox that does not work
		if w.failures == 1 {
			log.Warn("tail: a mailbox cannot be watched; trying again")
		}
		w.benched = now.Add(min(s.t.cfg.Every<<min(w.failures-1, 10), benchTime))
		s.push(w, w.benched)
	case opened: // it went well, and ended
		log.Debug("tail: a connection ended; connecting again")
		s.again(w, now.Add(s.backoff(w.failures)), now)
	default:
		if s.failures++; s.failures == 1 {
			log.Warn("tail: the server cannot be reached; trying again")
		}
		s.until = now.Add(s.backoff(s.failures))
		s.again(w, s.until, now)
	}
}

// again gives a folder back to where it was: to its place among the standing
// ones, or to the queue when it came from there or failed too often while the
// server was there for others.
func (s *tailServer) again(w *watching, at time.Time, now time.Time) {
	alone := w.failures >= manyFailures && w.failures > s.failures+1
	if alone {
		w.benched = now.Add(benchTime)
	}
	if w.place != standing || alone {
		s.push(w, at)
		return
	}
	w.place, w.due = reserved, at
	s.reserves[w] = true
}

// refused lowers the bounds to what the server takes, and leaves it in peace for
// a while.
func (s *tailServer) refused(w *watching, wait time.Duration, now time.Time, err error) {
	s.until = now.Add(max(wait, s.backoff(1)))
	s.raise = now.Add(s.t.cfg.Regain)
	// Those that are being opened count as taken: each that is refused comes here.
	least := min(s.bound, 1)
	taken := len(s.stands)
	if w.place == polling {
		// Polls need connections, too. The refusals of a single mailbox may be its own.
		if s.pollBound == 1 && s.lastRefused != nil && s.lastRefused != w {
			taken = min(taken, s.bound-1)
		}
		s.pollBound, s.lastRefused = max(s.polls, 1), w
	}
	s.bound = min(s.bound, max(taken, least))
	if q := s.quietest(); q != nil && len(s.stands) > s.bound {
		q.cancel()
	}
	if !s.warned {
		s.warned = true
		s.t.cfg.Log.Warn("tail: the server wants fewer connections: mailboxes without a standing one are polled in turn",
			"server", s.address, "standing", s.bound, "asked_for", s.t.cfg.Standing, "err", err)
	}
}

// unavailable tells whether a login failed because something behind the server
// does not work just now (RFC 5530, 3).
func unavailable(err error) bool {
	var login *imapconn.LoginError
	return errors.As(err, &login) && login.Answer.Code == "UNAVAILABLE"
}

// offline tells errors of a connection from those of a mailbox.
func offline(err error) bool {
	var n net.Error
	var login *imapconn.LoginError
	var answer *imapconn.Error
	switch {
	case errors.As(err, &login), errors.As(err, &answer):
		return false
	case errors.As(err, &n), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return true
	}
	return strings.Contains(err.Error(), "goodbye")
}
