package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"crossfade/router"
)

var userTests = []test{
	{"set, read, delete", userSet},
	{"the epoch decides", userEpoch},
	{"at once, one wins", userRace},
	{"since is when the state was entered", userSince},
	{"history, newest first", userHistory},
	{"pages and filters", userPages},
	{"import is all or nothing", userImport},
	{"import keeps what is not given", userImportKeeps},
	{"import of 100,000", userImportMany},
}

func mailbox(key string, st router.State) router.User {
	return router.User{Address: key, Kind: router.KindMailbox, State: st}
}

func userSet(b *bench) {
	b.start(Config{})
	_, err := b.s.User(b.ctx, "a@example.org")
	b.is(err, router.ErrNoUser)
	want := router.User{
		Address: "a@example.org", Kind: router.KindGroup, Targets: []string{"b@example.org", "c@example.org"}, State: router.StateSyncing,
		Deliver: router.DeliverBoth, Wave: "w1", NotBefore: time.Now().Add(time.Hour).Truncate(time.Second), OldLogin: "old", NewLogin: "new", Note: "n",
	}
	saved, busy, err := b.s.SetUser(b.ctx, want, router.Change{By: "me"})
	b.ok(err)
	b.true(busy == 0 && saved.Epoch == 1 && !saved.Since.IsZero(), "saved %+v", saved)
	for range 2 {
		got, err := b.s.User(b.ctx, "a@example.org")
		b.ok(err)
		b.true(got.NotBefore.Equal(want.NotBefore) && time.Since(got.Since) < time.Minute, "got %+v", got)
		g, w := got, want
		g.NotBefore, w.NotBefore, g.Since, w.Since, w.Epoch = time.Time{}, time.Time{}, time.Time{}, time.Time{}, 1
		b.true(fmt.Sprintf("%+v", g) == fmt.Sprintf("%+v", w), "got\n%+v, want\n%+v", g, w)
		got.Targets[0] = "changed by a caller"
		b.start(Config{})
	}
	b.is(b.s.DeleteUser(b.ctx, "b@example.org", 1, router.Change{}), router.ErrNoUser)
	b.is(b.s.DeleteUser(b.ctx, "a@example.org", 2, router.Change{}), router.ErrEpoch)
	b.ok(b.s.DeleteUser(b.ctx, "a@example.org", 1, router.Change{By: "me"}))
	_, err = b.s.User(b.ctx, "a@example.org")
	b.is(err, router.ErrNoUser)
	h, err := b.s.History(b.ctx, "a@example.org", 10)
	b.ok(err)
	b.true(len(h) == 2, "history is %+v", h)
	saved, _, err = b.s.SetUser(b.ctx, mailbox("a@example.org", router.StateOld), router.Change{})
	b.ok(err)
	b.true(saved.Epoch > 1, "a user who comes back starts at epoch %d: a lease of his first life would be good again", saved.Epoch)
}

func userEpoch(b *bench) {
	b.start(Config{})
	u, _, err := b.s.SetUser(b.ctx, mailbox("a@example.org", router.StateOld), router.Change{})
	b.ok(err)
	for _, wrong := range []uint64{0, 2, 99} {
		bad := u
		bad.Epoch, bad.State = wrong, router.StateNew
		_, _, err = b.s.SetUser(b.ctx, bad, router.Change{})
		b.is(err, router.ErrEpoch)
		var e *router.EpochError
		b.true(errors.As(err, &e) && e.Have == 1 && e.Want == wrong && e.User == "a@example.org", "error is %#v", err)
	}
	_, _, err = b.s.SetUser(b.ctx, router.User{Address: "x@example.org", Epoch: 1}, router.Change{})
	b.is(err, router.ErrEpoch)
	u.State = router.StateSyncing
	u, _, err = b.s.SetUser(b.ctx, u, router.Change{})
	b.ok(err)
	b.true(u.Epoch == 2, "epoch is %d", u.Epoch)
}

func userRace(b *bench) {
	b.start(Config{})
	u, _, err := b.s.SetUser(b.ctx, mailbox("a@example.org", router.StateOld), router.Change{})
	b.ok(err)
	for range 10 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won, seen := 0, u
		for range 8 {
			wg.Go(func() {
				got, _, err := b.s.SetUser(b.ctx, seen, router.Change{})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
					u = got
				} else if !errors.Is(err, router.ErrEpoch) {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.true(won == 1, "%d changes of one epoch were taken", won)
		h, err := b.s.History(b.ctx, "a@example.org", 1000)
		b.ok(err)
		b.true(uint64(len(h)) == u.Epoch, "%d changes for epoch %d", len(h), u.Epoch)
	}
}

// userSince: who changes the state and hands the user back as he got him has
// changed Since too, also when the store was opened again in between.
func userSince(b *bench) {
	b.start(Config{})
	u, _, err := b.s.SetUser(b.ctx, mailbox("a@example.org", router.StateReady), router.Change{})
	b.ok(err)
	entered := u.Since
	u.Wave = "w"
	u, _, err = b.s.SetUser(b.ctx, u, router.Change{})
	b.ok(err)
	b.true(u.Since.Equal(entered), "the state is the same, and since went from %v to %v", entered, u.Since)
	b.start(Config{})
	u.State = router.StateCutover
	u, _, err = b.s.SetUser(b.ctx, u, router.Change{})
	b.ok(err)
	b.true(u.Since.After(entered), "the state is another, and since is still %v", u.Since)
}

func userHistory(b *bench) {
	b.start(Config{})
	b.state("b@example.org", router.StateOld)
	for _, st := range []router.State{router.StateOld, router.StateSyncing, router.StateReady, router.StateCutover} {
		b.state("a@example.org", st)
	}
	h, err := b.s.History(b.ctx, "a@example.org", 3)
	b.ok(err)
	b.true(len(h) == 3, "history is %+v", h)
	top := h[0]
	b.true(top.User == "a@example.org" && top.Epoch == 4 && top.From == router.StateReady && top.To == router.StateCutover &&
		top.By == "test" && top.Reason == "test" && time.Since(top.At) < time.Minute, "newest is %+v", top)
	b.true(h[2].Epoch == 2, "oldest of three is %+v", h[2])
}

func userPages(b *bench) {
	b.start(Config{})
	var all []router.User
	for i := range 25 {
		u := mailbox(fmt.Sprintf("u%02d@example.org", i), router.StateOld)
		if i%5 == 0 {
			u.State, u.Wave = router.StateNew, "five"
		}
		all = append(all, u)
	}
	all = append(all, router.User{Address: "x_y@example.org", Kind: router.KindAlias, Targets: []string{"u01@example.org"}})
	created, updated, err := b.s.ImportUsers(b.ctx, all, router.Change{By: "import"})
	b.ok(err)
	b.true(created == 26 && updated == 0, "created %d, updated %d", created, updated)
	list := func(f router.Filter, limit int) (keys []string) {
		for cursor := ""; ; {
			page, next, err := b.s.Users(b.ctx, f, cursor, limit)
			b.ok(err)
			b.true(len(page) <= limit, "a page of %d", len(page))
			for _, u := range page {
				keys = append(keys, u.Address)
			}
			if cursor = next; next == "" {
				return keys
			}
		}
	}
	for _, limit := range []int{1, 5, 7, 26, 100} {
		keys := list(router.Filter{}, limit)
		b.true(len(keys) == 26 && slices.IsSorted(keys), "limit %d gave %v", limit, keys)
	}
	for want, f := range map[int]router.Filter{
		5:  {State: router.StateNew},
		20: {State: router.StateOld},
		25: {Kind: router.KindMailbox},
		10: {Query: "u1"},
		1:  {Query: "x_y"},
		0:  {Query: "u%"},
		2:  {Wave: "five", Query: "u1"},
	} {
		b.true(len(list(f, 4)) == want, "%+v gave %v, want %d", f, list(f, 4), want)
	}
	n, err := b.s.CountUsers(b.ctx)
	b.ok(err)
	b.true(n[router.StateNew] == 5 && n[router.StateOld] == 20 && len(n) == 2, "counts are %v", n)
}

func userImport(b *bench) {
	b.start(Config{})
	b.state("a@example.org", router.StateNew)
	c := router.Change{By: "import"}
	for name, bad := range map[string][]router.User{
		"no address": {mailbox("z@example.org", router.StateOld), {}},
		"twice":      {mailbox("z@example.org", router.StateOld), mailbox("z@example.org", router.StateNew)},
	} {
		_, _, err := b.s.ImportUsers(b.ctx, bad, c)
		b.true(err != nil, "%s: it was imported", name)
		_, err = b.s.User(b.ctx, "z@example.org")
		b.is(err, router.ErrNoUser)
	}
	u := mailbox("a@example.org", router.StateOld)
	u.Wave, u.OldLogin, u.Epoch = "w", "login", 77
	created, updated, err := b.s.ImportUsers(b.ctx, []router.User{u, mailbox("b@example.org", router.StateSyncing)}, c)
	b.ok(err)
	b.true(created == 1 && updated == 1, "created %d, updated %d", created, updated)
	got, err := b.s.User(b.ctx, "a@example.org")
	b.ok(err)
	b.true(got.State == router.StateNew && got.Epoch == 1 && got.Wave == "w" && got.OldLogin == "login", "got %+v", got)
	got, err = b.s.User(b.ctx, "b@example.org")
	b.ok(err)
	b.true(got.State == router.StateSyncing && got.Epoch == 1 && !got.Since.IsZero(), "got %+v", got)
}

// userImportKeeps: a field that a bulk import leaves empty was not given, and
// the user keeps what he has.
func userImportKeeps(b *bench) {
	b.start(Config{})
	before := time.Now().Add(time.Hour).Truncate(time.Second)
	first := []router.User{
		{Address: "box@example.org", Kind: router.KindMailbox, State: router.StateOld, Deliver: router.DeliverBoth, Wave: "w1", NotBefore: before, OldLogin: "old", NewLogin: "new", Note: "n"},
		{Address: "list@example.org", Kind: router.KindGroup, Targets: []string{"box@example.org", "c@example.org"}, Wave: "w1"},
		{Address: "moved@example.org", Kind: router.KindMailbox, State: router.StateNew, Wave: "w1"},
	}
	_, _, err := b.s.ImportUsers(b.ctx, first, router.Change{By: "import"})
	b.ok(err)
	var want []router.User
	for _, u := range first {
		got, err := b.s.User(b.ctx, u.Address)
		b.ok(err)
		got.Wave = "w2"
		want = append(want, got)
	}
	want[2].NotBefore = before
	second := []router.User{
		{Address: "box@example.org", Kind: router.KindMailbox, State: router.StateOld, Wave: "w2"},
		{Address: "list@example.org", Wave: "w2"},
		{Address: "moved@example.org", Kind: router.KindMailbox, State: router.StateOld, Wave: "w2", NotBefore: before},
	}
	created, updated, err := b.s.ImportUsers(b.ctx, second, router.Change{By: "import"})
	b.ok(err)
	b.true(created == 0 && updated == 3, "created %d, updated %d", created, updated)
	for range 2 { // what memory says, and what the medium does
		for _, w := range want {
			got, err := b.s.User(b.ctx, w.Address)
			b.ok(err)
			b.true(got.Since.Sub(w.Since).Abs() < time.Millisecond && got.NotBefore.Equal(w.NotBefore), "got %+v, want %+v", got, w)
			got.Since, got.NotBefore = w.Since, w.NotBefore
			b.true(fmt.Sprintf("%+v", got) == fmt.Sprintf("%+v", w), "got\n%+v, want\n%+v", got, w)
		}
		b.start(Config{})
	}
	// A new user without kind and state is a mailbox on old.
	_, _, err = b.s.ImportUsers(b.ctx, []router.User{{Address: "fresh@example.org", Wave: "w1"}}, router.Change{By: "import"})
	b.ok(err)
	fresh, err := b.s.User(b.ctx, "fresh@example.org")
	b.ok(err)
	b.true(fresh.Kind == router.KindMailbox && fresh.State == router.StateOld, "got %+v", fresh)
	// An alias that becomes a mailbox has no targets any more.
	_, _, err = b.s.ImportUsers(b.ctx, []router.User{mailbox("list@example.org", router.StateOld)}, router.Change{By: "import"})
	b.ok(err)
	got, err := b.s.User(b.ctx, "list@example.org")
	b.ok(err)
	b.true(got.Kind == router.KindMailbox && got.State == router.StateOld && len(got.Targets) == 0 && got.Wave == "w2", "got %+v", got)
}

func userImportMany(b *bench) {
	b.start(Config{})
	ctx, cancel := context.WithTimeout(b.ctx, 25*time.Second)
	defer cancel()
	n := 100_000
	if slow {
		n = 4000
	}
	users := make([]router.User, n)
	for i := range users {
		users[i] = mailbox(fmt.Sprintf("user%06d@example.org", i), router.StateOld)
	}
	created, _, err := b.s.ImportUsers(ctx, users, router.Change{By: "import"})
	b.ok(err)
	b.true(created == len(users), "created %d", created)
	counts, err := b.s.CountUsers(b.ctx)
	b.ok(err)
	b.true(counts[router.StateOld] == len(users), "counts are %v", counts)
}
