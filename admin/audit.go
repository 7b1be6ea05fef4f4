package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	Seq    uint64         `json:"seq,omitempty" doc:"Number of the line, without a gap; absent in lines from before the chain."`
	Prev   string         `json:"prev,omitempty" doc:"SHA-256 of the line before."`
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
	Sig    string         `json:"sig,omitempty" doc:"Ed25519 signature of the line without this member, by the installation's key."` // has to be the last
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
