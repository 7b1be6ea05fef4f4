package ondisk

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"crossfade/backfill/imapconn"

	"golang.org/x/sys/unix"
)

// stamp is what tells that a file is as it was.
type stamp struct {
	Device  uint64 `json:"dev"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	Changed int64  `json:"mtime"` // in nanoseconds of Unix time
	Touched int64  `json:"ctime"` // the same, of what nobody can set back
}

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, fmt.Errorf("look at it: %w", err)
	}
	return stamp{Device: uint64(st.Dev), Inode: uint64(st.Ino), Size: st.Size, Changed: st.Mtim.Nano(), Touched: st.Ctim.Nano()}, nil
}

// same tells whether the file has the content that it had, as far as its times
// tell: other owners and rights are no change.
func (s stamp) same(now stamp) bool {
	s.Touched = now.Touched
	return s == now
}

// mbNote is what is kept of a file from pass to pass: one that did not change
// since is not read through to know its status.
type mbNote struct {
	Stamp  stamp           `json:"stamp"`
	Status imapconn.Status `json:"status"`
}

// settling is how long a file has to be at rest until what was found in it is
// kept: what changes right after a look need not change the file's times.
const settling = 3 * time.Second

// status gives the status of a folder, and reads its file through when that
// changed since the last pass.
func (t *mbTree) status(wire string) (imapconn.Status, error) {
	st, ok, err := t.noted(wire)
	if err != nil || ok {
		return st, err
	}
	began := time.Now()
	s, err := t.look(wire)
	if err != nil {
		return imapconn.Status{}, err
	}
	note := mbNote{s.stamp, s.status()}
	if latest := max(s.stamp.Changed, s.stamp.Touched); latest == 0 || latest > began.Add(-t.rest).UnixNano() {
		return note.Status, nil
	}
	data, err := json.Marshal(note)
	if err != nil {
		return note.Status, fmt.Errorf("%q: %w", wire, err)
	}
	return note.Status, t.numbers.Note(wire, data)
}

// noted gives the status that was kept, if it is one of the file as it is now.
func (t *mbTree) noted(wire string) (st imapconn.Status, ok bool, err error) {
	t.mu.Lock()
	file, listed := t.files[wire]
	seen := t.known[wire] != nil
	t.mu.Unlock()
	if !listed || seen {
		return st, false, nil
	}
	data, err := t.numbers.Noted(wire)
	if err != nil || data == nil {
		return st, false, err
	}
	// Whatever is wrong here is told by the look that follows.
	var note mbNote
	if json.Unmarshal(data, &note) != nil {
		return st, false, nil
	}
	f, err := file.open()
	if err != nil {
		return st, false, nil
	}
	defer f.Close()
	now, err := stampOf(f)
	return note.Status, err == nil && now == note.Stamp, nil
}
