package ondisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unicode/utf8"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
)

// Layout is how the folders of a tree of Maildirs lie.
type Layout string

// The layouts. Both have the INBOX in the tree's own new/ and cur/.
const (
	LayoutAuto Layout = ""          // found out; a tree that looks like both is an error
	LayoutPlus Layout = "maildir++" // ".Folder.Sub", as Courier and Dovecot have them
	LayoutFS   Layout = "fs"        // "Folder/Sub", as Dovecot has them with LAYOUT=fs
)

// Maildir is a tree of Maildirs, as a source.
type Maildir struct {
	Place  Place
	Layout Layout
}

// String names the tree in reports and certificates.
func (m Maildir) String() string { return "maildir " + m.Place.String() }

// Open implements [backfill.Source].
func (m Maildir) Open(ctx context.Context, n *backfill.Numbers) (backfill.Mailbox, error) {
	root, err := m.Place.open()
	if err != nil {
		return nil, err
	}
	t := &mdTree{ctx: ctx, root: root, place: m.Place, numbers: n, layout: m.Layout}
	// An empty mount point must not look like an empty mailbox.
	if !isMaildir(root, ".") && !isMaildir(root, "INBOX") && !servedBefore(root) {
		root.Close()
		return nil, fmt.Errorf("open %s: there is no Maildir (no new/ and cur/): is the path right, and is the file system mounted?", m.Place)
	}
	return t, nil
}

// mdTree is the tree in one pass.
type mdTree struct {
	ctx     context.Context
	root    *os.Root
	place   Place
	numbers *backfill.Numbers
	layout  Layout

	mu   sync.Mutex
	dirs map[string]string // by Wire; nil until they are listed
}

// Close implements [backfill.Mailbox].
func (t *mdTree) Close() error { return t.root.Close() }

// Namespaces implements [backfill.Mailbox]: as Courier shows a Maildir++, or as
// Dovecot shows nested directories.
func (t *mdTree) Namespaces() (imapconn.Namespaces, error) {
	if err := t.find(); err != nil {
		return imapconn.Namespaces{}, err
	}
	if t.layout == LayoutPlus {
		return imapconn.Namespaces{Prefix: "INBOX.", Delim: "."}, nil
	}
	return imapconn.Namespaces{Delim: "/"}, nil
}

// find settles the layout.
func (t *mdTree) find() error {
	if t.layout != LayoutAuto {
		return nil
	}
	plus, err := plusDirs(t.root)
	if err != nil {
		return err
	}
	nested, err := nestedDirs(t.root)
	if err != nil {
		return err
	}
	switch {
	case len(plus) > 0 && len(nested) > 0:
		return fmt.Errorf("%s has both %q and %q: say which of them are folders (layout=maildir++ or layout=fs)", t.place, plus[0], nested[0])
	case len(nested) > 0:
		t.layout = LayoutFS
	default:
		t.layout = LayoutPlus
	}
	return nil
}

// isMaildir tells whether a directory has what a Maildir has. What cannot be
// looked at is one: it is to be reported and not to be passed over.
func isMaildir(root *os.Root, dir string) bool {
	for _, sub := range []string{"cur", "new"} {
		st, err := root.Stat(path.Join(dir, sub))
		if err == nil && st.IsDir() || err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return true
		}
	}
	return false
}

// servedBefore tells whether a server left notes of its own: Dovecot makes new/ and
// cur/ when the first mail comes.
func servedBefore(root *os.Root) bool {
	entries, err := readDir(root, ".")
	return err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return strings.HasPrefix(e.Name(), "dovecot") || strings.HasPrefix(e.Name(), "courier") || e.Name() == "maildirfolder" || e.Name() == "subscriptions"
	})
}

func readDir(root *os.Root, dir string) ([]fs.DirEntry, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, reason(err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// plusDirs gives the folders of a Maildir++. Dovecot's ".." names are what it is
// about to delete.
func plusDirs(root *os.Root) ([]string, error) {
	entries, err := readDir(root, ".")
	if err != nil {
		return nil, fmt.Errorf("list the folders: %w", err)
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		if len(name) > 1 && name[0] == '.' && name[1] != '.' && isDirOrLink(e) && isMaildir(root, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

func isDirOrLink(e fs.DirEntry) bool { return e.IsDir() || e.Type()&fs.ModeSymlink != 0 }

const deepest = 64

// nestedDirs gives the folders of nested directories. Links are folders, but
// nothing is looked for below them: they may go round in circles.
func nestedDirs(root *os.Root) ([]string, error) {
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
			if name[0] == '.' || !isDirOrLink(e) || slices.Contains([]string{"cur", "new", "tmp", "courierimapkeywords"}, name) {
				continue
			}
			sub := path.Join(dir, name)
			if isMaildir(root, sub) {
				out = append(out, sub)
			}
			if e.IsDir() {
				if err := walk(sub, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return out, walk(".", 0)
}

// List implements [backfill.Mailbox].
func (t *mdTree) List() ([]imapconn.Folder, error) {
	if err := t.find(); err != nil {
		return nil, err
	}
	list, prefix := nestedDirs, ""
	if t.layout == LayoutPlus {
		list, prefix = plusDirs, "INBOX"
	}
	dirs, err := list(t.root)
	if err != nil {
		return nil, err
	}
	subscribed, err := subscriptions(t.root)
	if err != nil {
		return nil, err
	}
	ns, _ := t.Namespaces() // the layout is known: no error
	byWire := map[string]string{}
	var out []imapconn.Folder
	add := func(dir, raw string) error {
		f := imapconn.Folder{Name: decodeName(raw), Wire: wireName(raw), Delim: ns.Delim}
		if other, ok := byWire[f.Wire]; ok {
			return fmt.Errorf("list the folders: %q and %q have the same name: rename one", other, dir)
		}
		f.Subscribed = subscribed[levelsOf(f.Name, ns.Delim, ns.Prefix)]
		byWire[f.Wire] = dir
		out = append(out, f)
		return nil
	}
	if isMaildir(t.root, ".") || !slices.Contains(dirs, "INBOX") { // there is one, with or without mail
		if err := add(".", "INBOX"); err != nil {
			return nil, err
		}
	}
	for _, dir := range dirs {
		if err := add(dir, prefix+dir); err != nil {
			return nil, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dirs = byWire
	return out, nil
}

// dir gives the directory of a folder.
func (t *mdTree) dir(wire string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if dir, ok := t.dirs[wire]; ok {
		return dir, nil
	}
	return "", folderError(wire, errors.New("it was not listed"))
}

// wireName is a name in the ledger, which is text: octets that are not are
// written as "%FF".
func wireName(raw string) string {
	if utf8.ValidString(raw) {
		return raw
	}
	var b strings.Builder
	for len(raw) > 0 {
		r, n := utf8.DecodeRuneInString(raw)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, "%%%02X", raw[0])
		} else {
			b.WriteString(raw[:n])
		}
		raw = raw[n:]
	}
	return b.String()
}

// decodeName reads a name as it lies on the disk: modified UTF-7, as servers
// write it, or UTF-8.
func decodeName(raw string) string {
	if name, err := imapconn.DecodeName(raw); err == nil && utf8.ValidString(name) {
		return name
	}
	return wireName(raw)
}

// levelsOf is a name with its levels joined by NUL, and without the prefix.
func levelsOf(name, delim, prefix string) string {
	if prefix != "" && len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
		name = name[len(prefix):]
	}
	if strings.EqualFold(name, "INBOX") {
		return "INBOX"
	}
	return strings.ReplaceAll(name, delim, "\x00")
}

// Statuses implements [backfill.Mailbox].
func (t *mdTree) Statuses(wires []string) (map[string]imapconn.Status, map[string]error, error) {
	stats, errs := map[string]imapconn.Status{}, map[string]error{}
	for _, wire := range wires {
		if t.ctx.Err() != nil {
			return nil, nil, context.Cause(t.ctx)
		}
		f, err := t.look(wire)
		if errors.Is(err, backfill.ErrFolder) {
			errs[wire] = err
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		stats[wire] = imapconn.Status{Messages: uint32(len(f.files)), UIDNext: f.numbered.Next, UIDValidity: f.numbered.Validity, ModSeq: f.fingerprint()}
		f.close()
	}
	return stats, errs, nil
}

// NewReader implements [backfill.Mailbox].
func (t *mdTree) NewReader() backfill.MailReader { return &mdReader{t: t} }
