package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The results of a [Record].
const (
	ResultOK     = "ok"
	ResultFailed = "failed" // see Record.Error
	ResultDenied = "denied" // the token's role did not allow it
)

// Record is one line of the audit log.
type Record struct {
	Time   time.Time      `json:"time"`
	By     string         `json:"by" doc:"Name of the token."`
	Role   Role           `json:"role,omitempty"`
	Remote string         `json:"remote,omitempty" doc:"Address that the request came from."`
	Action string         `json:"action" doc:"Operation id, such as set-state."`
	Object string         `json:"object,omitempty" doc:"User, message or wave that it was about."`
	Reason string         `json:"reason,omitempty"`
	Result string         `json:"result" enum:"ok,failed,denied"`
	Error  string         `json:"error,omitempty"`
	Detail map[string]any `json:"detail,omitempty" doc:"What was asked for, and counts of what was done."`
}

// AuditLog is an append-only file of JSON lines. A record is on stable storage
// when [AuditLog.Record] returns. It is safe for use by many goroutines.
type AuditLog struct {
	path string

	mu     sync.Mutex
	f      *os.File
	failed error // of the last write: the file is opened anew before the next
	closed bool
}

// OpenAuditLog opens the file, or makes it with the mode 0600. A line that a
// crash cut short is ended, so that it spoils no other.
func OpenAuditLog(path string) (*AuditLog, error) {
	l := &AuditLog{path: path}
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
	err = endTornLine(f)
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.failed = f, nil
	return nil
}

// endTornLine appends a line end when the file's last line has none.
func endTornLine(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], info.Size()-1); err != nil {
		return err
	}
	if last[0] == '\n' {
		return nil
	}
	if _, err := f.Write([]byte{'\n'}); err != nil {
		return err
	}
	return f.Sync()
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
	if l.failed == nil {
		return nil
	}
	l.f.Close() // its error says nothing new
	if err := l.open(); err != nil {
		l.failed = err
		return fmt.Errorf("the audit log cannot be written: %w", err)
	}
	return nil
}

// Record appends r and syncs the file.
func (l *AuditLog) Record(r Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding a record of the audit log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return err
	}
	_, err = l.f.Write(append(line, '\n'))
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		l.failed = err
		return fmt.Errorf("writing the audit log: %w", err)
	}
	return nil
}

// Close closes the file. Closing twice is allowed.
func (l *AuditLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.f.Close()
}

// AuditFilter selects records. Zero fields select all.
type AuditFilter struct {
	By     string
	Action string
	Object string
}

func (f AuditFilter) match(r Record) bool {
	return (f.By == "" || f.By == r.By) && (f.Action == "" || f.Action == r.Action) && (f.Object == "" || f.Object == r.Object)
}

// Limits of one call of Read.
const (
	auditBlock   = 64 << 10 // octets read at once
	auditScan    = 32 << 20 // octets looked at in all: a rare record may need several calls
	auditMaxLine = 4 << 20  // octets of one record
)

// Read gives records that match, newest first, from before the position
// before; 0 is the end of the file. next is where the next call goes on, and 0
// at the beginning of the file. Lines that are no records are skipped.
func (l *AuditLog) Read(f AuditFilter, before int64, limit int) (records []Record, next int64, err error) {
	l.mu.Lock()
	file, closed := l.f, l.closed
	l.mu.Unlock()
	if closed {
		return nil, 0, errors.New("the audit log is closed")
	}
	info, err := file.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("reading the audit log: %w", err)
	}
	if before <= 0 || before > info.Size() {
		before = info.Size()
	}
	lines := backward{r: file, pos: before, end: before}
	for before-lines.end < auditScan && len(records) < limit {
		line, err := lines.next()
		if err == io.EOF {
			return records, 0, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("reading the audit log: %w", err)
		}
		var r Record
		if json.Unmarshal(line, &r) == nil && f.match(r) {
			records = append(records, r)
		}
	}
	return records, lines.end, nil
}

// backward gives the lines of a file from its end to its beginning.
type backward struct {
	r   io.ReaderAt
	buf []byte // file content from pos to end
	pos int64
	end int64 // of the next line, behind its line end
}

// next gives the line before the last one given; io.EOF at the beginning.
func (b *backward) next() ([]byte, error) {
	if b.end == 0 {
		return nil, io.EOF
	}
	for {
		inner := b.buf
		if len(inner) > 0 {
			inner = inner[:len(inner)-1] // the line end of the line itself
		}
		if i := lastNewline(inner); i >= 0 || b.pos == 0 && len(b.buf) > 0 {
			line := b.buf[i+1:]
			b.buf = b.buf[:i+1]
			b.end -= int64(len(line))
			return line, nil
		}
		if len(b.buf) > auditMaxLine {
			return nil, fmt.Errorf("a line before position %d is longer than %d octets", b.end, auditMaxLine)
		}
		if err := b.fill(); err != nil {
			return nil, err
		}
	}
}

// fill puts the block before pos in front of the buffer.
func (b *backward) fill() error {
	n := min(b.pos, auditBlock)
	block := make([]byte, n, n+int64(len(b.buf)))
	if _, err := b.r.ReadAt(block, b.pos-n); err != nil && err != io.EOF {
		return err
	}
	b.buf = append(block, b.buf...)
	b.pos -= n
	return nil
}

func lastNewline(p []byte) int {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '\n' {
			return i
		}
	}
	return -1
}
