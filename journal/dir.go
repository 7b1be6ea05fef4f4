package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fileSize is how large a file of blocks grows, in octets, before the next one is
// begun; a file is not added to on the day after it was begun either.
const fileSize = 16 << 20

// extension is that of files of blocks: zstdcat prints them.
const extension = ".jsonl.zst"

// Dir is a shelf of files in one directory, each named after its first block. No
// file is changed but by adding to the last one.
type Dir struct {
	path string
	sync func(*os.File) error

	mu   sync.Mutex
	head Head
	// broken is why nothing more is written.
	broken error
	f      *os.File // the file that is added to; nil: the next block begins one
	size   int64
	day    time.Time // on which f was begun
}

var _ Shelf = (*Dir)(nil)

// OpenDir opens the shelf in a directory, which it makes when there is none. The
// last block is looked for; what a write that was cut off left behind it stays,
// and the next block begins a new file.
func OpenDir(path string) (*Dir, error) {
	d := &Dir{path: path, sync: (*os.File).Sync}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	if err := d.syncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Backward(names) {
		found, end, err := d.lastOf(name)
		if err != nil {
			return nil, err
		}
		if found.Number == 0 {
			continue // nothing in it can be read
		}
		d.head = found
		return d, d.settle(name, end, name == names[len(names)-1])
	}
	return d, nil
}

// names lists the files in the order of their blocks.
func (d *Dir) names() ([]string, error) {
	entries, err := os.ReadDir(d.path) // sorted, and the numbers have one width
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	var names []string
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), extension)
		if _, err := strconv.ParseUint(strings.TrimRight(base, "bcdefghijklmnopqrstuvwxyz"), 10, 64); ok && err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// lastOf gives the last good block of a file, and where it ends.
func (d *Dir) lastOf(name string) (head Head, end int64, err error) {
	r, err := openBlocks(filepath.Join(d.path, name))
	if err != nil {
		return head, 0, err
	}
	defer r.close()
	for b, err := range r.all(context.Background(), Want{}) {
		var damage *Damage
		switch {
		case errors.As(err, &damage):
		case err != nil:
			return head, 0, err
		case b.Number > head.Number:
			head, end = b.head(), r.at
		}
	}
	return head, end, nil
}

// settle makes sure that the file with the newest block is on stable storage, which
// a process that was killed may not have waited for, and goes on in it when the
// block is at its end.
func (d *Dir) settle(name string, end int64, goOn bool) error {
	f, err := os.OpenFile(filepath.Join(d.path, name), os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	info, err := f.Stat()
	err = errors.Join(err, d.sync(f), d.syncDir(d.path))
	if err != nil || !goOn || info.Size() != end {
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("open the journal: %w", err)
		}
		return nil
	}
	d.f, d.size, d.day = f, end, dayOf(info.ModTime())
	return nil
}

func dayOf(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// Head implements [Shelf].
func (d *Dir) Head(context.Context) (Head, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.head, nil
}

// Append implements [Shelf]. What a write left that found no room is cut off again.
// After a sync that failed nothing more is written, until the directory is opened
// anew: what the disk holds is not known then, and a second sync would lie.
func (d *Dir) Append(_ context.Context, b Block) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return fmt.Errorf("write the journal: since an earlier error nothing more is written there until the next start: %w", d.broken)
	}
	if b.Number != d.head.Number+1 || b.Prev != d.head.Hash {
		return fmt.Errorf("%w: block %d does not follow block %d", ErrBehind, b.Number, d.head.Number)
	}
	if d.f != nil && (d.size+int64(len(b.Data)) > fileSize || d.day.Before(dayOf(time.Now()))) {
		d.leave()
	}
	if err := d.write(b); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	d.size += int64(len(b.Data))
	d.head = b.head()
	return nil
}

// leave lets go of the file that is added to; all that counts in it is synced.
func (d *Dir) leave() {
	if d.f != nil {
		_ = d.f.Close()
		d.f = nil
	}
}

func (d *Dir) write(b Block) error {
	begun := d.f == nil
	if begun {
		if err := d.begin(b.Number); err != nil {
			return err
		}
	}
	if _, err := d.f.Write(b.Data); err != nil {
		return d.cutOff(err)
	}
	err := d.sync(d.f)
	if err == nil && begun {
		err = d.syncDir(d.path)
	}
	if err != nil {
		// The kernel may show what it could not write, and the next start would take it
		// for kept. When it is gone, or a part of it, the outbox has it still.
		d.broken = errors.Join(err, d.f.Truncate(d.size))
		d.leave()
	}
	return err
}

// cutOff takes back what a write left that did not end well.
func (d *Dir) cutOff(cause error) error {
	err := d.f.Truncate(d.size)
	if err == nil {
		err = d.sync(d.f)
	}
	if err != nil {
		d.broken = errors.Join(cause, err)
		d.leave()
	}
	return cause
}

// begin makes the file for a block and those behind it. When there is one of this
// name in which a write was cut off, the name gets a letter; one that is empty, of a
// process that found no room or was killed at once, is as good as new.
func (d *Dir) begin(number uint64) error {
	for _, letter := range strings.Split(" bcdefghijklmnopqrstuvwxyz", "") {
		name := fmt.Sprintf("%020d%s%s", number, strings.TrimSpace(letter), extension)
		f, err := os.OpenFile(filepath.Join(d.path, name), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && info.Size() == 0 {
			d.f, d.size, d.day = f, 0, dayOf(time.Now())
			return nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return fmt.Errorf("block %d was begun 25 times in %s, and none can be read: look at the disk, and move these files away", number, d.path)
}

func (d *Dir) syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.sync(f), f.Close())
}

// Prune implements [Shelf]: whole files go. One that cannot be read is evidence and
// stays, with the file before it until what is behind it may go too: between two files
// it shows what is missing.
func (d *Dir) Prune(ctx context.Context, before time.Time) (removed int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := d.names()
	if err != nil {
		return 0, err
	}
	last, blocks, unread := "", 0, false // the newest file that is old, and what is behind it
	for _, name := range names[:max(len(names)-1, 0)] {
		n, old, err := d.older(ctx, name, before)
		if err != nil {
			return removed, err
		}
		if n == 0 {
			unread = true
			continue
		}
		if !old {
			break
		}
		if err := d.remove(last); err != nil {
			return removed, err
		}
		removed += blocks
		last, blocks, unread = name, n, false
	}
	if !unread {
		if err := d.remove(last); err != nil {
			return removed, err
		}
		removed += blocks
	}
	if removed > 0 {
		err = d.syncDir(d.path)
	}
	return removed, err
}

// remove takes a file away; none has no name.
func (d *Dir) remove(name string) error {
	if name == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		return fmt.Errorf("remove an old part of the journal: %w", err)
	}
	return nil
}

// older counts the blocks of a file that can be read, and tells whether they have
// nothing newer than a time, and are not the newest.
func (d *Dir) older(ctx context.Context, name string, before time.Time) (blocks int, old bool, err error) {
	r, err := openBlocks(filepath.Join(d.path, name))
	if err != nil {
		return 0, false, err
	}
	defer r.close()
	old = true
	for b, err := range r.all(ctx, Want{}) {
		var damage *Damage
		switch {
		case errors.As(err, &damage):
		case err != nil:
			return 0, false, err
		default:
			blocks++
			old = old && b.To.Before(before) && b.Number != d.head.Number
		}
	}
	return blocks, old, nil
}

// Close closes the file that is added to.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leave()
	return nil
}
