package ondisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"crossfade/backfill"
)

// mdFile is a message of a Maildir, where it lay when it was seen last.
type mdFile struct {
	base  string // what its name has before the flags: it stays the same
	dir   string // "new" or "cur"
	name  string
	flags string // letters
}

// mdFolder is a folder as one look at it found it.
type mdFolder struct {
	root     *os.Root
	subs     map[string]*os.Root // "new" and "cur", where they are there
	files    map[string]*mdFile  // by base
	numbered backfill.Numbered
	keywords *keywords
}

func (f *mdFolder) close() {
	for _, s := range f.subs {
		s.Close()
	}
	if f.root != nil {
		f.root.Close()
	}
}

// look reads which messages are in a folder, and numbers them.
func (t *mdTree) look(wire string) (*mdFolder, error) {
	dir, err := t.dir(wire)
	if err != nil {
		return nil, err
	}
	f := &mdFolder{subs: map[string]*os.Root{}}
	err = f.open(t.root, dir)
	if err == nil {
		err = f.scan(t.ctx)
	}
	var store backfill.StoreUIDs
	if err == nil {
		// Behind the scan: a message that the server numbers meanwhile is in both.
		store, err = storeUIDs(f.root)
	}
	if err == nil {
		f.keywords, err = readKeywords(f.root)
	}
	if err != nil {
		f.close()
		return nil, folderError(wire, err)
	}
	if f.numbered, err = t.numbers.Assign(wire, f.order(), store); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *mdFolder) open(root *os.Root, dir string) (err error) {
	if f.root, err = root.OpenRoot(dir); err != nil {
		return fmt.Errorf("open it: %w (a link must not leave the tree)", reason(err))
	}
	for _, sub := range []string{"new", "cur"} {
		r, err := f.root.OpenRoot(sub)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open its %s/: %w", sub, reason(err))
		}
		f.subs[sub] = r
	}
	return nil
}

// order gives the names as they are numbered: by the time in them, which is
// that of the delivery.
func (f *mdFolder) order() []string {
	return slices.SortedFunc(maps.Keys(f.files), func(a, b string) int {
		return cmp.Or(cmp.Compare(leadingNumber(a), leadingNumber(b)), strings.Compare(a, b))
	})
}

func leadingNumber(s string) int64 {
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	n, _ := strconv.ParseInt(s[:end], 10, 64) // none is 0
	return n
}

const (
	mostScans = 12
	surely    = 6 // lists of a folder that never rests; what is in none of them is gone
	// coarse is how far the clock of a file system may be behind: what changes
	// within it need not be seen in the time of a directory.
	coarse = 20 * time.Millisecond
)

// scan lists new/ and cur/. A directory that is changed while it is being listed
// may show a renamed file twice or not at all, so it is listed again until
// nothing was changed meanwhile, or two lists in a row are the same.
func (f *mdFolder) scan(ctx context.Context) error {
	var last map[string]*mdFile
	var lists []map[string]*mdFile
	for range mostScans {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		began := time.Now()
		before, err := f.times()
		if err != nil {
			return err
		}
		files, err := f.list()
		if err != nil {
			return err
		}
		after, err := f.times()
		if err != nil {
			return err
		}
		quiet := before == after && before.Before(began.Add(-coarse))
		if quiet || last != nil && equal(files, last) {
			f.files = files
			return nil
		}
		last = files
		lists = append(lists, files)
	}
	// It never comes to rest. A file that is renamed may be missing in a list by
	// chance, in all of the last ones only when it was removed.
	f.files = map[string]*mdFile{}
	for _, files := range lists[mostScans-surely:] {
		maps.Copy(f.files, files)
	}
	return nil
}

func equal(a, b map[string]*mdFile) bool {
	return maps.EqualFunc(a, b, func(x, y *mdFile) bool { return *x == *y })
}

// times gives when one of the directories was changed last.
func (f *mdFolder) times() (latest time.Time, err error) {
	for _, r := range f.subs {
		st, err := r.Stat(".")
		if err != nil {
			return latest, reason(err)
		}
		if st.ModTime().After(latest) {
			latest = st.ModTime()
		}
	}
	return latest, nil
}

// list lists both directories once: new/ first, because messages move from there
// to cur/.
func (f *mdFolder) list() (map[string]*mdFile, error) {
	files := map[string]*mdFile{}
	for _, dir := range []string{"new", "cur"} {
		root := f.subs[dir]
		if root == nil {
			continue
		}
		d, err := root.Open(".")
		if err != nil {
			return nil, reason(err)
		}
		entries, err := d.ReadDir(-1)
		d.Close()
		if err != nil {
			return nil, fmt.Errorf("list %s/: %w", dir, reason(err))
		}
		for _, e := range entries {
			if e.Name()[0] == '.' || e.IsDir() {
				continue
			}
			x := &mdFile{dir: dir, name: e.Name()}
			x.base, x.flags = splitName(x.name)
			f.add(files, x)
		}
	}
	return files, nil
}

// add adds a file. The same message may show twice, under its name before and
// after a change of its flags; two messages with one name are two.
func (f *mdFolder) add(files map[string]*mdFile, x *mdFile) {
	old := files[x.base]
	if old == nil {
		files[x.base] = x
		return
	}
	a, errA := f.subs[old.dir].Lstat(old.name)
	b, errB := f.subs[x.dir].Lstat(x.name)
	switch {
	case errB != nil: // it is gone: the older name stands, and is looked for when it is read
	case errA != nil || os.SameFile(a, b):
		files[x.base] = x
	default:
		x.base = x.dir + "/" + x.name
		files[x.base] = x
	}
}

// fingerprint changes with whatever changes in the folder.
func (f *mdFolder) fingerprint() uint64 {
	h := fnv.New64a()
	for _, base := range slices.Sorted(maps.Keys(f.files)) {
		x := f.files[base]
		h.Write([]byte(x.name))
		h.Write([]byte{'/'})
	}
	f.keywords.hash(h)
	return h.Sum64()>>1 | 1
}
