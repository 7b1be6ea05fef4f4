package relay

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/disk"
)

// newDiskSite runs a deliverer over the embedded store.
func newDiskSite(t *testing.T, change func(c *DelivererConfig, b map[mail.Route]*BackendConfig)) (*outSite, *disk.Store) {
	t.Helper()
	store, err := disk.Open(t.TempDir(), disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s := newOutSite(t, func(c *DelivererConfig, b map[mail.Route]*BackendConfig) {
		c.Queue = store
		c.Schedule.First, c.Schedule.Max = 20*time.Millisecond, 20*time.Millisecond
		if change != nil {
			change(c, b)
		}
	})
	return s, store
}

func diskPut(t *testing.T, store *disk.Store, subject string, rcpts ...string) mail.ID {
	t.Helper()
	env := &mail.Envelope{ID: mail.NewID(), From: outAddr("sender@far.test"), Received: time.Now()}
	for _, r := range rcpts {
		a := outAddr(r)
		env.Recipients = append(env.Recipients, mail.Recipient{Addr: a, User: a.Key(), Hint: mail.Old})
	}
	if err := store.Put(t.Context(), env, strings.NewReader("Subject: "+subject+"\r\n\r\ntext\r\n")); err != nil {
		t.Fatal(err)
	}
	return env.ID
}

func diskState(t *testing.T, store *disk.Store, u router.User, to router.State) (router.User, int) {
	t.Helper()
	u.State = to
	u, busy, err := store.SetUser(t.Context(), u, router.Change{By: "test", To: to})
	if err != nil {
		t.Fatal(err)
	}
	return u, busy
}

// I3 and I4 from end to end: a user flips in the middle of a stream of mail.
// Behind the drain old gets nothing more, and each message is on one side.
func TestDeliverFlipOverDisk(t *testing.T) {
	outNoLeaks(t)
	s, store := newDiskSite(t, nil)
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step == mailtest.StepDot || ev.Step == mailtest.StepData {
			return mailtest.Action{Delay: 2 * time.Millisecond}
		}
		return mailtest.Action{}
	})
	u, _ := diskState(t, store, router.User{Address: "ada@b.test", Kind: router.KindMailbox}, router.StateOld)
	const n = 200
	for i := range n / 2 {
		diskPut(t, store, fmt.Sprint("m", i), "ada@b.test")
	}
	inPoll(t, "first deliveries", func() bool { return s.sinks[mail.Old].Count() > 5 })
	u, busy := diskState(t, store, u, router.StateCutover)
	inPoll(t, "the drain", func() bool {
		if busy > 0 {
			var err error
			if busy, err = store.Busy(t.Context(), u.Address); err != nil {
				t.Fatal(err)
			}
		}
		return busy == 0
	})
	drained := s.sinks[mail.Old].Count()
	for i := range n / 2 {
		diskPut(t, store, fmt.Sprint("m", n/2+i), "ada@b.test")
	}
	if got := s.sinks[mail.New].Count(); got != 0 {
		t.Errorf("%d messages reached new while the user was held", got)
	}
	diskState(t, store, u, router.StateNew)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	if _, err := s.sinks[mail.New].Wait(ctx, n-drained); err != nil {
		t.Fatal(err)
	}
	inPoll(t, "an empty queue", func() bool {
		st, err := store.Stats(t.Context())
		return err == nil && st.Messages == 0
	})
	if got := s.sinks[mail.Old].Count(); got != drained || drained == 0 || drained == n {
		t.Errorf("old had %d messages behind the drain and has %d now", drained, got)
	}
	seen := make(map[string]int)
	for _, side := range s.sinks {
		for _, m := range side.Messages() {
			seen[strings.SplitN(string(m.Body), "\r\n", 2)[0]]++
		}
	}
	for i := range n {
		if c := seen[fmt.Sprint("Subject: m", i)]; c != 1 {
			t.Errorf("message %d arrived %d times", i, c)
		}
	}
}

// What cannot be delivered is in the queue with its reason; a bounce leaves
// over out; I8 parks.
func TestDeliverOutcomesOverDisk(t *testing.T) {
	outNoLeaks(t)
	s, store := newDiskSite(t, nil)
	for _, side := range []mail.Route{mail.Old, mail.New} {
		s.sinks[side].SetHook(func(ev mailtest.Event) mailtest.Action {
			switch {
			case ev.Step == mailtest.StepRcpt && strings.HasPrefix(ev.Addr, "unknown"):
				return mailtest.Reply(550, "5.1.1 unknown on "+string(side))
			case ev.Step == mailtest.StepRcpt && strings.HasPrefix(ev.Addr, "full"):
				return mailtest.Reply(552, "5.2.2 full")
			case ev.Step == mailtest.StepRcpt && strings.HasPrefix(ev.Addr, "slow"):
				return mailtest.Reply(450, "4.2.1 slow down")
			}
			return mailtest.Action{}
		})
	}
	id := diskPut(t, store, "one", "ok@b.test", "unknown@b.test", "full@b.test", "slow@b.test")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	bounces, err := s.sinks[mail.Out].Wait(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if b := bounces[0]; b.From != "" || b.Rcpts[0].Addr != "sender@far.test" || !strings.Contains(string(b.Body), "full@b.test") {
		t.Errorf("bounce from %q to %v:\n%s", b.From, b.Addrs(), b.Body)
	}
	var left []queue.Rcpt
	inPoll(t, "two recipients that stay", func() bool {
		e, err := store.Get(t.Context(), id)
		if err != nil {
			return false
		}
		left = e.Rcpts
		return len(left) == 2 && left[0].State == queue.Parked && left[1].Attempts > 1
	})
	if r := left[0].LastReply; !strings.Contains(r, "unknown on old") || !strings.Contains(r, "unknown on new") {
		t.Errorf("parked: %s", r)
	}
	if r := left[1].LastReply; !strings.Contains(r, "450 4.2.1 slow down") {
		t.Errorf("waiting: %s", r)
	}
}
