package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/storetest"
)

// load is what a relay does to a store.
type load struct {
	Users   int           // how many there are
	Flip    [2]int        // this node flips the users i with i mod Flip[1] = Flip[0]; 0 0: none
	Putters int           //
	Workers int           // per route
	Pause   time.Duration // of a putter between two messages
	Big     int           // every so many-th body is long; 0: none
	Slow    time.Duration // between permission and record, at most

	note func(event)
}

func userKey(i int) string { return fmt.Sprintf("u%d@example.org", i) }

func (w *load) say(what string, id mail.ID, n int, user, rest string) {
	w.note(event{at: time.Now(), what: what, id: id, n: n, user: user, rest: rest})
}

// run puts and flips until ctx ends, and delivers until drained ends as well.
func (w *load) run(ctx, drained context.Context, s storetest.Store) {
	var wg sync.WaitGroup
	for range w.Putters {
		wg.Go(func() { w.put(ctx, s) })
	}
	if w.Flip[1] > 0 {
		wg.Go(func() { w.flip(ctx, s) })
	}
	for _, route := range []mail.Route{mail.Old, mail.New, mail.Out} {
		for range w.Workers {
			wg.Go(func() { w.deliver(drained, s, route) })
		}
	}
	wg.Wait()
}

// bodyFor is the body of a message, known by its id.
func bodyFor(id mail.ID, size int) []byte {
	var seed [32]byte
	copy(seed[:], id)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b) // it does not compress
	return append(fmt.Appendf(nil, "X-Id: %s\r\nX-Size: %d\r\n\r\n", id, size), b...)
}

// checkBody tells what is wrong with a body.
func checkBody(id mail.ID, b []byte) string {
	head, _, _ := bytes.Cut(b, []byte("\r\n\r\n"))
	var was string
	var size int
	if _, err := fmt.Sscanf(string(head), "X-Id: %s\r\nX-Size: %d", &was, &size); err != nil || was != string(id) {
		return fmt.Sprintf("it begins with %.60q", b)
	}
	if !bytes.Equal(b, bodyFor(id, size)) {
		return fmt.Sprintf("%d octets differ from those that were put", len(b))
	}
	return ""
}

func (w *load) envelope(users ...string) *mail.Envelope {
	e := &mail.Envelope{ID: mail.NewID(), Received: time.Now()}
	for _, u := range users {
		a, err := mail.ParseAddress(u)
		if err != nil {
			panic(err)
		}
		e.Recipients = append(e.Recipients, mail.Recipient{Addr: a, User: a.Key()})
	}
	return e
}

func (w *load) put(ctx context.Context, s storetest.Store) {
	for i := 1; ctx.Err() == nil; i++ {
		first := rand.IntN(w.Users)
		users := []string{userKey(first)}
		if i%7 == 0 && w.Users > 1 {
			users = append(users, userKey((first+1+rand.IntN(w.Users-1))%w.Users))
		}
		size := 300
		if w.Big > 0 && i%w.Big == 0 {
			size = 300<<10 + rand.IntN(400<<10)
		}
		w.putOne(ctx, s, w.envelope(users...), size)
		rest(ctx, w.Pause)
	}
}

// putOne offers a message and notes the answer.
func (w *load) putOne(ctx context.Context, s storetest.Store, e *mail.Envelope, size int) error {
	w.say(evOffer, e.ID, len(e.Recipients), "", "")
	err := s.Put(context.WithoutCancel(ctx), e, bytes.NewReader(bodyFor(e.ID, size)))
	switch {
	case err == nil:
		w.say(evAck, e.ID, 0, "", "")
	case errors.Is(err, queue.ErrFull):
		w.say(evFull, e.ID, 0, "", "")
		rest(ctx, 20*time.Millisecond)
	default:
		w.say(evRefused, e.ID, 0, "", strings.ReplaceAll(err.Error(), "\n", " "))
		rest(ctx, 20*time.Millisecond)
	}
	return err
}

// deliver is a worker of a route.
func (w *load) deliver(ctx context.Context, s storetest.Store, route mail.Route) {
	for ctx.Err() == nil {
		l, err := s.Claim(ctx, route, 10)
		if errors.Is(err, queue.ErrClosed) {
			return
		}
		if err != nil {
			rest(ctx, 10*time.Millisecond)
			continue
		}
		w.one(ctx, s, l)
	}
}

// one is a delivery as relay makes it.
func (w *load) one(ctx context.Context, s storetest.Store, l *queue.Lease) {
	work := context.WithoutCancel(ctx)
	id := l.Envelope.ID
	var out []queue.Outcome
	var more []queue.NewMessage
	all := func(k queue.Kind, at time.Time) {
		for _, it := range l.Items {
			out = append(out, queue.Outcome{N: it.N, Kind: k, At: at, Reply: "451 4.3.0 a bad moment"})
		}
	}
	wrong, err := w.read(work, s, id)
	if wrong != "" {
		w.say(evAltered, id, 0, "", strings.ReplaceAll(wrong, "\n", " "))
	}
	switch n := rand.IntN(100); {
	case err != nil:
		all(queue.Retry, time.Now())
	case n < 3:
		all(queue.Retry, time.Now().Add(20*time.Millisecond))
	case n < 5 && l.Route != mail.Out && len(l.Items) == 1:
		b := &mail.Envelope{ID: mail.NewID(), Received: time.Now()}
		a, _ := mail.ParseAddress("sender@outside.example")
		b.Recipients = []mail.Recipient{{Addr: a}}
		w.say(evFail, id, l.Items[0].N, "", string(b.ID))
		out = []queue.Outcome{{N: l.Items[0].N, Kind: queue.Fail, Reply: "550 5.7.1 no"}}
		more = []queue.NewMessage{{Envelope: b, Body: bodyFor(b.ID, 200)}}
	default:
		if err := s.Renew(work, l, true); err != nil {
			if errors.Is(err, queue.ErrLost) {
				return // nothing more may be done
			}
			all(queue.Retry, time.Now().Add(20*time.Millisecond))
			break
		}
		now := time.Now()
		for _, it := range l.Items {
			w.note(event{at: now, what: evAllow, id: id, n: it.N, user: it.User})
		}
		for _, it := range l.Items {
			w.say(evDot, id, it.N, it.User, string(l.Route))
		}
		if w.Slow > 0 {
			rest(work, time.Duration(rand.Int64N(int64(w.Slow))))
		}
		all(queue.Done, time.Time{})
	}
	w.settle(ctx, s, l, out, more)
}

// settle records as relay does: for as long as it takes, keeping the lease.
func (w *load) settle(ctx context.Context, s storetest.Store, l *queue.Lease, out []queue.Outcome, more []queue.NewMessage) {
	work := context.WithoutCancel(ctx)
	done := len(out) > 0 && out[0].Kind == queue.Done
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		err := s.Settle(work, l, out, more...)
		switch {
		case err == nil && done:
			for _, it := range l.Items {
				w.say(evSettled, l.Envelope.ID, it.N, it.User, "")
			}
			return
		case err == nil, errors.Is(err, queue.ErrLost), errors.Is(err, queue.ErrClosed), ctx.Err() != nil:
			return
		}
		rest(work, pause)
		_ = s.Renew(work, l, done)
	}
}

// read gives what is wrong with a body; the error says that it cannot be told.
func (w *load) read(ctx context.Context, s storetest.Store, id mail.ID) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := s.Open(ctx, id)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if errors.Is(err, queue.ErrCorrupt) {
		return err.Error(), err
	}
	if err != nil {
		return "", err
	}
	return checkBody(id, b), nil
}

// flip takes this node's users from state to state.
func (w *load) flip(ctx context.Context, s storetest.Store) {
	for ctx.Err() == nil {
		i := rand.IntN(w.Users)
		if i%w.Flip[1] == w.Flip[0] {
			w.flipOne(ctx, s, userKey(i))
		}
		rest(ctx, time.Duration(rand.IntN(10))*time.Millisecond)
	}
}

// flipOne takes a user to the next state and waits until nothing is under way
// any more from before: then he is there for certain.
func (w *load) flipOne(ctx context.Context, s storetest.Store, key string) {
	u, err := s.User(ctx, key)
	if errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: key, Kind: router.KindMailbox, State: router.StateOld}, nil
	}
	if err != nil {
		return
	}
	w.say(evLeaving, "", 0, key, string(u.State))
	switch u.State {
	case router.StateOld:
		u.State = router.StateCutover
	case router.StateCutover:
		u.State = router.StateNew
	default:
		u.State = router.StateOld
	}
	_, busy, err := s.SetUser(ctx, u, router.Change{By: "faults"})
	for end := time.Now().Add(3 * time.Second); err == nil && busy > 0 && time.Now().Before(end); {
		rest(ctx, 2*time.Millisecond)
		busy, err = s.Busy(ctx, key)
	}
	if err == nil && busy == 0 {
		w.say(evIn, "", 0, key, string(u.State))
	}
}

// rest waits; false when ctx ended.
func rest(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
