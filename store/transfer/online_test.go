package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// TestAuditWhileNodesWork: mail, flips, retries and imports go on, and neither
// an audit nor one that repairs finds anything or is in the way.
func TestAuditWhileNodesWork(t *testing.T) {
	p := redisAt(redistest.Start(t).URL())
	s := p.open(t)
	ctx, stop := context.WithCancel(context.Background())
	w := &world{t, context.Background(), s}
	users := []string{"a@example.org", "b@example.org", "c@example.org"}
	for _, u := range users {
		w.set(u, func(u *router.User) { u.State, u.Deliver = router.StateOld, router.DeliverBoth })
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	note := func(err error) {
		if err != nil && ctx.Err() == nil {
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
			stop()
		}
	}
	work := func(f func(i int) error) {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				note(f(i))
			}
		})
	}
	tick := time.NewTicker(time.Millisecond) // the queue stays short
	defer tick.Stop()
	work(func(i int) error {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		e := &mail.Envelope{ID: mail.NewID(), Received: time.Now()}
		for _, u := range users {
			e.Recipients = append(e.Recipients, mail.Recipient{Addr: address(u), User: u})
		}
		return s.Put(ctx, e, newBody(i))
	})
	for _, r := range []mail.Route{mail.Old, mail.New} {
		for range 2 {
			work(func(i int) error {
				l, err := s.Claim(ctx, r, 2)
				if err != nil {
					return err
				}
				var all []queue.Outcome
				for _, it := range l.Items {
					o := queue.Outcome{N: it.N, Kind: queue.Done}
					if i%3 == 0 {
						o.Kind, o.At = queue.Retry, time.Now()
					}
					all = append(all, o)
				}
				if err := s.Settle(ctx, l, all); err != nil && !errors.Is(err, queue.ErrLost) {
					return err
				}
				return nil
			})
		}
	}
	states := []router.State{router.StateSyncing, router.StateReady, router.StateCutover, router.StateNew, router.StateRollback, router.StateOld}
	work(func(i int) error {
		u, err := s.User(ctx, users[i%3])
		if err != nil {
			return err
		}
		u.State = states[i/3%len(states)]
		_, _, err = s.SetUser(ctx, u, router.Change{By: "test"})
		return err
	})
	work(func(i int) error {
		_, _, err := s.ImportUsers(ctx, []router.User{{Address: fmt.Sprintf("user%d@example.org", i)}}, router.Change{By: "import"})
		return err
	})
	for i, end := 0, time.Now().Add(4*time.Second); time.Now().Before(end); i++ {
		a, err := p.audit(ctx, i%2 == 1)
		if err != nil {
			t.Errorf("audit %d: %v", i, err)
			break
		}
		if a.Left+a.Repaired != 0 {
			t.Errorf("audit %d found %+v", i, a)
			break
		}
	}
	stop()
	wg.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	w.ok(s.Close())
	if a := auditOf(t, p, false); a.Left != 0 {
		t.Errorf("afterwards there is %+v", a)
	} else {
		t.Logf("in the end %d messages, %d users", a.Messages, a.Users)
	}
}
