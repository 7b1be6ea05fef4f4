package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
)

// memory is an outbox in memory.
type memory struct {
	mu   sync.Mutex
	list []Batch
	last uint64
}

func (m *memory) Pending(_ context.Context, after uint64, max int) (out []Batch, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := 0
	for _, b := range m.list {
		if b.Number > after && size < max {
			out = append(out, b)
			size += len(b.Lines)
		}
	}
	return out, nil
}

func (m *memory) Forget(_ context.Context, last uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = slices.DeleteFunc(m.list, func(b Batch) bool { return b.Number <= last })
	m.last = max(m.last, last)
	return nil
}

// add writes one line about a message with a Message-ID, and gives its queue id.
func (m *memory) add(messageID string) mail.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := mail.NewID()
	m.last++
	e := Entry{At: stamp(time.Now()), Kind: Accepted, ID: id, MessageID: messageID, Rcpts: []Rcpt{{To: "a@example.org", User: "a@example.org"}}}
	m.list = append(m.list, Batch{m.last, e.Line()})
	return id
}

type bench struct {
	*testing.T
	dir string
	box *memory
	j   *Journal
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: filepath.Join(t.TempDir(), "journal"), box: &memory{}}
	b.open()
	return b
}

// open opens the shelf again, as after a restart.
func (b *bench) open() {
	b.Helper()
	d, err := OpenDir(b.dir)
	b.ok(err)
	b.Cleanup(func() { d.Close() })
	b.j = &Journal{Outbox: b.box, Shelf: d}
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// block writes n messages and makes a block of them.
func (b *bench) block(n int) (ids []mail.ID) {
	b.Helper()
	for range n {
		ids = append(ids, b.box.add("<"+string(mail.NewID())+"@example.com>"))
	}
	moved, err := b.j.Drain(b.Context(), 0)
	b.ok(err)
	if moved != n {
		b.Fatalf("%d of %d were moved", moved, n)
	}
	return ids
}

func (b *bench) scan() (ids []mail.ID, r Report) {
	b.Helper()
	r, err := b.j.Scan(b.Context(), func(e Entry) error { ids = append(ids, e.ID); return nil })
	b.ok(err)
	return ids, r
}

func (b *bench) files() []string {
	b.Helper()
	names, err := b.j.Shelf.(*Dir).names()
	b.ok(err)
	return names
}

func TestDrainScanFind(t *testing.T) {
	b := newBench(t)
	var all []mail.ID
	for range 3 {
		all = append(all, b.block(50)...)
	}
	all = append(all, b.box.add("<last@example.com>")) // stays in the outbox
	for range 2 {
		ids, r := b.scan()
		if !slices.Equal(ids, all) || !r.Whole() || r.Blocks != 3 || r.First != 1 || r.Last != 151 || len(r.Damaged) > 0 {
			t.Fatalf("%d of %d, %+v", len(ids), len(all), r)
		}
		for _, id := range []mail.ID{all[0], all[77], all[150]} {
			found, _, err := b.j.Find(t.Context(), string(id))
			b.ok(err)
			if len(found) != 1 || found[0].ID != id {
				t.Fatalf("%s gives %+v", id, found)
			}
		}
		found, _, err := b.j.Find(t.Context(), "last@example.com")
		b.ok(err)
		if len(found) != 1 || found[0].ID != all[150] {
			t.Fatalf("by Message-ID: %+v", found)
		}
		b.open()
	}
	if n, err := b.j.Drain(t.Context(), time.Hour); n != 0 || err != nil {
		t.Fatalf("one young line was moved: %d, %v", n, err)
	}
}

// A lookup reads the blocks that may have the message, and no others.
func TestFindReadsFewBlocks(t *testing.T) {
	b := newBench(t)
	ids := b.block(100)
	for range 20 {
		b.block(100)
	}
	n := 0
	for _, err := range b.j.Shelf.Blocks(t.Context(), Want{Of: string(ids[3])}) {
		b.ok(err)
		n++
	}
	if n != 1 {
		t.Fatalf("%d blocks were read", n)
	}
}

// People can read the files without us.
func TestZstdcat(t *testing.T) {
	tool, err := exec.LookPath("zstdcat")
	if err != nil {
		t.Skip("zstdcat is not here")
	}
	b := newBench(t)
	b.block(10)
	b.block(10)
	out, err := exec.Command(tool, filepath.Join(b.dir, b.files()[0])).Output()
	b.ok(err)
	if n := bytes.Count(out, []byte("\n")); n != 20 {
		t.Fatalf("%d lines: %s", n, out)
	}
}

// A write that was cut off is no loss: the outbox has what was in it.
func TestTornTail(t *testing.T) {
	for _, cut := range []int64{1, 60, 113, 500} {
		b := newBench(t)
		first := b.block(20)
		box := slices.Clone(b.box.list)
		for range 30 {
			b.box.add("")
		}
		box = slices.Clone(b.box.list)
		_, err := b.j.Drain(t.Context(), 0)
		b.ok(err)
		path := filepath.Join(b.dir, b.files()[0])
		info, err := os.Stat(path)
		b.ok(err)
		b.ok(os.Truncate(path, info.Size()-cut))
		b.box.list = box // the outbox had not let go
		b.open()
		moved, err := b.j.Drain(t.Context(), 0)
		b.ok(err)
		ids, r := b.scan()
		if moved != 30 || len(ids) != 50 || ids[0] != first[0] || !r.Whole() || len(r.Damaged) != 1 {
			t.Fatalf("cut by %d: %d moved, %d entries, %+v", cut, moved, len(ids), r)
		}
		if len(b.files()) != 2 {
			t.Fatalf("the torn file was added to: %v", b.files())
		}
	}
}

// A file in which nothing can be read keeps nobody from going on.
func TestTornFile(t *testing.T) {
	b := newBench(t)
	b.block(5)
	for range 3 {
		b.j.Shelf.(*Dir).leave()
		for range 5 {
			b.box.add("")
		}
		box := slices.Clone(b.box.list)
		_, err := b.j.Drain(t.Context(), 0)
		b.ok(err)
		b.ok(os.Truncate(filepath.Join(b.dir, b.files()[len(b.files())-1]), 30))
		b.box.list = box
		b.open()
		_, err = b.j.Drain(t.Context(), 0)
		b.ok(err)
	}
	if ids, r := b.scan(); len(ids) != 20 || !r.Whole() || len(r.Damaged) != 3 || len(b.files()) != 7 {
		t.Fatalf("%d entries in %v, %+v", len(ids), b.files(), r)
	}
}

// A file that is damaged later is named, with what is missing by it, and the rest
// is read.
func TestDamaged(t *testing.T) {
	b := newBench(t)
	var all []mail.ID
	for range 5 {
		all = append(all, b.block(20)...)
	}
	path := filepath.Join(b.dir, b.files()[0])
	data, err := os.ReadFile(path)
	b.ok(err)
	block := len(data) / 5
	for _, at := range []int{0, 5, 20, 70, 100, 110, block - 3} {
		bad := slices.Clone(data)
		bad[2*block+at] ^= 0x55
		b.ok(os.WriteFile(path, bad, 0o600))
		ids, r := b.scan()
		if len(ids) < 60 || len(ids) > 80 || r.Whole() || len(r.Damaged) == 0 || ids[len(ids)-1] != all[99] {
			t.Errorf("octet %d: %d entries, %+v", at, len(ids), r)
		}
	}
	b.ok(os.WriteFile(path, data, 0o600))
	if _, r := b.scan(); !r.Whole() {
		t.Errorf("mended: %+v", r)
	}
}

// A block that somebody wrote anew, with a good checksum, does not fit the chain.
func TestChain(t *testing.T) {
	b := newBench(t)
	b.block(5)
	head, _ := b.j.Shelf.Head(t.Context())
	b.block(5)
	b.block(5)
	path := filepath.Join(b.dir, b.files()[0])
	var data []byte
	for x, err := range b.j.Shelf.Blocks(t.Context(), Want{}) {
		b.ok(err)
		if x.Number == 2 {
			lines, err := x.Lines()
			b.ok(err)
			lines = bytes.Replace(lines, []byte("a@example.org"), []byte("x@example.org"), 1)
			x, err = seal(lines, x.First, x.Last, head)
			b.ok(err)
		}
		data = append(data, x.Data...)
	}
	b.ok(os.WriteFile(path, data, 0o600))
	if _, r := b.scan(); r.Whole() || len(r.Damaged) > 0 || !strings.Contains(r.Gaps[0].Text, "block 3") {
		t.Fatalf("%+v", r)
	}
}

// What dies between the shelf and the outbox is not there twice.
func TestDiedBetween(t *testing.T) {
	b := newBench(t)
	for range 10 {
		b.box.add("")
	}
	box := slices.Clone(b.box.list)
	_, err := b.j.Drain(t.Context(), 0)
	b.ok(err)
	b.box.list = box // Forget was not done
	b.open()
	if n, err := b.j.Drain(t.Context(), 0); n != 0 || err != nil {
		t.Fatalf("%d were moved again, %v", n, err)
	}
	if ids, r := b.scan(); len(ids) != 10 || !r.Whole() || len(b.box.list) != 0 {
		t.Fatalf("%d entries, %+v", len(ids), r)
	}
}

// After a failed sync nothing is written until the next start, which finds out what
// the disk has.
func TestFailedSync(t *testing.T) {
	b := newBench(t)
	b.block(5)
	d := b.j.Shelf.(*Dir)
	broken := errors.New("the disk is broken")
	d.sync = func(*os.File) error { return broken }
	b.box.add("")
	if _, err := b.j.Drain(t.Context(), 0); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	d.sync = (*os.File).Sync
	if again, err := OpenDir(b.dir); err != nil || again.head.Number != 1 {
		t.Fatalf("what could not be synced counts as kept: %+v, %v", again.head, err)
	} else {
		again.leave()
	}
	b.box.add("")
	if _, err := b.j.Drain(t.Context(), 0); !errors.Is(err, broken) || len(b.box.list) != 2 {
		t.Fatalf("error %v, %d lines are left", err, len(b.box.list))
	}
	for range 2 {
		b.open()
		if _, err := b.j.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if ids, r := b.scan(); len(ids) != 7 || !r.Whole() {
			t.Fatalf("%d entries in %v, %+v", len(ids), b.files(), r)
		}
	}
}

// A write that finds no room leaves nothing behind.
func TestNoRoom(t *testing.T) {
	b := newBench(t)
	b.block(5)
	d := b.j.Shelf.(*Dir)
	whole := d.f
	path := filepath.Join(b.dir, b.files()[0])
	f, err := os.Open(path) // cannot be written
	b.ok(err)
	d.f = f
	b.box.add("")
	if _, err := b.j.Drain(t.Context(), 0); err == nil {
		t.Fatal("it was written")
	}
	d.f, d.broken = whole, nil
	if n, err := b.j.Drain(t.Context(), 0); n != 1 || err != nil {
		t.Fatalf("%d were moved, %v", n, err)
	}
	if ids, r := b.scan(); len(ids) != 6 || !r.Whole() {
		t.Fatalf("%d entries, %+v", len(ids), r)
	}
}

func TestPrune(t *testing.T) {
	b := newBench(t)
	d := b.j.Shelf.(*Dir)
	for range 3 {
		b.block(5)
		d.mu.Lock()
		d.leave() // as on another day
		d.mu.Unlock()
	}
	if n, err := d.Prune(t.Context(), time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := d.Prune(t.Context(), time.Now().Add(time.Hour)); n != 2 || err != nil {
		t.Fatalf("%d blocks were removed, %v", n, err)
	}
	// A beginning that nobody removed is missing.
	if ids, r := b.scan(); len(ids) != 5 || r.Whole() || r.First != 11 {
		t.Fatalf("%d entries, %+v", len(ids), r)
	}
	b.j.Keep = time.Hour
	if ids, r := b.scan(); len(ids) != 5 || !r.Whole() || r.First != 11 {
		t.Fatalf("%d entries, %+v", len(ids), r)
	}
	b.open()
	b.block(5)
}

func TestRemoteID(t *testing.T) {
	for reply, want := range map[string]string{
		"250 2.0.0 Ok: queued as 4Zk1Lq0VvTz1mQ (new, in reply to end of data)":               "4Zk1Lq0VvTz1mQ",
		"250 OK id=1tDxyz-00000000abc-1XYZ":                                                   "1tDxyz-00000000abc-1XYZ",
		"250 2.0.0 4AL9AaBb012345 Message accepted for delivery":                              "4AL9AaBb012345",
		"250 2.0.0 <a@example.org> zKq1Xk9WP2cAAAAA Saved":                                    "zKq1Xk9WP2cAAAAA",
		"250 2.6.0 <m@x> [InternalId=12345678, Hostname=ex.example] Queued mail for delivery": "12345678",
		"250 2.0.0 ok":     "",
		"250 Ok queued as": "",
		"":                 "",
	} {
		if got := RemoteID(reply); got != want {
			t.Errorf("%q: %q, want %q", reply, got, want)
		}
	}
}

// Whatever is read as a block is one, or an error.
func FuzzOpenBlock(f *testing.F) {
	m := &memory{}
	m.add("<x@y>")
	b, err := seal(m.list[0].Lines, 1, 1, Head{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.Data)
	f.Add(b.Data[:50])
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := OpenBlock(data)
		if err != nil {
			return
		}
		if _, err := b.Lines(); err != nil && !errors.Is(err, errDamaged) {
			t.Fatal(err)
		}
		b.Split()
		Want{Of: "x"}.Skips(data)
	})
}

func TestEntryText(t *testing.T) {
	e := Entry{At: stamp(time.Now()), Kind: Delivered, ID: mail.NewID(), Reply: text("250 \xff ok"), N: 3}
	back, err := ParseEntry(e.Line())
	if err != nil || back.Reply != "250 \ufffd ok" || back.N != 3 || !back.At.Equal(e.At) {
		t.Fatalf("%+v, %v", back, err)
	}
	for _, bad := range []string{"", "{}", "x", `{"e":"accepted"}`} {
		if _, err := ParseEntry([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if n := len(text(fmt.Sprint(make([]int, 3000)))); n != longestText {
		t.Errorf("%d octets", n)
	}
}

// TestEndIsLost: behind a newest block that cannot be read nothing shows that it is
// missing, and the journal is not whole all the same.
func TestEndIsLost(t *testing.T) {
	b := newBench(t)
	for range 3 {
		b.block(5)
	}
	if ids, r := b.scan(); len(ids) != 15 || !r.Whole() {
		t.Fatalf("%d entries, %+v", len(ids), r)
	}
	files, err := filepath.Glob(filepath.Join(b.dir, "*"))
	b.ok(err)
	path := files[len(files)-1]
	data, err := os.ReadFile(path)
	b.ok(err)
	for i := range 20 {
		data[len(data)-1-i] ^= 0x55
	}
	b.ok(os.WriteFile(path, data, 0o600))
	if ids, r := b.scan(); len(ids) != 10 || r.Whole() {
		t.Fatalf("%d entries, %+v", len(ids), r)
	}
}

// TestPruneUnreadable: a file that cannot be read stays, and keeps nothing behind it; as long as what is behind it
// stays, so does what is before it, and the gap between them is told.
func TestPruneUnreadable(t *testing.T) {
	b := newBench(t)
	d := b.j.Shelf.(*Dir)
	begun := time.Now()
	b.box.list, b.box.last = append(b.box.list, Batch{1, Entry{At: stamp(begun.Add(-time.Hour)), Kind: Deferred, ID: mail.NewID()}.Line()}), 1
	for n := range 4 {
		if n > 0 {
			b.box.add("")
		}
		_, err := b.j.Drain(t.Context(), 0)
		b.ok(err)
		d.mu.Lock()
		d.leave() // as on another day
		d.mu.Unlock()
	}
	files := b.files()
	b.ok(os.Truncate(filepath.Join(b.dir, files[1]), 30))
	if n, err := d.Prune(t.Context(), begun.Add(-time.Minute)); n != 0 || err != nil {
		t.Errorf("the file before the one that cannot be read: %d, %v", n, err)
	}
	b.j.Keep = time.Hour
	if _, r := b.scan(); r.Whole() {
		t.Errorf("nothing says that a block is missing: %+v", r)
	}
	if n, err := d.Prune(t.Context(), time.Now().Add(time.Hour)); n != 2 || err != nil || !slices.Equal(b.files(), []string{files[1], files[3]}) {
		t.Errorf("%d blocks were removed, %v; left: %v", n, err, b.files())
	}
}

// TestKilledAtOnce: a process that is killed again and again before it writes anything leaves no files that the next one
// stumbles over.
func TestKilledAtOnce(t *testing.T) {
	b := newBench(t)
	for range 30 {
		b.open()
		d := b.j.Shelf.(*Dir)
		b.ok(d.begin(1))
		d.leave()
	}
	b.open()
	b.block(5)
	if ids, r := b.scan(); len(ids) != 5 || !r.Whole() || len(b.files()) != 1 {
		t.Errorf("%d entries in %v, %+v", len(ids), b.files(), r)
	}
}

// TestSenselessLine: a line that cannot be read is told of, and keeps nothing behind it out of the files.
func TestSenselessLine(t *testing.T) {
	b := newBench(t)
	first := b.box.add("<first@example.com>")
	b.box.list = append(b.box.list, Batch{2, []byte("{\"t\":\x00\n")})
	b.box.last = 2
	last := b.box.add("<last@example.com>")
	if n, err := b.j.Drain(t.Context(), 0); n != 3 || err != nil {
		t.Fatalf("%d batches were moved, %v", n, err)
	}
	if ids, r := b.scan(); !slices.Equal(ids, []mail.ID{first, last}) || r.Unread != 1 || r.Whole() || len(r.Gaps) > 0 {
		t.Errorf("%v, %+v", ids, r)
	}
	for _, id := range []string{string(first), "last@example.com"} {
		if found, _, err := b.j.Find(t.Context(), id); err != nil || len(found) != 1 {
			t.Errorf("%s: %+v, %v", id, found, err)
		}
	}
}
