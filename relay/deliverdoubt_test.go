package relay

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
)

// fakeFinder says what its function says, and keeps what it was asked.
type fakeFinder struct {
	mu    sync.Mutex
	asked []Search
	says  func(ctx context.Context, n int, s Search) (Found, error) // n: 1 for the first
}

func (f *fakeFinder) Find(ctx context.Context, s Search) (Found, error) {
	f.mu.Lock()
	f.asked = append(f.asked, s)
	n := len(f.asked)
	f.mu.Unlock()
	return f.says(ctx, n, s)
}

func (f *fakeFinder) searches() []Search {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (s *outSite) ended() []DeliverDoubt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.doubts)
}

// doubtful puts a message whose recipients are in doubt about a route for a while.
func doubtful(q *outQueue, route, sent mail.Route, age time.Duration, rcpts ...string) mail.ID {
	return q.put(outBody, route, func(m *outMessage) {
		m.env.Received = time.Now().Add(-age - time.Minute)
		for i := range m.rcpts {
			m.rcpts[i].item.Doubt = queue.Doubt{Route: sent, At: time.Now().Add(-age), Since: time.Now().Add(-age)}
		}
	}, rcpts...)
}

func withFinder(f Finder, wait time.Duration) func(*DelivererConfig, map[mail.Route]*BackendConfig) {
	return func(c *DelivererConfig, _ map[mail.Route]*BackendConfig) { c.Finder, c.DoubtWait = f, wait }
}

func TestDoubtFound(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(context.Context, int, Search) (Found, error) { return Found{1, "INBOX, UID 7"}, nil }}
	s := newOutSite(t, withFinder(f, time.Hour))
	id := doubtful(s.q, mail.New, mail.New, time.Minute, "a@b.test")
	r := s.q.outKinds(t, id)[0]
	if r.kind != queue.Done || !strings.Contains(r.last, "INBOX, UID 7") {
		t.Errorf("%s: %s", r.kind, r.last)
	}
	if n := s.sinks[mail.New].Count(); n != 0 {
		t.Errorf("it was sent %d times", n)
	}
	asked := f.searches()
	if len(asked) != 1 || asked[0].ID != id || asked[0].Side != mail.New || asked[0].User != "a@b.test" || asked[0].Copies != 1 ||
		time.Since(asked[0].Since) > 2*time.Minute {
		t.Errorf("asked for %+v", asked)
	}
	inPoll(t, "the report", func() bool { return len(s.ended()) == 1 })
	if d := s.ended()[0]; d.Result != DoubtFound || d.Where == "" || d.ID != id || d.Rcpt.String() != "a@b.test" {
		t.Errorf("told %+v", d)
	}
}

// Whom a search finds only after a while is looked for again, and not sent to.
func TestDoubtFoundLater(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(_ context.Context, n int, _ Search) (Found, error) {
		switch n {
		case 1:
			return Found{}, nil
		case 2:
			return Found{}, errors.New("connection refused")
		}
		return Found{Copies: 1}, nil
	}}
	s := newOutSite(t, withFinder(f, time.Hour))
	id := doubtful(s.q, mail.Old, mail.Old, 0, "a@b.test")
	for i, says := range []string{"not in the mailbox on old yet", "connection refused"} {
		rs := s.q.wait(t, id, func(rs []outRcpt) bool { return strings.Contains(rs[0].last, says) })
		wait := time.Until(rs[0].due)
		if rs[0].kind != queue.Defer || rs[0].item.Doubt.IsZero() || rs[0].item.Attempts != 0 || wait < firstLook/2 || wait > 2*firstLook {
			t.Errorf("look %d: %s, due in %s: %+v", i, rs[0].kind, wait, rs[0].item)
		}
		s.q.hurry(id)
	}
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done })
	if n := s.sinks[mail.Old].Count(); n != 0 {
		t.Errorf("it was sent %d times", n)
	}
}

// hurry makes what waits due.
func (q *outQueue) hurry(id mail.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.msgs[id].rcpts {
		q.msgs[id].rcpts[i].due = time.Time{}
	}
	q.wake()
}

// What is not there when all waiting is over is sent again, and told of.
func TestDoubtSentAgain(t *testing.T) {
	outNoLeaks(t)
	tests := []struct {
		name  string
		route mail.Route
		age   time.Duration
		says  func(context.Context, int, Search) (Found, error)
		why   string
	}{
		{"not there", mail.New, 2 * time.Hour, func(context.Context, int, Search) (Found, error) { return Found{}, nil }, "not in the mailbox on new"},
		{"imap is down", mail.New, 2 * time.Hour, func(context.Context, int, Search) (Found, error) { return Found{}, errors.New("connection refused") }, "connection refused"},
		{"no imap", mail.New, 0, func(context.Context, int, Search) (Found, error) { return Found{}, ErrUnsearchable }, "cannot be looked into"},
		{"outside", mail.Out, 0, func(context.Context, int, Search) (Found, error) { panic("asked") }, "cannot be looked into"},
		{"the clock was set back", mail.New, -3 * time.Hour, func(context.Context, int, Search) (Found, error) { return Found{}, nil }, "not in the mailbox"},
		{"only on the side that was left", mail.New, 2 * time.Hour, func(_ context.Context, _ int, s Search) (Found, error) {
			if s.Side == mail.Old {
				return Found{1, "INBOX, UID 3"}, nil
			}
			return Found{}, nil
		}, "but in that on old (INBOX, UID 3), which the user has left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newOutSite(t, withFinder(&fakeFinder{says: tt.says}, time.Hour))
			sent := tt.route
			if strings.HasPrefix(tt.name, "only") {
				sent = mail.Old
			}
			id := doubtful(s.q, tt.route, sent, tt.age, "a@b.test")
			s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done })
			if n := s.sinks[tt.route].Count(); n != 1 {
				t.Errorf("it was sent %d times", n)
			}
			told := s.ended()
			if len(told) != 1 || told[0].Result != DoubtSentAgain || !strings.Contains(told[0].Reason, tt.why) {
				t.Errorf("told %+v, want %q", told, tt.why)
			}
		})
	}
}

// A backend that never replies gets a message as often as the schedule has it.
func TestDoubtKeepsTheSchedule(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(context.Context, int, Search) (Found, error) { return Found{}, ErrUnsearchable }}
	s := newOutSite(t, withFinder(f, time.Hour))
	s.sinks[mail.Old].SetHook(mailtest.On(mailtest.StepDot, mailtest.DropReply()))
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Retry })
	s.q.hurry(id)
	rs := s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Defer })
	if wait := time.Until(rs[0].due); wait < 50*time.Minute || !rs[0].item.Doubt.IsZero() {
		t.Errorf("due in %s: %+v", wait, rs[0].item)
	}
	if n := s.sinks[mail.Old].Count(); n != 1 {
		t.Errorf("it was sent %d times", n)
	}
}

// Without a Finder it is sent again at once, and told of one by one.
func TestDoubtWithoutFinder(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	id := doubtful(s.q, mail.Old, mail.Old, 0, "a@b.test", "c@b.test")
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done && rs[1].kind == queue.Done })
	if told := s.ended(); len(told) != 2 || told[0].Result != DoubtSentAgain || told[1].Rcpt.String() != "c@b.test" {
		t.Errorf("told %+v", told)
	}
}

// Of several recipients each is asked for in his own mailbox; two in one mailbox
// are there when it has two copies.
func TestDoubtEachRecipient(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(_ context.Context, _ int, s Search) (Found, error) {
		if s.User == "two@b.test" {
			return Found{Copies: 1}, nil // of two
		}
		return Found{Copies: map[string]int{"yes@b.test": 1}[s.User]}, nil
	}}
	s := newOutSite(t, withFinder(f, time.Millisecond))
	id := s.q.put(outBody, mail.Old, func(m *outMessage) {
		for i := range m.rcpts {
			m.rcpts[i].item.Doubt = queue.Doubt{Route: mail.Old, At: time.Now(), Since: time.Now().Add(-time.Minute)}
		}
		m.env.Recipients[2].User, m.env.Recipients[3].User = "two@b.test", "two@b.test"
	}, "yes@b.test", "no@b.test", "two+x@b.test", "two+y@b.test")
	rs := s.q.wait(t, id, func(rs []outRcpt) bool {
		return !slices.ContainsFunc(rs, func(r outRcpt) bool { return r.kind != queue.Done })
	})
	if !strings.Contains(rs[0].last, "not sent again") {
		t.Errorf("yes: %s", rs[0].last)
	}
	var to []string
	for _, m := range s.sinks[mail.Old].Messages() {
		to = append(to, m.Addrs()...)
	}
	if slices.Sort(to); !slices.Equal(to, []string{"no@b.test", "two+x@b.test", "two+y@b.test"}) {
		t.Errorf("sent again to %q", to)
	}
}

// A reply that never came is a doubt: the mailbox is asked, and the message is not
// sent again when it is there.
func TestDoubtLostReply(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(context.Context, int, Search) (Found, error) { return Found{Copies: 1}, nil }}
	s := newOutSite(t, withFinder(f, time.Hour))
	s.sinks[mail.Old].SetHook(mailtest.First(1, mailtest.StepDot, mailtest.DropReply()))
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	rs := s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Retry })
	if wait := time.Until(rs[0].due); rs[0].item.Doubt.IsZero() || wait > firstLook || rs[0].item.Attempts != 1 {
		t.Errorf("due in %s: %+v", wait, rs[0].item)
	}
	s.q.hurry(id)
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done })
	if n := s.sinks[mail.Old].Count(); n != 1 {
		t.Errorf("it was sent %d times", n)
	}
}

// Looks that take their time keep no other mail waiting, are bounded, keep their
// leases, and end with the relay.
func TestDoubtPlaces(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(ctx context.Context, _ int, _ Search) (Found, error) {
		<-ctx.Done()
		return Found{}, ctx.Err()
	}}
	s := newOutSite(t, func(c *DelivererConfig, b map[mail.Route]*BackendConfig) {
		c.Finder, c.renewEvery = f, 10*time.Millisecond
		b[mail.Old].MaxConns = 1
	})
	var ids []mail.ID
	for range doubtPlaces + 3 {
		ids = append(ids, doubtful(s.q, mail.Old, mail.Old, 0, "slow@b.test"))
	}
	inPoll(t, "all places are taken", func() bool { return len(f.searches()) == doubtPlaces })
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	if r := s.q.outKinds(t, id)[0]; r.kind != queue.Done {
		t.Errorf("other mail is %s: %s", r.kind, r.last)
	}
	for _, id := range ids[doubtPlaces:] {
		rs := s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Defer })
		if rs[0].item.Doubt.IsZero() {
			t.Error("one that found no place is not in doubt any more")
		}
	}
	inPoll(t, "renewals", func() bool {
		s.q.mu.Lock()
		defer s.q.mu.Unlock()
		return len(s.q.renewals) > 3*doubtPlaces
	})
	s.stop()
	err := <-s.finished
	close(s.finished)
	if err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, id := range ids {
		if rs := s.q.outKinds(t, id); rs[0].kind != queue.Defer || rs[0].item.Doubt.IsZero() {
			t.Errorf("after the end it is %+v", rs[0])
		}
	}
}

// What a sender asked for is done for a message that was found, too.
func TestDoubtFoundNotifies(t *testing.T) {
	outNoLeaks(t)
	f := &fakeFinder{says: func(context.Context, int, Search) (Found, error) { return Found{Copies: 1}, nil }}
	s := newOutSite(t, withFinder(f, time.Hour))
	id := s.q.put(outBody, mail.Old, func(m *outMessage) {
		m.env.Recipients[0].Notify = mail.NotifySuccess
		m.rcpts[0].item.Doubt = queue.Doubt{Route: mail.Old, At: time.Now(), Since: time.Now()}
	}, "a@b.test")
	s.q.outKinds(t, id)
	if n := len(s.q.notices()); n != 1 {
		t.Errorf("%d notices", n)
	}
}
