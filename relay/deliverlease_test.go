package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

// A lost lease means that the user was moved away meanwhile: no dot, and
// nothing is recorded but that nothing happened.
func TestDeliverLeaseLost(t *testing.T) {
	outNoLeaks(t)
	for _, body := range []string{outBody, strings.Repeat("0123456789\r\n", 20_000)} {
		s := newOutSite(t, nil)
		s.q.renewErr = fmt.Errorf("moved: %w", queue.ErrLost)
		s.q.wait(t, s.q.put(body, mail.Old, nil, "a@b.test"), func(rs []outRcpt) bool { return rs[0].kind == queue.Release })
		s.end()
		close(s.finished)
		if n := s.sinks[mail.Old].Count(); n != 0 {
			t.Errorf("%d messages arrived", n)
		}
		if st := s.d.Backend(mail.Old).Status(); st.Failures != 0 {
			t.Errorf("the backend was blamed: %+v", st)
		}
	}
}

// A renewal whose answer comes when the time it gave is over allows no dot:
// another worker may have the message.
func TestDeliverRenewedTooLate(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	id := s.q.put(outBody, mail.Old, func(m *outMessage) { s.q.late = 1 }, "a@b.test")
	s.q.outKinds(t, id)
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done })
	if n := s.sinks[mail.Old].Count(); n != 1 {
		t.Errorf("%d messages arrived", n)
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.q.claims != 2 {
		t.Errorf("%d claims", s.q.claims)
	}
}

func TestDeliverSettleIsRepeated(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.q.settleErr = []error{errors.New("reply lost"), errors.New("reply lost again")}
	if r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]; r.kind != queue.Done {
		t.Errorf("%+v", r)
	}
	if n := s.sinks[mail.Old].Count(); n != 1 {
		t.Errorf("%d messages arrived", n)
	}
}

// A full disk can last for hours. A delivery whose "done" is given up meanwhile
// is made again when its lease ends, so the record is tried, and the lease kept,
// until it is there.
func TestDeliverSettleOutlastsAFullStore(t *testing.T) {
	for _, test := range []struct {
		name    string
		fails   time.Duration
		stopped bool // the relay is told to end at once
		want    queue.Kind
	}{
		{"for an hour", time.Hour, false, queue.Done},
		{"for seconds while the relay ends", 10 * time.Second, true, queue.Done},
		{"for ever while the relay ends", 1000 * time.Hour, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newOutQueue()
				id := q.put(outBody, mail.Old, nil, "a@b.test")
				q.settleFull = time.Now().Add(test.fails)
				b, err := NewBackend(BackendConfig{Name: mail.Old, Target: smtpclient.Target{Address: "127.0.0.1:1"}})
				if err != nil {
					t.Fatal(err)
				}
				d, err := NewDeliverer(DelivererConfig{Queue: q, Hostname: "relay.test", Backends: map[mail.Route]*Backend{mail.Old: b}})
				if err != nil {
					t.Fatal(err)
				}
				lease, err := q.Claim(t.Context(), mail.Old, 1)
				if err != nil {
					t.Fatal(err)
				}
				work, cut := context.WithCancel(t.Context())
				defer cut()
				if test.stopped {
					cut()
				}
				w := &deliverWorker{d: d, b: b, route: mail.Old, log: d.log}
				w.settle(work, settling{lease: lease, sending: true, verdicts: []deliverVerdict{{Outcome: queue.Outcome{Kind: queue.Done}}}})
				if got := q.msgs[id].rcpts[0].kind; got != test.want {
					t.Errorf("recorded %q, want %q", got, test.want)
				}
				if last := time.Since(q.renewed); last > queue.LeaseTime/2 {
					t.Errorf("the lease was last renewed %s before the end", last)
				}
				if slices.Contains(q.renewals, false) {
					t.Error("renewed as if the dot had not been sent")
				}
			})
		})
	}
}

// A lease that is lost behind the dot cuts nothing: the answer alone tells
// whether the message has to be sent again.
func TestDeliverLeaseLostBehindTheDot(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, func(c *DelivererConfig, _ map[mail.Route]*BackendConfig) { c.renewEvery = 5 * time.Millisecond })
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step != mailtest.StepDot {
			return mailtest.Action{}
		}
		s.q.mu.Lock()
		s.q.renewErr, s.q.renewLost = queue.ErrLost, true
		s.q.mu.Unlock()
		return mailtest.Action{Delay: 50 * time.Millisecond}
	})
	if r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]; r.kind != queue.Done {
		t.Errorf("%s: %s", r.kind, r.last)
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if len(s.q.renewals) < 2 {
		t.Error("the lease was not renewed behind the dot")
	}
}
