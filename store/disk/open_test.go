package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"crossfade/queue"
)

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	_, err := Open(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("error is %v", err)
	}
}

// TestLockGone: Close gives the lock back also while a process that is being
// started still has a copy of the descriptor.
func TestLockGone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	fd, err := syscall.Dup(int(s.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{})
}

// TestCloseWithSlowPeer: Close does not wait for a body that does not come.
func TestCloseWithSlowPeer(t *testing.T) {
	for name, first := range map[string]int{"in memory": 10, "in a file of its own": 1<<20 + 10} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			pr, pw := io.Pipe()
			e := envelope(t, "a@example.org")
			ended := make(chan error)
			go func() { ended <- s.Put(ctx, e, pr) }()
			pw.Write(make([]byte, first))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			pw.Close()
			if err := <-ended; !errors.Is(err, queue.ErrClosed) {
				t.Fatalf("put: %v", err)
			}
			ents, err := os.ReadDir(filepath.Join(dir, "bodies"))
			if err != nil || len(ents) != 0 {
				t.Fatal(err, ents)
			}
		})
	}
}

// TestNewDirectory: the store's own directories survive a power failure too,
// as far up as they are new.
func TestNewDirectory(t *testing.T) {
	base := t.TempDir()
	var synced []string
	note := func(f *os.File) error {
		synced = append(synced, f.Name())
		return nil
	}
	for _, want := range [][]string{
		{base, filepath.Join(base, "a"), filepath.Join(base, "a", "b")},
		{filepath.Join(base, "a", "b")}, // made, and perhaps not synced, by a start that was cut short
	} {
		synced = nil
		if err := makeDir(filepath.Join(base, "a", "b", "data"), note); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(synced, want) {
			t.Errorf("synced %q, want %q", synced, want)
		}
	}
	var called bool
	open(t, filepath.Join(base, "data"), Options{sync: func(f *os.File) error {
		called = called || f.Name() == base
		return dataSync(f)
	}})
	if !called {
		t.Error("Open does not sync the directory above")
	}
}

// TestCloseWithWork: Close does not wait for what the next start can go on
// with: filing a long queue again takes minutes.
func TestCloseWithWork(t *testing.T) {
	var commits, closing atomic.Int64
	s := open(t, t.TempDir(), Options{beforeCommit: func() error {
		commits.Add(closing.Load())
		return nil
	}})
	s.mu.Lock()
	for i := range 300 {
		s.addJob(fmt.Sprintf("u%d@example.org", i))
	}
	s.mu.Unlock()
	closing.Store(1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := commits.Load(); n > 100 {
		t.Fatalf("%d commits of the store's own work while it was closed", n)
	}
}
