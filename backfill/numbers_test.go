package backfill_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"crossfade/backfill"
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

func TestNumbersForgetWhatIsLongGone(t *testing.T) {
	l := newLedger(t)
	var last backfill.Numbered
	for round := range 12 {
		names := []string{"stays"}
		for i := range 2000 {
			names = append(names, fmt.Sprint(round, "-", i))
		}
		last = assign(t, numbers(t, l), backfill.StoreUIDs{}, names...)
	}
	if last.Next != 24002 || last.UIDs["stays"] != 1 {
		t.Errorf("UIDNEXT is %d: numbers were given twice", last.Next)
	}
	records, err := l.LoadLedger(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	if len(records) > 6 {
		t.Errorf("%d records are left: %v", len(records), slices.Sorted(maps.Keys(records)))
	}
}
