package imapconn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Watching says how a folder is watched. The zero value gives the defaults.
type Watching struct {
	// Renew is the longest time for which a server is left alone; zero means 9
	// minutes. Servers may end an IDLE after 30 (RFC 2177, 3), and a NAT forgets a
	// silent connection after fewer, often 10.
	Renew time.Duration
	// Answer is the longest wait for an answer; zero means 30 seconds. A server
	// that takes longer counts as gone.
	Answer time.Duration
	// Poll is how often a server is asked that tells nothing by itself; zero means
	// 10 seconds.
	Poll time.Duration
}

const (
	defaultRenew  = 9 * time.Minute
	defaultAnswer = 30 * time.Second
	defaultPoll   = 10 * time.Second
	// firstRenew is how long the first IDLE lasts, the next ones twice as long
	// each: a server that takes IDLE and tells nothing is found out soon.
	firstRenew = time.Minute
	// shortIdle is an IDLE that the server ended too soon to be of use.
	shortIdle = 5 * time.Second
	// manyLies is how often in a row IDLE may fail to tell what NOOP tells then. A
	// single time may be chance: mail came in between.
	manyLies = 2
	// manyOverflows is how often NOTIFY is asked for again on one connection.
	manyOverflows = 3
)

// Examine opens a folder by its name on the wire for reading only (RFC 3501,
// 6.3.2): \Recent stays for the user's own program.
func (s *Session) Examine(wire string) (Selected, error) { return s.open("EXAMINE", wire) }

// Watch waits for changes of the folder that Examine opened, wire being its name
// and exists what it held, and calls changed with the name of a folder that has
// other messages or flags than before; the empty name stands for any folder.
// Folders beside the one that is open are told where the server has NOTIFY (RFC
// 5465). Where it has IDLE (RFC 2177) changes are told at once, elsewhere, and by
// servers that take IDLE and tell nothing, at the next poll.
//
// It returns nil when ctx ends, with the session ready for a further command;
// else the error that ended the connection. changed must not block.
func (s *Session) Watch(ctx context.Context, wire string, exists uint32, o Watching, changed func(wire string)) error {
	if s.broken != nil {
		return s.broken
	}
	w := &watch{s: s, ctx: ctx, o: o, wire: wire, exists: exists, changed: changed, renew: firstRenew}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&w.o.Renew, defaultRenew)
	def(&w.o.Answer, defaultAnswer)
	def(&w.o.Poll, defaultPoll)
	before := s.w.idle.Swap(int64(w.o.Answer))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		s.w.interrupt()
		close(interrupted)
	})
	defer func() {
		if !stop() {
			<-interrupted
		}
		s.w.resume()
		s.w.idle.Store(before)
	}()
	return w.run()
}

// watch is a folder being watched.
type watch struct {
	s       *Session
	ctx     context.Context
	o       Watching
	wire    string
	exists  uint32
	changed func(wire string)

	renew  time.Duration // of the next IDLE
	polled bool          // the server tells nothing by itself
	lies   int           // in a row
	late   bool          // a change was told just now
	// overflow: the server has dropped what NOTIFY asked for (RFC 5465, 5.8).
	overflow  bool
	overflows int
}

func (w *watch) run() error {
	if err := w.notify(); err != nil {
		return err
	}
	w.polled = !w.s.Has("IDLE")
	for w.ctx.Err() == nil {
		wait := w.idle
		if w.polled {
			wait = w.pause
		}
		if err := wait(); err != nil {
			return err
		}
		if w.ctx.Err() != nil {
			return nil
		}
		if err := w.probe(); err != nil {
			return err
		}
	}
	return nil
}

// notify asks for news of the other folders, too. A server that refuses is
// watched by IDLE alone.
func (w *watch) notify() error {
	w.overflow = false
	if !w.s.Has("NOTIFY") || w.overflows >= manyOverflows {
		return nil
	}
	c := newCommand("NOTIFY SET (selected (MessageNew MessageExpunge FlagChange)) (personal (MessageNew MessageExpunge))")
	err := w.s.run(c, w.take)
	var e *Error
	if errors.As(err, &e) {
		return nil
	}
	return err
}

// take looks at what the server tells. Everything that is not known is ignored.
func (w *watch) take(r *response) {
	switch {
	case r.name == "EXISTS":
		if r.num == w.exists {
			return // some servers repeat it to keep the connection alive
		}
		w.exists = r.num
		w.tell(w.wire)
	case r.name == "EXPUNGE":
		if w.exists > 0 {
			w.exists--
		}
		w.tell(w.wire)
	case r.name == "FETCH", r.name == "VANISHED":
		w.tell(w.wire)
	case r.name == "STATUS":
		w.tell(statusName(r))
	case r.name == "LIST":
		w.tell("")
	case r.code == "NOTIFICATIONOVERFLOW":
		w.overflow = true
		w.overflows++
		w.tell("")
	}
}

func (w *watch) tell(wire string) {
	w.late = true
	w.changed(wire)
}

// statusName gives the folder that a STATUS is about, "" when that cannot be
// told.
func statusName(r *response) string {
	vs, err := parseValues(r.rest)
	if err != nil || len(vs) < 2 || vs[0].isList {
		return ""
	}
	if strings.EqualFold(vs[0].str, "INBOX") {
		return "INBOX"
	}
	return vs[0].str
}

// idle is one IDLE (RFC 2177): it ends when it is time to renew it, when the
// server ends it, and with ctx.
func (w *watch) idle() error {
	began := time.Now()
	tag, early, err := w.s.send(newCommand("IDLE"), w.take)
	if err == nil && early == nil {
		early, err = w.s.goAhead(tag, w.take)
	}
	if err != nil {
		return w.s.fail(fmt.Errorf("IDLE: %w", w.s.reason(err, w.take)))
	}
	if early != nil {
		w.polled = true // NO or BAD: it is not for this folder, or not at all
		return nil
	}
	ended, err := w.listen(tag, began.Add(min(w.renew, w.o.Renew)))
	if err != nil {
		return w.s.fail(fmt.Errorf("IDLE: %w", err))
	}
	w.renew = min(2*w.renew, w.o.Renew)
	if ended {
		w.polled = w.polled || time.Since(began) < shortIdle
		return nil
	}
	if _, err = w.s.bw.WriteString("DONE\r\n"); err == nil {
		err = w.s.bw.Flush()
	}
	if err == nil {
		_, err = w.s.answer(tag, w.take)
	}
	if err != nil {
		return w.s.fail(fmt.Errorf("IDLE: the server does not answer DONE: %w", err))
	}
	return nil
}

// listen takes what comes until a time, until ctx ends, or until the command tag
// is answered: ended. Without a command tag is empty.
func (w *watch) listen(tag string, until time.Time) (ended bool, err error) {
	for !ended && !w.overflow {
		more, err := w.s.await(time.Until(until))
		if err != nil || !more {
			return false, err
		}
		r, err := w.s.next()
		if err != nil {
			return false, err
		}
		if r.tag == "+" {
			continue // "still here", as some have it
		}
		if r.name == "BYE" {
			return false, fmt.Errorf("the server said goodbye: %s", r.words())
		}
		if ended, err = w.s.take(r, tag, w.take); err != nil {
			return false, err
		}
	}
	return ended, nil
}

// pause is the wait between two polls. What the server tells by itself, by
// NOTIFY, is taken at once.
func (w *watch) pause() error {
	if _, err := w.listen("", time.Now().Add(w.o.Poll)); err != nil {
		return w.s.fail(fmt.Errorf("wait for news: %w", err))
	}
	return nil
}

// probe asks once more by NOOP: it shows that the connection lives, and whether
// the server told what it had to tell.
func (w *watch) probe() error {
	w.late = false
	if err := w.s.run(newCommand("NOOP"), w.take); err != nil {
		var e *Error
		if errors.As(err, &e) {
			return w.s.fail(err) // nothing that has been told since can be relied on
		}
		return err
	}
	if !w.late {
		w.lies = 0
	} else if w.lies++; w.lies >= manyLies {
		w.polled = true
	}
	if w.overflow {
		return w.notify()
	}
	return nil
}

// await waits for the server to send something. more is false when it did not
// within d, or when the wait was interrupted; nothing is lost then.
func (s *Session) await(d time.Duration) (more bool, err error) {
	if s.br.Buffered() > 0 {
		return true, nil
	}
	if d <= 0 {
		return false, nil
	}
	before := s.w.idle.Swap(int64(d))
	s.w.setPatient(true)
	_, err = s.br.Peek(1)
	s.w.setPatient(false)
	s.w.idle.Store(before)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errInterrupted) {
		return false, nil
	}
	return err == nil, err
}
