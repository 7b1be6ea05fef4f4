package ondisk

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"crossfade/backfill/imapconn"
)

// mdReader reads the messages of a tree of Maildirs.
type mdReader struct {
	t      *mdTree
	wire   string
	folder *mdFolder
	byUID  map[uint32]*mdFile
	hand   handing
	// reading: UIDs that were told are being asked for.
	reading bool
}

// Close implements [backfill.MailReader].
func (r *mdReader) Close() error {
	if r.folder != nil {
		r.folder.close()
		r.folder = nil
	}
	return nil
}

// Select implements [backfill.MailReader].
func (r *mdReader) Select(f imapconn.Folder) (imapconn.Selected, error) {
	r.wire, r.reading = f.Wire, false
	if err := r.again(); err != nil {
		return imapconn.Selected{}, err
	}
	return r.selected(), nil
}

// again looks at the folder anew.
func (r *mdReader) again() error {
	folder, err := r.t.look(r.wire)
	if err != nil {
		return err
	}
	if r.folder != nil && r.folder.numbered.Validity != folder.numbered.Validity && r.reading {
		folder.close()
		return folderError(r.wire, imapconn.ErrChanged)
	}
	r.Close()
	r.folder = folder
	r.byUID = make(map[uint32]*mdFile, len(folder.files))
	for base, x := range folder.files {
		r.byUID[folder.numbered.UIDs[base]] = x
	}
	return nil
}

func (r *mdReader) selected() imapconn.Selected {
	f := r.folder
	return imapconn.Selected{UIDValidity: f.numbered.Validity, UIDNext: f.numbered.Next, Exists: uint32(len(f.files))}
}

// ListAll implements [backfill.MailReader]. Sizes are those of the files, or what
// Dovecot notes of the size with CRLF where that can be true.
func (r *mdReader) ListAll(it imapconn.Items) ([]imapconn.Meta, imapconn.Selected, error) {
	metas := make([]imapconn.Meta, 0, len(r.byUID))
	for uid, x := range r.byUID {
		m := imapconn.Meta{UID: uid}
		if it.Flags {
			m.Flags = r.folder.keywords.of(x)
		}
		if it.Size || it.Date {
			// One that is gone or was renamed just now is found when it is read.
			if st, err := r.folder.subs[x.dir].Stat(x.name); err == nil {
				m.Size, m.Date = likelySize(x.base, st.Size()), st.ModTime()
			}
		}
		metas = append(metas, m)
	}
	slices.SortFunc(metas, func(a, b imapconn.Meta) int { return cmp.Compare(a.UID, b.UID) })
	return metas, r.selected(), nil
}

// likelySize is the size with CRLF: ",W=" of the name, if it can be.
func likelySize(base string, onDisk int64) int64 {
	for part := range strings.SplitSeq(base, ",") {
		if w, ok := strings.CutPrefix(part, "W="); ok {
			if n, err := strconv.ParseInt(w, 10, 64); err == nil && n >= onDisk && n <= 2*onDisk {
				return n
			}
		}
	}
	return onDisk
}

// renames is how often a message is looked for again that is not where it was.
const renames = 10

// Fetch implements [backfill.MailReader].
func (r *mdReader) Fetch(uids []uint32, it imapconn.Items, recv imapconn.Receiver) ([]imapconn.Failure, error) {
	var failures []imapconn.Failure
	r.hand.recv, r.reading = recv, true
	for _, uid := range uids {
		if r.t.ctx.Err() != nil {
			return nil, context.Cause(r.t.ctx)
		}
		err := r.fetch(uid, it)
		for try := 0; try < renames && errors.Is(err, fs.ErrNotExist); try++ {
			if err := r.find(try); err != nil {
				return nil, err
			}
			err = r.fetch(uid, it)
		}
		var re *recvError
		if errors.As(err, &re) {
			return nil, re.err
		}
		if err != nil {
			failures = append(failures, imapconn.Failure{UID: uid, Gone: errors.Is(err, errGone), Err: err})
		}
	}
	return failures, nil
}

// find looks where messages are now that were renamed, with their flags: by one
// list of the folder, and in the end by a look that is sure of what is gone.
func (r *mdReader) find(try int) error {
	if try >= renames-2 {
		return r.again()
	}
	files, err := r.folder.list()
	if err != nil {
		return folderError(r.wire, err)
	}
	for base, x := range files {
		if uid := r.folder.numbered.UIDs[base]; uid != 0 {
			r.folder.files[base], r.byUID[uid] = x, x
		}
	}
	return nil
}

func (r *mdReader) fetch(uid uint32, it imapconn.Items) error {
	x := r.byUID[uid]
	if x == nil {
		return errGone
	}
	f, st, err := openFile(r.folder.subs[x.dir], x.name)
	if err != nil {
		return err
	}
	defer f.Close()
	m := imapconn.Meta{UID: uid, Size: st.Size()}
	if it.Flags {
		m.Flags = r.folder.keywords.of(x)
	}
	if it.Date {
		m.Date = st.ModTime()
	}
	if !it.Body {
		if err := r.hand.recv.End(m); err != nil {
			return &recvError{err}
		}
		return nil
	}
	src, err := unpack(f)
	if err != nil {
		return err
	}
	return r.hand.message(m, src)
}
