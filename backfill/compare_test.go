package backfill_test

import (
	"slices"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/google/go-cmp/cmp"
)

// testVerifyNamesWhatDiffers: what users and servers do to a copied mailbox, and
// what a verification says of each of it.
func testVerifyNamesWhatDiffers(t *testing.T, src, dst *realtest.Dovecot, user string) {
	put(t, src, user, "INBOX", letters(0, 10, 100)...)
	put(t, src, user, "INBOX.Arbeit", letters(20, 23, 100)...)
	c, job := copier(t, newLedger(t)), jobFor(src, dst, user)
	mustPass(t, c, job, backfill.Options{})
	put(t, src, user, "INBOX", letter(50, 100))                                  // not copied yet
	put(t, dst, user, "INBOX", letter(60, 100), letter(1, 100))                  // delivered to new; and one twice
	moveTo(t, dst, user, "INBOX", "Mine", 3)                                     // the user moves it
	put(t, dst, user, "Mine", mailtest.StoredMessage{Body: []byte("draft\r\n")}) // of new alone
	remove(t, dst, user, "INBOX", 6, 7)                                          // the user deletes them

	for _, settled := range []bool{false, true} {
		job.Settled = settled
		v, err := c.Verify(t.Context(), job)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range v.Problems {
			got = append(got, strings.TrimSpace(p.Folder+" "+p.Class+" "+p.UIDs))
		}
		slices.Sort(got)
		missing, classes := []uint32{11}, map[string]int{"moved": 1, "deleted": 2, "missing": 1}
		want := []string{"INBOX deleted 6:7", "INBOX missing 11", "INBOX moved 3"}
		if !settled {
			missing, classes = []uint32{6, 7, 11}, map[string]int{"moved": 1, "missing": 3}
			want = []string{"INBOX missing 11", "INBOX missing 6:7", "INBOX moved 3"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("settled %v: %s\n%+v", settled, diff, v.Problems)
		}
		f := v.Folders[0]
		if f.Source != "INBOX" || f.OnSource != 11 || f.OnDest != 9 || f.Matched != 7 || f.Extra != 2 || f.Twice != 1 || !cmp.Equal(f.Missing, missing) || !cmp.Equal(f.Classes, classes) {
			t.Errorf("settled %v: %+v", settled, f)
		}
		if v.OK() || v.Missing != len(missing) {
			t.Errorf("%d missing", v.Missing)
		}
		heldBy(t, v.Holds, map[string]int{"INBOX": 9, "Arbeit": 3, "Mine": 2})
		if n := len(v.History); n < 2 || v.History[n-1].Messages != 13 || v.History[n-1].Bytes == 0 || v.History[0].Messages != 0 {
			t.Errorf("history: %+v", v.History)
		}
	}

	before, err := c.Inventory(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	heldBy(t, before.Folders, map[string]int{"INBOX": 9, "Arbeit": 3, "Mine": 2})
	// The same messages have the same digest, in whatever order and folder.
	moveTo(t, dst, user, "Arbeit", "Again", 2, 1, 3)
	after, err := c.Inventory(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	was, is := heldBy(t, before.Folders, nil)["Arbeit"], heldBy(t, after.Folders, nil)["Again"]
	if was.Digest != is.Digest || was.Bytes != is.Bytes || is.Messages != 3 || len(is.Keys) != 3*backfill.KeyOctets {
		t.Errorf("%+v, then %+v", was, is)
	}
	if got := heldBy(t, after.Folders, nil)["INBOX"].UIDs; got != "1:2,4:5,8:12" {
		t.Errorf("UIDs %s", got)
	}
}

// heldBy gives holdings by folder; want, when not nil, is how many messages each
// has.
func heldBy(t *testing.T, all []backfill.Holding, want map[string]int) map[string]backfill.Holding {
	t.Helper()
	by, got := map[string]backfill.Holding{}, map[string]int{}
	for _, h := range all {
		by[h.Folder] = h
		if h.Messages > 0 {
			got[h.Folder] = h.Messages
		}
	}
	if want != nil && !cmp.Equal(got, want) {
		t.Errorf("the destination holds %v, want %v", got, want)
	}
	return by
}

// moveTo moves messages with a client of the test's own; the folder is made when
// it is missing.
func moveTo(t *testing.T, d *realtest.Dovecot, user, from, to string, uids ...imap.UID) {
	t.Helper()
	c := d.Login(t, user)
	defer func() { _ = c.Close() }()
	_ = c.Create(to, nil).Wait() // it may be there
	if _, err := c.Select(from, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	for _, uid := range uids { // one by one, for the order
		if _, err := c.Move(imap.UIDSetNum(uid), to).Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// remove deletes messages with a client of the test's own.
func remove(t *testing.T, d *realtest.Dovecot, user, folder string, uids ...imap.UID) {
	t.Helper()
	c := d.Login(t, user)
	defer func() { _ = c.Close() }()
	if _, err := c.Select(folder, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	set := imap.UIDSetNum(uids...)
	if err := c.Store(set, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.UIDExpunge(set).Close(); err != nil {
		t.Fatal(err)
	}
}
