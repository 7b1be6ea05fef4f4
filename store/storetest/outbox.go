package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing/iotest"
	"time"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var outboxTests = []test{
	{"accepted and delivered", outboxDelivered},
	{"every outcome", outboxOutcomes},
	{"a bounce and the message that it is about", outboxBounce},
	{"deliver both: both deliveries", outboxCopy},
	{"what was not done is not written", outboxNothing},
	{"an operator by name", outboxOperator},
	{"numbers run on without a gap", outboxNumbers},
	{"moved into blocks, and found there", outboxMoved},
}

// written gives what is in the outbox behind a batch, and the number of the last
// one. The numbers have to run on.
func (b *bench) written(after uint64) (all []journal.Entry, last uint64) {
	b.Helper()
	for last = after; ; {
		batches, err := b.s.Pending(b.ctx, last, 100)
		b.ok(err)
		if len(batches) == 0 {
			return all, last
		}
		for _, x := range batches {
			b.true(last == 0 || x.Number == last+1, "batch %d comes behind %d", x.Number, last)
			last = x.Number
			for line := range bytes.Lines(x.Lines) {
				e, err := journal.ParseEntry(line)
				b.ok(err)
				b.true(time.Since(e.At).Abs() < time.Minute, "the entry is of %v", e.At)
				all = append(all, e)
			}
		}
	}
}

// only gives the one entry that was written behind a batch.
func (b *bench) only(after *uint64, kind journal.Kind) journal.Entry {
	b.Helper()
	all, last := b.written(*after)
	*after = last
	b.true(len(all) == 1 && all[0].Kind == kind, "written was %+v, want one %s", all, kind)
	return all[0]
}

func outboxDelivered(b *bench) {
	b.start(Config{})
	b.state("a@example.org", router.StateOld)
	e := envelope("a@example.org", "B.c@example.org")
	e.MessageID = "<1@example.com>"
	e.Recipients[1].Orig = address("alias@example.org")
	b.ok(b.s.Put(b.ctx, e, strings.NewReader("12345")))
	var at uint64
	got := b.only(&at, journal.Accepted)
	b.true(got.ID == e.ID && got.From == "sender@example.com" && got.Size == 5 && got.MessageID == "<1@example.com>", "entry is %+v", got)
	want := []journal.Rcpt{{To: "a@example.org", User: "a@example.org"}, {To: "B.c@example.org", Orig: "alias@example.org", User: "b.c@example.org"}}
	b.true(slices.Equal(got.Rcpts, want), "recipients are %+v", got.Rcpts)
	b.done(b.claim(mail.Old))
	all, at := b.written(at)
	b.true(len(all) == 2, "written was %+v", all)
	for n, d := range all {
		b.true(d.Kind == journal.Delivered && d.ID == e.ID && d.N == n && d.User == want[n].User && d.To == want[n].To, "entry is %+v", d)
		b.true(d.Route == mail.Old && d.Reply == "250 2.0.0 ok" && d.Attempt == 1 && !d.Copy, "entry is %+v", d)
		b.true(d.Epoch == uint64(1-n), "epoch is %d", d.Epoch)
	}
	b.start(Config{})
	again, last := b.written(0)
	b.true(len(again) == 3 && last == at, "after a restart there are %d entries", len(again))
}

func outboxOutcomes(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	var at uint64
	b.only(&at, journal.Accepted)
	for attempt := range 2 {
		b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, Reply: "451 later", At: time.Now()}))
		got := b.only(&at, journal.Deferred)
		b.true(got.Attempt == attempt+1 && got.Reply == "451 later" && !got.Next.IsZero(), "entry is %+v", got)
	}
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Release, Reply: "not tried"}))
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, Reply: "no reply came", At: time.Now(), Doubt: true}))
	b.only(&at, journal.Deferred)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Defer, Reply: "not there yet", At: time.Now(), Doubt: true}))
	none, _ := b.written(at)
	b.true(len(none) == 0, "written was %+v", none)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Defer, Reply: "sent again", At: time.Now()}))
	got := b.only(&at, journal.Deferred)
	b.true(got.Attempt == 3 && got.Reply == "sent again", "entry is %+v", got)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Reroute, To: mail.New, Reply: "550 unknown"}))
	got = b.only(&at, journal.Asked)
	b.true(got.Route == mail.Old && got.ID == e.ID, "entry is %+v", got)
	b.ok(b.settle(b.claim(mail.New), queue.Outcome{Kind: queue.Park, Reply: "550 unknown too"}))
	got = b.only(&at, journal.Parked)
	b.true(got.Route == mail.New && got.Reply == "550 unknown too" && got.By == "", "entry is %+v", got)
}

func outboxBounce(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	_, at := b.written(0)
	m := bounce("it failed")
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Fail, Reply: "550 no", Notice: m.Envelope.ID}, m))
	all, _ := b.written(at)
	b.true(len(all) == 2, "written was %+v", all)
	slices.SortFunc(all, func(x, y journal.Entry) int { return strings.Compare(string(x.Kind), string(y.Kind)) })
	b.true(all[0].Kind == journal.Accepted && all[0].ID == m.Envelope.ID && all[0].NoticeOf == e.ID && all[0].From == "", "entry is %+v", all[0])
	b.true(all[1].Kind == journal.Bounced && all[1].ID == e.ID && all[1].Notice == m.Envelope.ID && all[1].Reply == "550 no", "entry is %+v", all[1])
}

func outboxCopy(b *bench) {
	b.start(Config{})
	b.both("a@example.org", router.StateOld)
	b.put("a@example.org")
	_, at := b.written(0)
	b.done(b.claim(mail.Old))
	got := b.only(&at, journal.Delivered)
	b.true(!got.Copy && got.CopyTo == mail.New && got.Route == mail.Old, "entry is %+v", got)
	b.done(b.claim(mail.New))
	got = b.only(&at, journal.Delivered)
	b.true(got.Copy && got.CopyTo == "" && got.Route == mail.New, "entry is %+v", got)
}

func outboxNothing(b *bench) {
	b.start(Config{Lease: shortLease})
	e := envelope("a@example.org")
	err := b.s.Put(b.ctx, e, io.MultiReader(strings.NewReader("x"), iotest.ErrReader(errors.New("the peer is gone"))))
	b.true(err != nil, "a broken body was taken")
	e = b.put("a@example.org")
	again := *e
	b.ok(b.s.Put(b.ctx, &again, strings.NewReader("the same id")))
	all, at := b.written(0)
	b.true(len(all) == 1, "written was %+v", all)
	l := b.claim(mail.Old)
	b.eventually("the lease ends", func() bool { return b.rcpt(e.ID, 0).State == queue.Queued })
	b.is(b.settle(l, queue.Outcome{Kind: queue.Fail, Reply: "550 too late"}, bounce("x")), queue.ErrLost)
	all, _ = b.written(at)
	b.true(len(all) == 0, "a lease that is lost wrote %+v", all)
	l = b.claim(mail.Old)
	b.done(l)
	b.done(l) // a repeated call
	b.only(&at, journal.Delivered)
}

func outboxOperator(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	_, at := b.written(0)
	for _, tt := range []struct {
		a    queue.Action
		want journal.Kind
	}{
		{queue.Action{Verb: queue.DoHold}, journal.Held},
		{queue.Action{Verb: queue.DoHold}, ""}, // nothing changes
		{queue.Action{Verb: queue.DoRelease}, journal.Released},
		{queue.Action{Verb: queue.DoPark}, journal.Parked},
		{queue.Action{Verb: queue.DoRetry}, journal.Retried},
		{queue.Action{Verb: queue.DoReroute, Route: mail.New}, journal.Rerouted},
		{queue.Action{Verb: queue.DoDelete}, journal.Deleted},
	} {
		tt.a.By, tt.a.Reason = "ann", "because"
		_, err := b.s.Apply(b.ctx, queue.Filter{}, tt.a)
		b.ok(err)
		if tt.want == "" {
			all, _ := b.written(at)
			b.true(len(all) == 0, "written was %+v", all)
			continue
		}
		got := b.only(&at, tt.want)
		b.true(got.ID == e.ID && got.User == "a@example.org" && got.By == "ann" && got.Reason == "because" && got.Route == tt.a.Route, "entry is %+v", got)
	}
	b.gone(e.ID)
}

func outboxNumbers(b *bench) {
	b.start(Config{})
	for range 3 {
		b.put("a@example.org")
	}
	_, at := b.written(0)
	b.ok(b.s.Forget(b.ctx, at))
	all, _ := b.written(at)
	b.true(len(all) == 0, "forgotten, and there: %+v", all)
	b.start(Config{})
	b.put("a@example.org")
	b.only(&at, journal.Accepted)
	b.ok(b.s.Forget(b.ctx, at-1))
	all, _ = b.written(at - 1)
	b.true(len(all) == 1, "one too many was forgotten")
	b.ok(b.s.Forget(b.ctx, at+1000)) // a journal that knows more than the store
	b.put("a@example.org")
	batches, err := b.s.Pending(b.ctx, at, 1)
	b.ok(err)
	b.true(len(batches) == 1 && batches[0].Number == at+1001, "batches are %+v", batches)
}

func outboxMoved(b *bench) {
	b.start(Config{})
	dir, err := journal.OpenDir(b.TempDir())
	b.ok(err)
	defer dir.Close()
	j := &journal.Journal{Outbox: b.s, Shelf: dir}
	var ids []mail.ID
	for i := range 20 {
		ids = append(ids, b.put("a@example.org").ID)
		if i%6 == 5 {
			n, err := j.Drain(b.ctx, 0)
			b.ok(err)
			b.true(n > 0, "nothing was moved")
		}
	}
	var seen []mail.ID
	r, err := j.Scan(b.ctx, func(e journal.Entry) error { seen = append(seen, e.ID); return nil })
	b.ok(err)
	b.true(slices.Equal(seen, ids) && r.Whole() && r.Blocks == 3 && r.Entries == 20, "seen %v, report %+v", seen, r)
	for _, id := range ids {
		found, damaged, err := j.Find(b.ctx, string(id))
		b.ok(err)
		b.true(len(found) == 1 && found[0].ID == id && len(damaged) == 0, "%s gives %+v", id, found)
	}
}

// CheckJournal compares the account with a journal: what was acknowledged has to
// be in it, and what was settled, each once. It gives what is not.
func (c *Checker) CheckJournal(ctx context.Context, j *journal.Journal) (wrong []string, err error) {
	accepted, delivered := map[mail.ID]int{}, map[rcptKey]int{}
	report, err := j.Scan(ctx, func(e journal.Entry) error {
		switch e.Kind {
		case journal.Accepted:
			accepted[e.ID]++
		case journal.Delivered:
			delivered[rcptKey{e.ID, e.N}]++
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, g := range report.Gaps {
		wrong = append(wrong, g.Text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.acked {
		if accepted[id] == 0 {
			wrong = append(wrong, fmt.Sprintf("%s was accepted and is not in the journal", id))
		}
	}
	for k := range c.settled {
		if delivered[k] == 0 {
			wrong = append(wrong, fmt.Sprintf("%s/%d was delivered and is not in the journal", k.id, k.n))
		}
	}
	for id, n := range accepted {
		if n > 1 || c.offered[id] == 0 {
			wrong = append(wrong, fmt.Sprintf("%s is in the journal %d times", id, n))
		}
	}
	for k, n := range delivered {
		if n > 1 || c.dots[k] == 0 {
			wrong = append(wrong, fmt.Sprintf("%s/%d is in the journal %d times, with %d final dots", k.id, k.n, n, c.dots[k]))
		}
	}
	return wrong, nil
}
