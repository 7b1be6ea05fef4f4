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
	"slices"
	"strings"
	"sync"
	"syscall"

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
}

// String names the tree in reports and certificates.
func (m Mbox) String() string { return "mbox " + m.Folders.String() }

// Open implements [backfill.Source].
func (m Mbox) Open(ctx context.Context, n *backfill.Numbers) (backfill.Mailbox, error) {
	t := &mbTree{ctx: ctx, numbers: n, files: map[string]mbFile{}, known: map[string]*mbState{}}
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
		s, err := t.look(wire)
		if errors.Is(err, backfill.ErrFolder) {
			errs[wire] = err
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		stats[wire] = imapconn.Status{Messages: uint32(len(s.index.messages)), UIDNext: s.numbered.Next, UIDValidity: s.numbered.Validity, ModSeq: s.fingerprint()}
	}
	return stats, errs, nil
}

// NewReader implements [backfill.Mailbox].
func (t *mbTree) NewReader() backfill.MailReader { return &mbReader{t: t} }

// mbState is what a file held at one time.
type mbState struct {
	st       fs.FileInfo // nil when there was no file
	index    *mbIndex
	numbered backfill.Numbered
}

// current tells whether the file is still as it was.
func (s *mbState) current(st fs.FileInfo) bool {
	if s.st == nil || st == nil {
		return s.st == nil && st == nil
	}
	return os.SameFile(s.st, st) && s.st.Size() == st.Size() && s.st.ModTime().Equal(st.ModTime())
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

func (t *mbTree) index(file mbFile, last *mbState) (*mbState, error) {
	f, err := file.open()
	if errors.Is(err, fs.ErrNotExist) && t.inbox != nil && file == *t.inbox {
		return &mbState{index: &mbIndex{}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, reason(err)
	}
	if last != nil && last.current(st) {
		return last, nil
	}
	unlock, err := lockFile(t.ctx, file, f)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for range 3 {
		if st, err = f.Stat(); err != nil {
			return nil, reason(err)
		}
		x, err := indexMbox(f, st.Size())
		if err != nil && !errors.Is(err, errShrunk) {
			return nil, err
		}
		after, serr := f.Stat()
		if serr != nil {
			return nil, reason(serr)
		}
		if s := (&mbState{st: st, index: x}); err == nil && s.current(after) {
			return s, nil
		}
	}
	return nil, errBusy
}

var errBusy = errors.New("it is changed faster than it can be read, by something that does not lock it: the next pass tries again")

// mbReader reads the messages of mbox files.
type mbReader struct {
	t     *mbTree
	wire  string
	state *mbState
	byUID map[uint32]*mbMessage
	hand  handing
}

// Close implements [backfill.MailReader].
func (r *mbReader) Close() error { return nil }

// Select implements [backfill.MailReader].
func (r *mbReader) Select(f imapconn.Folder) (imapconn.Selected, error) {
	r.wire, r.state = f.Wire, nil
	if err := r.again(); err != nil {
		return imapconn.Selected{}, err
	}
	return r.selected(), nil
}

func (r *mbReader) again() error {
	s, err := r.t.look(r.wire)
	if err != nil {
		return err
	}
	if r.state != nil && r.state.numbered.Validity != s.numbered.Validity {
		return folderError(r.wire, imapconn.ErrChanged)
	}
	r.state, r.byUID = s, make(map[uint32]*mbMessage, len(s.index.messages))
	for i := range s.index.messages {
		m := &s.index.messages[i]
		r.byUID[s.numbered.UIDs[m.name]] = m
	}
	return nil
}

func (r *mbReader) selected() imapconn.Selected {
	n := r.state.numbered
	return imapconn.Selected{UIDValidity: n.Validity, UIDNext: n.Next, Exists: uint32(len(r.state.index.messages))}
}

// ListAll implements [backfill.MailReader]. Sizes are those in the file.
func (r *mbReader) ListAll(it imapconn.Items) ([]imapconn.Meta, imapconn.Selected, error) {
	metas := make([]imapconn.Meta, 0, len(r.byUID))
	for uid, m := range r.byUID {
		metas = append(metas, m.meta(uid, it))
	}
	slices.SortFunc(metas, func(a, b imapconn.Meta) int { return cmp.Compare(a.UID, b.UID) })
	return metas, r.selected(), nil
}

func (m *mbMessage) meta(uid uint32, it imapconn.Items) imapconn.Meta {
	meta := imapconn.Meta{UID: uid, Size: m.end - m.start}
	if it.Flags {
		meta.Flags = slices.Clone(m.flags)
	}
	if it.Date {
		meta.Date = m.date
	}
	return meta
}
