package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crossfade/audit/seal"
)

// AuditOptions are how an audit log is kept. The zero value is a chain without
// signatures.
type AuditOptions struct {
	Key   seal.Key   // signs each line; zero: nobody does
	Node  string     // who writes, for people
	Heads HeadKeeper // nil: a log whose end was cut off while nobody had it open is not noticed
	Log   *slog.Logger
	// MaxBytes is the size from which a file is put aside; 0: 64 MiB.
	MaxBytes int64
	// Grown is called with the number of each line that was written; nil: nobody
	// wants to know.
	Grown func(seq uint64)
}

// HeadKeeper remembers the last line of a log in another place.
type HeadKeeper interface {
	LoadHead(ctx context.Context) (AuditHead, error) // zero when there is none
	SaveHead(ctx context.Context, h AuditHead) error
}

const (
	auditMaxBytes = 64 << 20
	headTime      = 5 * time.Second // for the HeadKeeper
)

// AuditLog is an append-only file of JSON lines, each with its number, the hash of
// the line before and a signature, so that nobody changes, puts in or takes out
// one without a check telling ([CheckAuditLog]). A record is on stable storage when
// [AuditLog.Record] returns. One process has the file open, see OpenAuditLog. It
// is safe for use by many goroutines.
type AuditLog struct {
	path string
	o    AuditOptions

	mu     sync.Mutex
	f      *os.File
	size   int64
	head   AuditHead
	failed error // of the last write: the file is opened anew before the next
	closed bool
}

// OpenAuditLog opens the file, or makes it with the mode 0600, and writes a line
// that tells of it: with the key, what a crash left of a last line, lines from
// before there was a chain, and what should be there and is not. Nothing is taken
// away. A file that another process has open is refused: their chains would mix.
func OpenAuditLog(path string, o AuditOptions) (*AuditLog, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = auditMaxBytes
	}
	l := &AuditLog{path: path, o: o}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	return l, nil
}

func (l *AuditLog) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("%s is written by another process (%w): give each its own (admin.audit_file)", l.path, err)
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err == nil {
		err = l.resume(f)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.failed = nil
	return nil
}

// resume finds where the chain goes on, and writes the line that tells so.
func (l *AuditLog) resume(f *os.File) error {
	expected, err := l.expected()
	if err != nil {
		return err
	}
	found, d, torn, err := look(f, expected)
	if err != nil {
		return fmt.Errorf("reading %s: %w", l.path, err)
	}
	if found.Lines == 0 && d.Outside == nil {
		found, err = l.lookBehind(expected)
		if err != nil {
			return err
		}
	}
	head := found.Last
	d.Node, d.Key = l.o.Node, l.o.Key.Public()
	if found.Bad != nil {
		d.Broken = found.Bad.String()
		l.o.Log.Error("the audit log is not what was written: crossfade audit --log checks it", "file", l.path, "line", found.Bad.Line, "what", found.Bad.Text)
	}
	if expected.Seq > head.Seq {
		head = expected // the numbers go on, so that the gap stays to be seen
	}
	if d.Expected != nil || found.Lines == 0 && expected.Seq > 0 {
		d.Expected = &expected
		l.o.Log.Error("lines of the audit log are not there any more", "file", l.path, "written", expected.Seq, "found", found.Last.Seq)
	}
	if d.Outside != nil {
		l.o.Log.Warn("the audit log has octets that are no part of its chain: a line that a crash cut short, or lines from before there was one", "file", l.path, "octets", d.Outside.Octets)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	l.f, l.size, l.head = f, info.Size(), head
	return l.write(Record{Time: time.Now(), By: logItself, Action: actionOpenLog, Object: filepath.Base(l.path), Result: ResultOK, Detail: d.detail()}, torn)
}

// expected is the last line that is known to have been written.
func (l *AuditLog) expected() (AuditHead, error) {
	if l.head.Seq > 0 || l.o.Heads == nil {
		return l.head, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), headTime)
	defer cancel()
	h, err := l.o.Heads.LoadHead(ctx)
	if err != nil {
		return h, fmt.Errorf("reading the number of its last line from the store: %w", err)
	}
	return h, nil
}

// look reads a file: its chain, and what stands outside of it at the end. torn
// tells whether the last line has no end.
func look(f *os.File, expected AuditHead) (c AuditCheck, d openDetail, torn bool, err error) {
	check := &chainCheck{want: expected}
	rest, err := check.file(filepath.Base(f.Name()), io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return c, d, false, err
	}
	torn = len(rest) > 0
	if r, ok := decodeLine(rest); ok && check.region.lines == 0 && (check.Lines == 0 || r.follows(check.Last)) {
		check.one(rest) // it lacks its line end and nothing else
		check.goodEnd, rest = check.goodEnd+int64(len(rest)), nil
	}
	if check.region.lines > 0 || len(rest) > 0 {
		if d.Outside, err = outsideOf(f, check.goodEnd); err != nil {
			return c, d, torn, err
		}
	}
	if expected.Seq > 0 && check.Lines > 0 && !check.found && expected.Seq >= check.First.Seq {
		d.Expected = &expected
	}
	return check.AuditCheck, d, torn, nil
}

// outsideOf fixes what stands in a file from an offset on.
func outsideOf(f *os.File, from int64) (*outside, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, from, 1<<62))
	return &outside{Octets: n, SHA256: hex.EncodeToString(h.Sum(nil))}, err
}

// lookBehind finds the end of the chain in the file that was put aside last, where
// that has the line that is expected.
func (l *AuditLog) lookBehind(expected AuditHead) (AuditCheck, error) {
	entries, err := os.ReadDir(filepath.Dir(l.path))
	if err != nil {
		return AuditCheck{}, err
	}
	last, prefix := "", filepath.Base(l.path)+"."
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), prefix)
		if ok && number != "" && strings.Trim(number, "0123456789") == "" {
			last = max(last, e.Name())
		}
	}
	if last == "" {
		return AuditCheck{}, nil
	}
	f, err := os.Open(filepath.Join(filepath.Dir(l.path), last))
	if err != nil {
		return AuditCheck{}, fmt.Errorf("reading the audit log that was put aside: %w", err)
	}
	defer f.Close()
	c, _, _, err := look(f, expected)
	if err != nil || c.Last.Seq < expected.Seq {
		l.o.Log.Warn("the audit log that was put aside does not tell where the chain goes on", "file", last, "error", err)
		c.Lines = 0
	}
	return c, nil
}

// Ready tells whether a record could be written now. Ask before a change is
// made: a change that cannot be recorded is not made. After a failed write
// the file is opened anew.
func (l *AuditLog) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready()
}

func (l *AuditLog) ready() error {
	if l.closed {
		return errors.New("the audit log is closed")
	}
	if l.failed == nil && l.inPlace() {
		return nil
	}
	l.release()
	if err := l.open(); err != nil {
		l.failed = err
		return fmt.Errorf("the audit log cannot be written: %w", err)
	}
	return nil
}

// inPlace tells whether the file is still the one at its path: somebody may have
// moved it away, logrotate for one.
func (l *AuditLog) inPlace() bool {
	at, err := os.Stat(l.path)
	have, err2 := l.f.Stat()
	return err == nil && err2 == nil && os.SameFile(at, have)
}

// Record appends r and syncs the file.
func (l *AuditLog) Record(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return err
	}
	if err := l.write(r, false); err != nil {
		return err
	}
	if l.size >= l.o.MaxBytes {
		if err := l.putAside(); err != nil {
			l.o.Log.Error("the audit log could not be put aside and goes on growing", "file", l.path, "error", err)
		}
	}
	return nil
}

// write appends a line; torn ends the line before it first.
func (l *AuditLog) write(r Record, torn bool) error {
	line, head, err := encodeLine(r, l.head, l.o.Key)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if torn {
		line = append([]byte{'\n'}, line...)
	}
	_, err = l.f.Write(line)
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		l.failed = err
		return fmt.Errorf("writing the audit log: %w", err)
	}
	l.head = head
	l.size += int64(len(line))
	l.keepHead()
	return nil
}

// keepHead tells others of the last line. Where that fails the line is written all
// the same, and the next one tells.
func (l *AuditLog) keepHead() {
	if l.o.Grown != nil {
		l.o.Grown(l.head.Seq)
	}
	if l.o.Heads == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), headTime)
	defer cancel()
	if err := l.o.Heads.SaveHead(ctx, l.head); err != nil {
		l.o.Log.Warn("the number of the audit log's last line was not kept in the store", "line", l.head, "error", err)
	}
}

// putAside gives the file the number of its last line and begins another one, in
// which the chain goes on.
func (l *AuditLog) putAside() error {
	aside := fmt.Sprintf("%s.%012d", l.path, l.head.Seq)
	if _, err := os.Lstat(aside); err == nil {
		return fmt.Errorf("%s is there already", aside)
	}
	if err := os.Rename(l.path, aside); err != nil {
		return err
	}
	l.release()
	if err := l.open(); err != nil {
		l.failed = err
		return err
	}
	return nil
}

// Head is the last line.
func (l *AuditLog) Head() AuditHead {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Close closes the file. Closing twice is allowed.
func (l *AuditLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.release()
}

// release gives the lock back and closes the file, all of which is synced or lost
// already. Closing alone would keep the lock while a child that is being started has
// a copy of the descriptor.
func (l *AuditLog) release() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}
