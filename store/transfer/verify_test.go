package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/internal/redistest"
	"crossfade/store/transfer"
)

// liar is a sink that writes something else than it was given.
type liar struct {
	transfer.Sink
	account func(a *transfer.Account) bool // false: it is left out
	message func(m *transfer.Message) bool
}

func (l *liar) Account(ctx context.Context, a *transfer.Account) error {
	x := *a
	if l.account != nil && !l.account(&x) {
		return nil
	}
	return l.Sink.Account(ctx, &x)
}

func (l *liar) Message(ctx context.Context, m *transfer.Message) error {
	x := *m
	e := *m.Envelope
	x.Envelope, x.Rows = &e, append([]transfer.Row(nil), m.Rows...)
	if l.message != nil && !l.message(&x) {
		r, err := m.Open(ctx)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return errors.Join(err, r.Close())
	}
	return l.Sink.Message(ctx, &x)
}

// TestCopyIsCompared: a copy that differs in anything does not count, and
// nothing of it is left.
func TestCopyIsCompared(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	from := diskAt(filepath.Join(dir, "from"))
	small(t, from)
	flip := func(m *transfer.Message) bool {
		open := m.Open
		m.Open = func(ctx context.Context) (io.ReadCloser, error) {
			r, err := open(ctx)
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(r)
			if len(b) > 0 {
				b[len(b)/2] ^= 1
			}
			return io.NopCloser(bytes.NewReader(b)), errors.Join(err, r.Close())
		}
		return true
	}
	lies := []struct {
		name string
		l    liar
		want string
	}{
		{"a user is left out", liar{account: func(a *transfer.Account) bool { return a.Key != "b@example.org" }}, "b@example.org is not in the copy"},
		{"a ledger record", liar{account: func(a *transfer.Account) bool { a.Ledger = nil; return true }}, "another one in the copy"},
		{"a generation", liar{account: func(a *transfer.Account) bool { a.Gen++; return true }}, "another one in the copy"},
		{"a line of history", liar{account: func(a *transfer.Account) bool { a.History = nil; return true }}, "another one in the copy"},
		{"a message is left out", liar{message: func(m *transfer.Message) bool { return m.Envelope.Size != 3 }}, "is not in the copy"},
		{"attempts", liar{message: func(m *transfer.Message) bool { m.Rows[0].Attempts++; return true }}, "another one in the copy"},
		{"an envelope", liar{message: func(m *transfer.Message) bool { m.Envelope.EnvID = "other"; return true }}, "another one in the copy"},
		{"a bit of a body", liar{message: flip}, "body"},
	}
	for _, to := range []place{diskAt(filepath.Join(dir, "to")), redisAt(redistest.Start(t).URL())} {
		for _, lie := range lies {
			t.Run(to.name+" "+lie.name, func(t *testing.T) {
				src, err := from.source(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer src.Close()
				sink, err := to.sink(ctx)
				if err != nil {
					t.Fatal(err) // the one before left something
				}
				l := lie.l
				l.Sink = sink
				_, err = transfer.Copy(ctx, src, &l, nil)
				if err == nil || !strings.Contains(err.Error(), lie.want) {
					t.Fatalf("error %v, want %q", err, lie.want)
				}
			})
		}
	}
}
