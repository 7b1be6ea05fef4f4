package backfill

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// spoolOver is the size above which a message always waits in a file.
const spoolOver = 1 << 20

// MaxMessage is how many octets a message may have that a [Source] hands out.
// What is larger cannot be told from one that never ends (a compressed file that
// grows without bound, a server that sends on and on): it is unreadable.
const MaxMessage = 2 << 30

// body holds a message, in an arena or in a file that has no name.
type body struct {
	in    *arena
	start int64 // in the arena
	room  int64 // octets that may be in the arena: the message moves to a file with more
	dir   string
	file  *os.File
	size  int64
}

// newBody makes room behind what is in the arena, or in a file.
func newBody(size int64, inFile bool, dir string, in *arena) (*body, error) {
	if !inFile {
		return &body{in: in, start: in.size, room: spoolOver, dir: dir}, nil
	}
	f, err := spoolFile(size, dir)
	if err != nil {
		return nil, err
	}
	return &body{file: f}, nil
}

// spoolFile makes a file without a name: nothing is left behind, however the
// process ends.
func spoolFile(size int64, dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "crossfade-backfill-*")
	if err != nil {
		return nil, fmt.Errorf("make room for a message of %d octets: %w", size, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make room for a message of %d octets: %w", size, err)
	}
	return f, nil
}

// Write adds to the message; in an arena only to the last one, and no more than
// there is room for: the size that was announced may be a lie.
func (b *body) Write(p []byte) (int, error) {
	if b.file == nil {
		if b.in == nil || b.start+b.size != b.in.size {
			return 0, errors.New("a message is written behind which another one lies")
		}
		if b.size+int64(len(p)) <= b.room {
			b.in.write(p)
			b.size += int64(len(p))
			return len(p), nil
		}
		if err := b.spill(); err != nil {
			return 0, err
		}
	}
	n, err := b.file.Write(p)
	b.size += int64(n)
	return n, err
}

// spill moves the message from the arena to a file.
func (b *body) spill() error {
	f, err := spoolFile(b.size, b.dir)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, io.NewSectionReader(b, 0, b.size)); err != nil {
		f.Close()
		return fmt.Errorf("move a message of %d octets to a file: %w", b.size, err)
	}
	b.in.cut(b.start)
	b.in, b.file = nil, f
	return nil
}

func (b *body) ReadAt(p []byte, off int64) (int, error) {
	if b.file != nil {
		return b.file.ReadAt(p, off)
	}
	if b.in == nil || off >= b.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), b.size-off))
	b.in.read(p[:n], b.start+off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// close gives up the message. Memory comes back with the arena's, and at once
// where nothing lies behind it.
func (b *body) close() {
	if b == nil {
		return
	}
	if b.file != nil {
		b.file.Close()
	}
	if b.in != nil && b.start+b.size == b.in.size {
		b.in.cut(b.start)
	}
	b.in, b.file = nil, nil
}
