package ondisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
)

// Mbox is a tree of mbox files, one for each folder, as Dovecot and UW-imap keep
// them, as a source.
type Mbox struct {
	// Folders is the directory of the folders, or the INBOX when it is a file.
	Folders Place
	// Inbox is the file of the INBOX; the zero value means "inbox" or "INBOX" in
	// Folders.
	Inbox Place

	// For tests: called at named points; and instead of settling.
	at   func(point string)
	rest time.Duration
}

// String names the tree in reports and certificates.
func (m Mbox) String() string { return "mbox " + m.Folders.String() }

// Open implements [backfill.Source].
func (m Mbox) Open(ctx context.Context, n *backfill.Numbers) (backfill.Mailbox, error) {
	t := &mbTree{ctx: ctx, numbers: n, files: map[string]mbFile{}, known: map[string]*mbState{}, at: m.at, rest: cmp.Or(m.rest, settling)}
	if t.at == nil {
		t.at = func(string) {}
	}
	if err := t.open(m); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// mbTree is the tree in one pass.
type mbTree struct {
	ctx     context.Context
	numbers *backfill.Numbers
	root    *os.Root // nil when there is an INBOX only
	inbox   *mbFile
	roots   []*os.Root
	at      func(point string)
	rest    time.Duration

	mu    sync.Mutex
	files map[string]mbFile   // by Wire
	known map[string]*mbState // what was found last, by Wire
}

// mbFile is a file below a directory that it cannot leave.
type mbFile struct {
	root *os.Root
	name string
	// plain: it must not be a link. The directory is not one of the user's own.
	plain bool
}

func (f mbFile) open() (*os.File, error) {
	var seen fs.FileInfo
	if f.plain {
		var err error
		if seen, err = f.root.Lstat(f.name); err != nil {
			return nil, reason(err)
		}
		if seen.Mode()&fs.ModeSymlink != 0 {
			return nil, errLink
		}
	}
	file, st, err := openFile(f.root, f.name)
	if err == nil && f.plain && !os.SameFile(seen, st) {
		file.Close()
		return nil, errSwapped
	}
	return file, err
}

// open finds out what there is. Who has neither folders nor an INBOX is nobody,
// or his mail is not there now: an empty mailbox must not come of it.
func (t *mbTree) open(m Mbox) error {
	there := false
	if m.Inbox != (Place{}) {
		var err error
		if there, err = t.openInbox(m.Inbox); err != nil {
			return err
		}
	}
	s, err := m.Folders.find()
	if err != nil {
		return err
	}
	if s.dir != nil {
		t.roots = append(t.roots, s.dir)
	}
	switch {
	case s.st == nil && there:
		return nil // a user without folders
	case s.st == nil && t.inbox != nil:
		return fmt.Errorf("open %s: it is not there, and neither is the INBOX %s: is the user's name right, and are the file systems mounted?", m.Folders, m.Inbox)
	case s.st == nil:
		return m.Folders.failed(syscall.ENOENT)
	case !s.st.IsDir():
		_, err := t.openInbox(m.Folders)
		return err
	}
	if t.root, err = enter(s.dir, s.name, s.st); err != nil {
		return m.Folders.failed(err)
	}
	t.roots = append(t.roots, t.root)
	if t.inbox == nil {
		return notEmpty(t.root, m.Folders.String())
	}
	return nil
}

// openInbox notes where the INBOX is, and tells whether it is there. Its
// directory has to be, with something in it; the file is not when there is no
// mail.
func (t *mbTree) openInbox(p Place) (there bool, err error) {
	s, err := p.find()
	if err != nil {
		return false, err
	}
	if s.dir == nil {
		return false, fmt.Errorf("open %s: %w (the directory of the INBOX is missing: is the file system mounted?)", p, syscall.ENOENT)
	}
	t.roots = append(t.roots, s.dir)
	t.inbox = &mbFile{root: s.dir, name: s.name, plain: true}
	if s.st == nil {
		return false, notEmpty(s.dir, path.Dir(p.String()))
	}
	return true, nil
}

// notEmpty refuses a directory that has nothing in it, as that has which a file
// system is mounted on.
func notEmpty(dir *os.Root, name string) error {
	d, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("open %s: %w", name, reason(err))
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("open %s: there is nothing in it: is the path right, and is the file system mounted?", name)
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", name, reason(err))
	}
	return nil
}

// Close implements [backfill.Mailbox].
func (t *mbTree) Close() error {
	for _, r := range t.roots {
		r.Close()
	}
	return nil
}

// Namespaces implements [backfill.Mailbox].
func (t *mbTree) Namespaces() (imapconn.Namespaces, error) {
	return imapconn.Namespaces{Delim: "/"}, nil
}

// List implements [backfill.Mailbox].
func (t *mbTree) List() ([]imapconn.Folder, error) {
	var names []string
	subscribed := map[string]bool{}
	if t.root != nil {
		var err error
		if names, err = mboxFiles(t.root); err != nil {
			return nil, err
		}
		if subscribed, err = subscriptions(t.root); err != nil {
			return nil, err
		}
	}
	files := map[string]mbFile{}
	var out []imapconn.Folder
	for _, name := range names {
		f := imapconn.Folder{Name: decodeName(name), Wire: wireName(name), Delim: "/"}
		if strings.EqualFold(name, "INBOX") {
			if t.inbox != nil {
				return nil, fmt.Errorf("list the folders: there are two INBOXes, one is %q in the directory of the folders: move it away", name)
			}
			f.Name, f.Wire = "INBOX", "INBOX"
		}
		if _, ok := files[f.Wire]; ok {
			return nil, fmt.Errorf("list the folders: there are two with the name %q: rename one", f.Wire)
		}
		files[f.Wire] = mbFile{root: t.root, name: name}
		f.Subscribed = subscribed[levelsOf(f.Name, "/", "")]
		out = append(out, f)
	}
	if t.inbox != nil {
		files["INBOX"] = *t.inbox
		out = append(out, imapconn.Folder{Name: "INBOX", Wire: "INBOX", Delim: "/", Subscribed: subscribed["INBOX"]})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files = files
	return out, nil
}

// mboxFiles gives the files that are folders: all but those that begin with a
// dot, and locks.
func mboxFiles(root *os.Root) ([]string, error) {
	var out []string
	var walk func(dir string, depth int) error
	walk = func(dir string, depth int) error {
		entries, err := readDir(root, dir)
		if err != nil {
			return fmt.Errorf("list the folders in %q: %w", dir, err)
		}
		if depth > deepest {
			return fmt.Errorf("list the folders: %q is more than %d levels deep", dir, deepest)
		}
		for _, e := range entries {
			name := e.Name()
			switch {
			case name[0] == '.', strings.HasSuffix(name, ".lock"), dir == "." && name == "subscriptions":
			case e.IsDir():
				if err := walk(path.Join(dir, name), depth+1); err != nil {
					return err
				}
			default:
				out = append(out, path.Join(dir, name))
			}
		}
		return nil
	}
	return out, walk(".", 0)
}

// Statuses implements [backfill.Mailbox].
func (t *mbTree) Statuses(wires []string) (map[string]imapconn.Status, map[string]error, error) {
	stats, errs := map[string]imapconn.Status{}, map[string]error{}
	for _, wire := range wires {
		if t.ctx.Err() != nil {
			return nil, nil, context.Cause(t.ctx)
		}
		st, err := t.status(wire)
		if errors.Is(err, backfill.ErrFolder) {
			errs[wire] = err
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		stats[wire] = st
	}
	return stats, errs, nil
}

// NewReader implements [backfill.Mailbox].
func (t *mbTree) NewReader() backfill.MailReader { return &mbReader{t: t} }

// mbState is what a file held at one time.
type mbState struct {
	stamp    stamp // zero when there was no file
	index    *mbIndex
	numbered backfill.Numbered
}

func (s *mbState) status() imapconn.Status {
	return imapconn.Status{Messages: uint32(len(s.index.messages)), UIDNext: s.numbered.Next, UIDValidity: s.numbered.Validity, ModSeq: s.fingerprint()}
}

// fingerprint changes with whatever changes in the folder.
func (s *mbState) fingerprint() uint64 {
	h := fnv.New64a()
	for _, m := range s.index.messages {
		h.Write([]byte(m.name + " " + strings.Join(m.flags, " ") + "\n"))
	}
	return h.Sum64()>>1 | 1
}

// look gives what a folder holds now. A file that did not change is not read
// again.
func (t *mbTree) look(wire string) (*mbState, error) {
	t.mu.Lock()
	file, ok := t.files[wire]
	last := t.known[wire]
	t.mu.Unlock()
	if !ok {
		return nil, folderError(wire, errors.New("it was not listed"))
	}
	s, err := t.index(file, last)
	if err != nil && t.ctx.Err() != nil {
		return nil, context.Cause(t.ctx)
	}
	if err != nil {
		return nil, folderError(wire, err)
	}
	if s == last {
		return s, nil
	}
	var names []string
	for _, m := range s.index.messages {
		names = append(names, m.name)
	}
	if s.numbered, err = t.numbers.Assign(wire, names, s.index.store()); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[wire] = s
	return s, nil
}

// grown gives what a folder held when it was looked at, if its file has more since and is
// the same else, as far as that can be told; nil otherwise.
func (t *mbTree) grown(wire string) *mbState {
	t.mu.Lock()
	file, last := t.files[wire], t.known[wire]
	t.mu.Unlock()
	if last == nil || last.stamp.Inode == 0 {
		return nil
	}
	f, err := file.open()
	if err != nil {
		return nil // the look that follows says why
	}
	defer f.Close()
	now, err := stampOf(f)
	if err != nil || now.Device != last.stamp.Device || now.Inode != last.stamp.Inode || now.Size <= last.stamp.Size {
		return nil
	}
	return last
}

func (t *mbTree) index(file mbFile, last *mbState) (*mbState, error) {
	f, err := file.open()
	if errors.Is(err, fs.ErrNotExist) && t.inbox != nil && file == *t.inbox {
		return &mbState{index: &mbIndex{}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	defer f.Close()
	now, err := stampOf(f)
	if err != nil {
		return nil, err
	}
	if last != nil && last.stamp.same(now) {
		return last, nil
	}
	for try := range mostTries {
		s, err := t.readThrough(file, f, try == mostTries-1)
		if !errors.Is(err, errShrunk) && !errors.Is(err, errMoved) {
			return s, err
		}
	}
	return nil, errBusy
}

// mostTries is how often a file is read through that is changed meanwhile.
const mostTries = 3

// readThrough finds the messages of a file. It begins when nobody writes. How
// long it takes is up to what strangers sent, so others may write meanwhile, which
// shows, unless they are to be kept away.
func (t *mbTree) readThrough(file mbFile, f *os.File, keepAway bool) (*mbState, error) {
	began, unlock, err := t.lock(file, f)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !keepAway {
		unlock()
	}
	t.at("index")
	x, err := indexMbox(stoppable{t.ctx, f}, began.Size)
	if err != nil {
		return nil, err
	}
	after, err := stampOf(f)
	if err != nil {
		return nil, err
	}
	if !began.same(after) {
		return nil, errMoved
	}
	return &mbState{stamp: began, index: x}, nil
}

// stoppable reads until ctx is over.
type stoppable struct {
	ctx context.Context
	r   io.ReaderAt
}

func (s stoppable) ReadAt(p []byte, off int64) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.ReadAt(p, off)
}

var errBusy = errors.New("it is changed faster than it can be read, by something that does not lock it: the next pass tries again")
