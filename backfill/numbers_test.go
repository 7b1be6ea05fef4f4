package backfill_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
)

func numbers(t testing.TB, l backfill.Ledger) *backfill.Numbers {
	t.Helper()
	n, err := backfill.NewNumbers(t.Context(), l, user)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func assign(t testing.TB, n *backfill.Numbers, store backfill.StoreUIDs, names ...string) backfill.Numbered {
	t.Helper()
	got, err := n.Assign("INBOX", names, store)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]string{}
	for _, name := range names {
		uid := got.UIDs[name]
		if other, ok := seen[uid]; ok || uid == 0 || uid >= got.Next {
			t.Fatalf("%q has UID %d, UIDNEXT is %d, and %q has it too", name, uid, got.Next, other)
		}
		seen[uid] = name
	}
	return got
}

func TestNumbersStay(t *testing.T) {
	l := newLedger(t)
	var names []string
	for i := range 5000 {
		names = append(names, fmt.Sprint("m", i))
	}
	first := assign(t, numbers(t, l), backfill.StoreUIDs{}, names...)
	if first.UIDs["m0"] != 1 || first.UIDs["m4999"] != 5000 || first.Next != 5001 || first.Validity == 0 {
		t.Errorf("first: %d, %d, next %d", first.UIDs["m0"], first.UIDs["m4999"], first.Next)
	}
	slices.Reverse(names)
	again := assign(t, numbers(t, l), backfill.StoreUIDs{}, append([]string{"new"}, names[:4990]...)...)
	for _, name := range names[:4990] {
		if again.UIDs[name] != first.UIDs[name] {
			t.Fatalf("%q was %d and is %d", name, first.UIDs[name], again.UIDs[name])
		}
	}
	if again.UIDs["new"] != 5001 || again.Validity != first.Validity {
		t.Errorf("new: %d of %d", again.UIDs["new"], again.Validity)
	}
	// What was gone for a pass and is back is the same message.
	back := assign(t, numbers(t, l), backfill.StoreUIDs{}, names...)
	if !maps.Equal(back.UIDs, first.UIDs) {
		t.Error("a name that was away has another number")
	}
}

func TestNumbersBesideThoseOfAStore(t *testing.T) {
	l := newLedger(t)
	store := backfill.StoreUIDs{Validity: 77, Next: 12, UIDs: map[string]uint32{"a": 10, "b": 11, "twin": 11, "odd": 1 << 31}}
	got := assign(t, numbers(t, l), store, "a", "b", "twin", "odd", "unlisted")
	if got.Validity != 77 || got.UIDs["a"] != 10 || got.UIDs["b"] != 11 || got.UIDs["unlisted"] < 1<<31 {
		t.Errorf("%+v", got)
	}
	// The server numbers it later: what was copied under our number is known by it.
	store.UIDs["unlisted"], store.Next = 12, 13
	again := assign(t, numbers(t, l), store, "a", "b", "unlisted")
	if again.UIDs["unlisted"] != got.UIDs["unlisted"] {
		t.Errorf("unlisted was %d and is %d", got.UIDs["unlisted"], again.UIDs["unlisted"])
	}
	// Another UIDVALIDITY voids our numbers too.
	store.Validity = 78
	if other := assign(t, numbers(t, l), store, "a", "b", "unlisted"); other.UIDs["unlisted"] != 12 || other.Next != 13 || other.Validity != 78 {
		t.Errorf("%+v", other)
	}
	// And so does a store that gives none any more.
	own := assign(t, numbers(t, l), backfill.StoreUIDs{}, "a", "b")
	if own.Validity <= 78 || own.UIDs["a"] != 1 {
		t.Errorf("%+v", own)
	}
	// Our own stay when it gives some again, of whatever UIDVALIDITY: the names are
	// the same, and what was copied under them would come once more.
	for validity := range uint32(2) {
		store = backfill.StoreUIDs{Validity: 78 + validity, Next: 4, UIDs: map[string]uint32{"b": 1, "a": 2, "c": 3}}
		again := assign(t, numbers(t, l), store, "a", "b", "c")
		if again.Validity != own.Validity || again.UIDs["a"] != own.UIDs["a"] || again.UIDs["b"] != own.UIDs["b"] || again.UIDs["c"] != 3 || again.Next != 4 {
			t.Errorf("%+v, then %+v", own, again)
		}
	}
}

// TestNumbersThatAreNotProven: a UID that is written in the message is another
// message's as soon as somebody sends one with it.
func TestNumbersThatAreNotProven(t *testing.T) {
	l := newLedger(t)
	store := backfill.StoreUIDs{Validity: 77, Next: 6, UIDs: map[string]uint32{"a": 5}, Proven: true}
	if got := assign(t, numbers(t, l), store, "a"); got.UIDs["a"] != 5 {
		t.Errorf("%+v", got)
	}
	store.UIDs = map[string]uint32{"forged": 5}
	if got := assign(t, numbers(t, l), store, "forged"); got.UIDs["forged"] == 5 {
		t.Error("another message has the UID of one that was there before")
	}
}

// TestNumbersOfAStoreThatRenamesEverything: numbers begin anew, so that what was
// copied is found by its content and not copied again.
func TestNumbersOfAStoreThatRenamesEverything(t *testing.T) {
	l := newLedger(t)
	first := assign(t, numbers(t, l), backfill.StoreUIDs{}, "a", "b")
	second := assign(t, numbers(t, l), backfill.StoreUIDs{}, "x", "y")
	if second.Validity <= first.Validity || second.UIDs["x"] != 1 {
		t.Errorf("%+v, then %+v", first, second)
	}
	if third := assign(t, numbers(t, l), backfill.StoreUIDs{}, "y", "z"); third.Validity != second.Validity || third.UIDs["y"] != 2 {
		t.Errorf("%+v, then %+v", second, third)
	}
}

// few gives n names that begin with a word.
func few(word string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint(word, "-", i))
	}
	return names
}

// TestNumbersAfterALookThatSawNothing: a store that is not there for one look
// (a file system that is not mounted) has the same messages when it is back.
func TestNumbersAfterALookThatSawNothing(t *testing.T) {
	l := &mailtest.Ledger{}
	names := few("m", 28600)
	first := assign(t, numbers(t, l), backfill.StoreUIDs{}, names...)
	for _, there := range [][]string{nil, names[:3], nil} {
		assign(t, numbers(t, l), backfill.StoreUIDs{}, there...)
	}
	back := assign(t, numbers(t, l), backfill.StoreUIDs{}, names...)
	if back.Validity != first.Validity || !maps.Equal(back.UIDs, first.UIDs) {
		t.Errorf("%d names had UIDVALIDITY %d and UIDNEXT %d, and have %d and %d", len(names), first.Validity, first.Next, back.Validity, back.Next)
	}
}

// TestNumbersDoNotGrowForEver: names without a message are kept, and when there
// are too many all numbers begin anew, so that nothing is taken for new mail.
func TestNumbersDoNotGrowForEver(t *testing.T) {
	for _, store := range []backfill.StoreUIDs{{}, {Validity: 77, Next: 5, UIDs: map[string]uint32{"stays": 4}}} {
		l := &mailtest.Ledger{}
		look := func(names ...string) backfill.Numbered {
			return assign(t, numbers(t, l), store, append(names, "stays")...)
		}
		first := look(few("a", 60000)...)
		if second := look(few("b", 41000)...); second.Validity != first.Validity {
			t.Error("60,000 names that are gone are too many")
		}
		third := look(few("c", 100)...)
		if third.Validity == first.Validity {
			t.Error("101,000 names that are gone are not too many")
		}
		if again := look(few("c", 100)...); again.Validity != third.Validity || !maps.Equal(again.UIDs, third.UIDs) {
			t.Error("the numbers changed under the same names")
		}
		if records, err := l.LoadLedger(t.Context(), user); err != nil || len(records) > 3 {
			t.Errorf("%d records are left, %v", len(records), err)
		}
	}
}

// TestNumbersOfAUserWhoFetchesAndDeletes: what his own program leaves behind is
// new mail, and no mailbox with new names.
func TestNumbersOfAUserWhoFetchesAndDeletes(t *testing.T) {
	l := &mailtest.Ledger{}
	size := int64(1000)
	look := func(names ...string) backfill.Numbered {
		sizes := map[string]int64{}
		for _, name := range names {
			size++
			sizes[name] = size
		}
		return assign(t, numbers(t, l), backfill.StoreUIDs{Sizes: sizes}, names...)
	}
	first := look(few("begin", 40)...)
	for day := range 20 {
		if got := look(few(fmt.Sprint("day", day), 1+day%7)...); got.Validity != first.Validity {
			t.Fatalf("day %d: the mailbox counts as another one", day)
		}
		look()
	}
	// The same mail under other names, with and without a look between at an empty
	// store, and one that was deleted meanwhile.
	before := look("a", "b", "c")
	look()
	size -= 3
	if got := look("x", "y"); got.Validity <= before.Validity {
		t.Errorf("the same sizes under other names count as new mail: %+v", got)
	}
	many := look(few("many", 300)...)
	if got := look(few("again", 290)...); got.Validity <= many.Validity {
		t.Errorf("a mailbox in which every name is another counts as new mail")
	}
}

// TestNumbersOfAReusedName: a server that gives the id of a message that is gone
// to another one has all matched by content again.
func TestNumbersOfAReusedName(t *testing.T) {
	l := &mailtest.Ledger{}
	first := assign(t, numbers(t, l), backfill.StoreUIDs{Sizes: map[string]int64{"1": 100, "2": 200}}, "1", "2")
	for range 2 {
		same := assign(t, numbers(t, l), backfill.StoreUIDs{Sizes: map[string]int64{"1": 100, "2": 200, "3": 300}}, "1", "2", "3")
		if same.Validity != first.Validity {
			t.Errorf("%+v, then %+v", first, same)
		}
	}
	// The first one was deleted, and the server counts from 1.
	other := assign(t, numbers(t, l), backfill.StoreUIDs{Sizes: map[string]int64{"1": 200, "2": 300}}, "1", "2")
	if other.Validity <= first.Validity {
		t.Errorf("%+v, then %+v", first, other)
	}
	if again := assign(t, numbers(t, l), backfill.StoreUIDs{Sizes: map[string]int64{"1": 200, "2": 300}}, "1", "2"); again.Validity != other.Validity {
		t.Errorf("%+v, then %+v", other, again)
	}
}

// TestNumbersHalfBegunAnew: the process dies between two writes.
func TestNumbersHalfBegunAnew(t *testing.T) {
	names, others := few("a", 9000), few("b", 9000)
	for writes := 1; ; writes++ {
		l := &mailtest.Ledger{}
		first := assign(t, numbers(t, l), backfill.StoreUIDs{}, names...)
		l.Fail(writes)
		n := numbers(t, l)
		_, err := n.Assign("INBOX", others, backfill.StoreUIDs{})
		l.Fail(0)
		if got := assign(t, numbers(t, l), backfill.StoreUIDs{}, others...); got.Validity <= first.Validity || got.Next != 9001 {
			t.Fatalf("died at write %d: %d, next %d", writes, got.Validity, got.Next)
		}
		if err == nil {
			return
		}
	}
}

// TestNumbersKeepANote with the folder's numbers.
func TestNumbersKeepANote(t *testing.T) {
	l := newLedger(t)
	n := numbers(t, l)
	noted := func(want string) {
		t.Helper()
		for _, n := range []*backfill.Numbers{n, numbers(t, l)} {
			if got, err := n.Noted("INBOX"); string(got) != want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
	}
	if err := n.Note("INBOX", json.RawMessage(`1`)); err != nil {
		t.Fatal(err)
	}
	noted("") // there are no numbers yet
	assign(t, n, backfill.StoreUIDs{}, few("a", 20)...)
	if err := n.Note("INBOX", json.RawMessage(`{"size":7}`)); err != nil {
		t.Fatal(err)
	}
	noted(`{"size":7}`)
	assign(t, n, backfill.StoreUIDs{}, few("a", 21)...)
	noted(`{"size":7}`)
	assign(t, n, backfill.StoreUIDs{}, few("b", 21)...)
	noted("")
}
