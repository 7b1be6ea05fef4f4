package faults

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/storetest"
)

// dropper loses one reply of Redis in each call, for every reply there is.
type dropper struct {
	*testing.T
	ctx   context.Context
	w     load
	proxy *redistest.Proxy
	s     storetest.Store
	acc   *account
	drops int
}

const dropNode = "dropper"

// TestFaultsDropReply: reply k of Redis never arrives, for every k of every
// call. The store repeats the call, and it has happened once.
func TestFaultsDropReply(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	defer cancel()
	d := &dropper{T: t, ctx: ctx, proxy: redistest.NewProxy(t, srv.Addr), acc: newAccount()}
	d.w = load{Users: 4, note: d.acc.note}
	var err error
	if d.s, err = (place{URL: d.proxy.URL(), Lease: 60 * time.Second}).open(ctx, dropNode, os.Stderr); err != nil {
		t.Fatal(err)
	}
	defer d.s.Close()
	for _, c := range []struct {
		name string
		once func(k int) bool
		min  int
	}{
		{"put, body inline", func(k int) bool { return d.put(k, 300) }, 1},
		{"put, body in one piece", func(k int) bool { return d.put(k, 200<<10) }, 3},
		{"put, body in pieces", func(k int) bool { return d.put(k, 700<<10) }, 5},
		{"claim", d.claim, 1},
		{"open, body in pieces", d.read, 4},
		{"renew", func(k int) bool { return d.renew(k, false) }, 1},
		{"renew for the final dot", func(k int) bool { return d.renew(k, true) }, 1},
		{"settle done", func(k int) bool { return d.settle(k, queue.Done) }, 1},
		{"settle retry", func(k int) bool { return d.settle(k, queue.Retry) }, 1},
		{"settle park", func(k int) bool { return d.settle(k, queue.Park) }, 1},
		{"settle fail with a bounce", func(k int) bool { return d.settle(k, queue.Fail) }, 1},
		{"settle reroute", func(k int) bool { return d.settle(k, queue.Reroute) }, 1},
		{"flip", d.flip, 1},
		{"import of users", d.importUsers, 3},
		{"operator's hold", d.apply, 2},
		{"record of a ledger", d.ledger, 1},
	} {
		before := d.drops
		for k := 1; c.once(k); k++ {
			if k > 60 {
				t.Fatalf("%s: there is no end of replies", c.name)
			}
		}
		if got := d.drops - before; got < c.min {
			t.Errorf("%s: only %d replies were dropped, want at least %d", c.name, got, c.min)
		} else {
			t.Logf("%s: each of %d replies was dropped", c.name, got)
		}
	}
	st, err := d.s.Stats(ctx)
	if err != nil || st.Messages != 0 || st.Bytes != 0 {
		t.Errorf("in the end there are %+v, %v", st, err)
	}
	v, err := d.acc.judge(nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	result(t, "reply k of Redis lost, every k of every call", "redis", d.drops, v)
}

// with does a call whose k-th reply is lost, and tells whether there was one.
// mark is what commands of the call have in them.
func (d *dropper) with(k int, mark func(cmd []string) bool, f func() error) bool {
	d.Helper()
	d.proxy.Count(mark)
	dropped := d.proxy.DropAt(k)
	if err := f(); err != nil {
		d.Errorf("reply %d lost: %v", k, err)
	}
	d.proxy.Count(func([]string) bool { return false })
	select {
	case <-dropped:
		d.drops++
		return true
	default:
		return false
	}
}

// has marks the commands that have a text in one of their arguments.
func has(text string) func(cmd []string) bool {
	return func(cmd []string) bool {
		return slices.ContainsFunc(cmd, func(a string) bool { return strings.Contains(a, text) })
	}
}

func (d *dropper) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

// only gives the one message that is queued.
func (d *dropper) only(id mail.ID) queue.Entry {
	d.Helper()
	left, err := storetest.Left(d.ctx, d.s)
	d.must(err)
	if len(left) != 1 || left[0].Envelope.ID != id {
		d.Fatalf("%d messages are queued, want one, %s", len(left), id)
	}
	st, err := d.s.Stats(d.ctx)
	d.must(err)
	n := 0
	for _, k := range st.States {
		n += k
	}
	if n != len(left[0].Rcpts) || st.Messages != 1 {
		d.Errorf("%d recipients are queued, and counted %+v", len(left[0].Rcpts), st)
	}
	return left[0]
}

func (d *dropper) queued(size int, users ...string) *mail.Envelope {
	d.Helper()
	e := d.w.envelope(users...)
	d.must(d.w.putOne(d.ctx, d.s, e, size))
	return e
}

// lease claims what is queued.
func (d *dropper) lease(id mail.ID, route mail.Route) *queue.Lease {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
	defer cancel()
	l, err := d.s.Claim(ctx, route, 10)
	if err != nil || l.Envelope.ID != id {
		d.Fatalf("claim: %v, %v", l, err)
	}
	return l
}

// deliver takes the one message out of the queue.
func (d *dropper) deliver(id mail.ID, route mail.Route) {
	d.Helper()
	d.dot(d.lease(id, route))
}

func (d *dropper) dot(l *queue.Lease) {
	d.Helper()
	if wrong, err := d.w.read(d.ctx, d.s, l.Envelope.ID); err != nil || wrong != "" {
		d.Errorf("the body: %v, %s", err, wrong)
	}
	d.must(d.s.Renew(d.ctx, l, true))
	var out []queue.Outcome
	for _, it := range l.Items {
		d.w.say(evDot, l.Envelope.ID, it.N, it.User, string(l.Route))
		out = append(out, queue.Outcome{N: it.N, Kind: queue.Done})
	}
	d.must(d.s.Settle(d.ctx, l, out))
	for _, it := range l.Items {
		d.w.say(evSettled, l.Envelope.ID, it.N, it.User, "")
	}
	left, err := storetest.Left(d.ctx, d.s)
	d.must(err)
	if len(left) != 0 {
		d.Fatalf("after the delivery %d messages are queued: %v", len(left), first(left))
	}
}

func (d *dropper) put(k, size int) bool {
	e := d.w.envelope(userKey(0), userKey(1))
	more := d.with(k, has(string(e.ID)), func() error { return d.w.putOne(d.ctx, d.s, e, size) })
	if got := d.only(e.ID); len(got.Rcpts) != 2 {
		d.Errorf("reply %d of a put lost: %d recipients", k, len(got.Rcpts))
	}
	d.deliver(e.ID, mail.Old)
	return more
}

func (d *dropper) claim(k int) bool {
	e := d.queued(300, userKey(0), userKey(1))
	var l *queue.Lease
	claims := func(cmd []string) bool { return len(cmd) >= 12 && cmd[4] == dropNode }
	more := d.with(k, claims, func() (err error) {
		ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
		defer cancel()
		l, err = d.s.Claim(ctx, mail.Old, 10)
		return err
	})
	if len(l.Items) != 2 {
		d.Errorf("reply %d of a claim lost: %d recipients", k, len(l.Items))
	}
	for _, r := range d.only(e.ID).Rcpts {
		if r.State != queue.Leased || r.Crashes != 0 {
			d.Errorf("reply %d of a claim lost: %+v", k, r)
		}
	}
	d.dot(l)
	return more
}

func (d *dropper) read(k int) bool {
	e := d.queued(700<<10, userKey(0))
	l := d.lease(e.ID, mail.Old)
	more := d.with(k, has(string(e.ID)), func() error {
		wrong, err := d.w.read(d.ctx, d.s, e.ID)
		if wrong != "" {
			return fmt.Errorf("the body is another: %s", wrong)
		}
		return err
	})
	d.dot(l)
	return more
}

func (d *dropper) renew(k int, sending bool) bool {
	e := d.queued(300, userKey(0))
	l := d.lease(e.ID, mail.Old)
	before := l.Until
	more := d.with(k, has(l.Token), func() error { return d.s.Renew(d.ctx, l, sending) })
	if !l.Until.After(before) {
		d.Errorf("reply %d of a renewal lost: the lease was not prolonged", k)
	}
	want := queue.Leased
	if sending {
		want = queue.Sending
	}
	if got := d.only(e.ID).Rcpts[0].State; got != want {
		d.Errorf("reply %d of a renewal lost: the recipient is %s", k, got)
	}
	d.dot(l)
	return more
}

func (d *dropper) settle(k int, kind queue.Kind) bool {
	e := d.queued(300, userKey(0))
	l := d.lease(e.ID, mail.Old)
	o := queue.Outcome{N: 0, Kind: kind, Reply: "451 4.3.0 no", At: time.Now().Add(time.Hour), To: mail.New}
	if kind == queue.Done {
		d.must(d.s.Renew(d.ctx, l, true))
		d.w.say(evDot, e.ID, 0, userKey(0), string(mail.Old))
	}
	var msgs []queue.NewMessage
	if kind == queue.Fail {
		b := d.w.envelope("sender@outside.example")
		b.Recipients[0].User = ""
		d.w.say(evFail, e.ID, 0, "", string(b.ID))
		msgs = append(msgs, queue.NewMessage{Envelope: b, Body: bodyFor(b.ID, 300<<10)})
	}
	more := d.with(k, has(l.Token), func() error { return d.s.Settle(d.ctx, l, []queue.Outcome{o}, msgs...) })
	switch kind {
	case queue.Done:
		d.w.say(evSettled, e.ID, 0, userKey(0), "")
		left, err := storetest.Left(d.ctx, d.s)
		if err != nil || len(left) != 0 {
			d.Errorf("reply %d of a settle lost: %d messages are left, %v", k, len(left), err)
		}
		return more
	case queue.Fail:
		d.only(msgs[0].Envelope.ID)
		d.deliver(msgs[0].Envelope.ID, mail.Out)
		return more
	case queue.Reroute:
		r := d.only(e.ID).Rcpts[0]
		if r.State != queue.Queued || r.Attempts != 0 {
			d.Errorf("reply %d of a settle lost: %+v", k, r)
		}
		d.deliver(e.ID, mail.New)
		return more
	}
	r := d.only(e.ID).Rcpts[0]
	if r.Attempts != 1 || kind == queue.Park && r.State != queue.Parked || kind == queue.Retry && r.State != queue.Queued {
		d.Errorf("reply %d of a settle lost: %+v", k, r)
	}
	_, err := d.s.Apply(d.ctx, queue.Filter{}, queue.Action{Verb: queue.DoRetry})
	d.must(err)
	d.deliver(e.ID, mail.Old)
	return more
}

// flip takes a user with waiting mail to held and on to new.
func (d *dropper) flip(k int) bool {
	key := fmt.Sprintf("flip%d@example.org", k)
	u := router.User{Address: key, Kind: router.KindMailbox, State: router.StateOld}
	saved, _, err := d.s.SetUser(d.ctx, u, router.Change{By: "faults"})
	d.must(err)
	e := d.queued(300, key)
	more := false
	for i, st := range []router.State{router.StateCutover, router.StateNew} {
		saved.State = st
		if d.with(k, has(key), func() (err error) {
			saved, _, err = d.s.SetUser(d.ctx, saved, router.Change{By: "faults"})
			return err
		}) {
			more = true
		}
		if saved.Epoch != uint64(2+i) {
			d.Errorf("reply %d of a flip lost: the epoch is %d, want %d", k, saved.Epoch, 2+i)
		}
	}
	h, err := d.s.History(d.ctx, key, 10)
	if err != nil || len(h) != 3 {
		d.Errorf("reply %d of a flip lost: %d changes in the history, %v", k, len(h), err)
	}
	d.deliver(e.ID, mail.New)
	return more
}

func (d *dropper) importUsers(k int) bool {
	var users []router.User
	for i := range 5 {
		users = append(users, router.User{Address: fmt.Sprintf("imp%d-%d@example.org", k, i), Kind: router.KindMailbox, State: router.StateOld})
	}
	var created, updated int
	// Everything but what a node does by itself.
	mark := func(cmd []string) bool {
		return strings.EqualFold(cmd[0], "RPUSH") || strings.EqualFold(cmd[0], "HGET") || strings.HasPrefix(strings.ToUpper(cmd[0]), "EVAL") && len(cmd) >= 6 && cmd[4] != dropNode
	}
	more := d.with(k, mark, func() (err error) {
		created, updated, err = d.s.ImportUsers(d.ctx, users, router.Change{By: "faults"})
		return err
	})
	if created != 5 || updated != 0 {
		d.Errorf("reply %d of an import lost: %d created, %d updated", k, created, updated)
	}
	for _, u := range users {
		h, err := d.s.History(d.ctx, u.Address, 10)
		if got, gerr := d.s.User(d.ctx, u.Address); err != nil || gerr != nil || len(h) != 1 || got.Epoch != 1 {
			d.Errorf("reply %d of an import lost: %+v, %d changes, %v, %v", k, got, len(h), err, gerr)
		}
	}
	return more
}

func (d *dropper) apply(k int) bool {
	e := d.queued(300, userKey(0), userKey(1))
	f := queue.Filter{IDs: []mail.ID{e.ID}}
	more := d.with(k, has(string(e.ID)), func() error {
		_, err := d.s.Apply(d.ctx, f, queue.Action{Verb: queue.DoHold})
		return err
	})
	for _, r := range d.only(e.ID).Rcpts {
		if r.State != queue.Held {
			d.Errorf("reply %d of a hold lost: %+v", k, r)
		}
	}
	_, err := d.s.Apply(d.ctx, f, queue.Action{Verb: queue.DoRelease})
	d.must(err)
	d.deliver(e.ID, mail.Old)
	return more
}

func (d *dropper) ledger(k int) bool {
	data := fmt.Appendf(nil, "state %d", k)
	more := d.with(k, has("ledger-of"), func() error { return d.s.SaveLedger(d.ctx, "ledger-of@example.org", "x", data) })
	all, err := d.s.LoadLedger(d.ctx, "ledger-of@example.org")
	if got := all["x"]; err != nil || !bytes.Equal(got, data) {
		d.Errorf("reply %d of a record lost: %q, %v", k, all, err)
	}
	return more
}
