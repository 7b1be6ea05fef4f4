package backfill

import (
	"fmt"
	"testing"

	"crossfade/backfill/imapconn"
)

// TestGuess: what is read ahead is what the source and the record tell of, and
// nothing while what an earlier pass appended has to be looked for.
func TestGuess(t *testing.T) {
	var metas []imapconn.Meta
	for uid := uint32(1); uid <= 8; uid++ {
		metas = append(metas, imapconn.Meta{UID: uid, Size: 100})
	}
	rec := func() *record {
		return &record{SrcValidity: 7, Pairs: pairs{{1, 1, 3}}, half: half{Refused: map[uint32]*refusal{5: {Skip: 2}}}}
	}
	for _, x := range []struct {
		what     string
		validity uint32
		o        Options
		set      func(r *record)
		want     string
	}{
		{"new messages", 7, Options{}, func(*record) {}, "[4 6 7]"},
		{"other UIDs", 8, Options{}, func(*record) {}, "[1 2 3]"},
		{"a journal", 7, Options{}, func(r *record) { r.Pending = &journal{} }, "[]"},
		{"pairs that may be void", 7, Options{Restore: true}, func(*record) {}, "[]"},
	} {
		f := &folderRun{p: &pass{c: &Copier{BatchMessages: 3}, o: x.o}, rec: rec()}
		x.set(f.rec)
		if got := fmt.Sprint(uidsOf(f.guess(imapconn.Selected{UIDValidity: x.validity}, metas))); got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
}

// TestWrongGuess: a batch that was read ahead counts only when it is what has to
// be copied; else its memory is given back.
func TestWrongGuess(t *testing.T) {
	c := &Copier{MemoryBytes: 1000}
	memory := c.together().memory
	for _, x := range []struct {
		read, todo []uint32
		fits       bool
	}{
		{[]uint32{1, 2}, []uint32{1, 2, 3}, true},
		{[]uint32{1, 2}, []uint32{1, 2}, true},
		{[]uint32{1, 2}, []uint32{1}, false},
		{[]uint32{2, 3}, []uint32{1, 2, 3}, false},
		{[]uint32{1}, nil, false},
	} {
		held, err := memory.take(t.Context(), 300)
		if err != nil {
			t.Fatal(err)
		}
		f := &folderRun{p: &pass{c: c}, reading: &reading{first: &fetched{metas: metasOf(x.read), held: held, t: &fetcher{}}}}
		b := f.firstBatch(metasOf(x.todo))
		if (b != nil) != x.fits {
			t.Errorf("%v for %v: %v", x.read, x.todo, b != nil)
		}
		if b != nil {
			f.release(b)
		}
		if memory.free != memory.whole {
			t.Errorf("%v for %v: %d octets are not given back", x.read, x.todo, memory.whole-memory.free)
		}
	}
}

func metasOf(uids []uint32) []imapconn.Meta {
	var out []imapconn.Meta
	for _, u := range uids {
		out = append(out, imapconn.Meta{UID: u})
	}
	return out
}
