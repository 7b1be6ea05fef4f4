package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
)

// stuck is an outbox that nothing was moved out of for long: so many batches of 4 KiB,
// made when they are asked for.
type stuck struct {
	memory
	n    uint64
	line []byte
	id   mail.ID // of the last one
}

func newStuck(n uint64) *stuck {
	e := Entry{At: stamp(time.Now()), Kind: Deferred, ID: mail.NewID(), Reply: strings.Repeat("x", 4000)}
	return &stuck{n: n, line: e.Line(), id: mail.NewID()}
}

func (s *stuck) Pending(_ context.Context, after uint64, max int) (out []Batch, _ error) {
	for size := 0; after < s.n && size < max; size += len(s.line) {
		after++
		line := s.line
		if after == s.n {
			line = Entry{At: stamp(time.Now()), Kind: Delivered, ID: s.id, MessageID: "<last@example.com>"}.Line()
		}
		out = append(out, Batch{after, bytes.Clone(line)})
	}
	return out, nil
}

// TestStuck: what did not come into files is read a MiB at a time, however much it is.
func TestStuck(t *testing.T) {
	const batches = 8_000 // 32 MiB
	b := newBench(t)
	box := newStuck(batches)
	b.j.Outbox = box
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, most, seen := heap(), uint64(0), 0
	r, err := b.j.Scan(t.Context(), func(Entry) error {
		if seen++; seen%2000 == 0 {
			most = max(most, heap())
		}
		return nil
	})
	if err != nil || seen != batches || r.Last != batches || !r.Whole() {
		t.Fatalf("%d entries, %+v, %v", seen, r, err)
	}
	if grew := int64(most) - int64(before); grew > 8<<20 {
		t.Errorf("it took %d MiB more memory", grew>>20)
	}
	for _, id := range []string{string(box.id), "<last@example.com>"} {
		if found, _, err := b.j.Find(t.Context(), id); err != nil || len(found) != 1 {
			t.Errorf("%s: %+v, %v", id, found, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := b.j.Find(ctx, "nothing"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beyond its time: %v", err)
	}
}

// TestManyOfOneName: anybody can send many messages with one Message-ID.
func TestManyOfOneName(t *testing.T) {
	b := newBench(t)
	for range mostFound + 10 {
		b.box.add("<same@example.com>")
	}
	found, damaged, err := b.j.Find(t.Context(), "same@example.com")
	if err != nil || len(found) != mostFound || len(damaged) != 1 || !strings.Contains(damaged[0], "more than 20000 lines") {
		t.Errorf("%d found, %q, %v", len(found), damaged, err)
	}
}

// TestMovedMeanwhile: another node moves the outbox into blocks while it is read. All is
// shown once, or it is said that this cannot be told.
func TestMovedMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name string
		move func(t *testing.T, other *Journal)
		err  error
	}{
		{"in the same steps", func(t *testing.T, other *Journal) {
			if n, err := other.Drain(t.Context(), 0); n == 0 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}, nil},
		{"in others", func(t *testing.T, other *Journal) {
			some, err := other.Outbox.Pending(t.Context(), 0, blockRaw/2)
			if err != nil {
				t.Fatal(err)
			}
			half, err := seal(join(some), 1, some[len(some)-1].Number, Head{})
			if err == nil {
				err = other.Shelf.Append(t.Context(), half)
			}
			if err != nil {
				t.Fatal(err)
			}
			if n, err := other.Drain(t.Context(), 0); n == 0 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}, ErrMoved},
	} {
		t.Run(tt.name, func(t *testing.T) {
			box := &memory{}
			big := Entry{At: stamp(time.Now()), Kind: Deferred, ID: mail.NewID(), Reply: strings.Repeat("x", 4000)}.Line()
			const batches = 800 // three blocks
			for n := range uint64(batches) {
				box.list = append(box.list, Batch{n + 1, big})
				box.last = n + 1
			}
			dir, err := OpenDir(filepath.Join(t.TempDir(), "j"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { dir.Close() })
			ours, other := &Journal{Outbox: box, Shelf: dir}, &Journal{Outbox: box, Shelf: dir}
			seen := 0
			r, err := ours.Scan(t.Context(), func(Entry) error {
				if seen++; seen == 10 {
					tt.move(t, other)
				}
				return nil
			})
			if !errors.Is(err, tt.err) || tt.err == nil && (seen != batches || !r.Whole()) {
				t.Errorf("%d of %d entries, gaps %+v, %v", seen, batches, r.Gaps, err)
			}
			if seen > batches {
				t.Error("something was shown twice")
			}
		})
	}
}

// TestManyDamaged: what is named is bounded.
func TestManyDamaged(t *testing.T) {
	var list []string
	for i := range 3 * mostNoted {
		list = noted(list, fmt.Sprint(i))
	}
	if len(list) != mostNoted || list[mostNoted-1] != "and more, which is not named" {
		t.Errorf("%d, %q", len(list), list[len(list)-1])
	}
}
