package backfill

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// spoolOver is the size above which a message always waits in a file.
const spoolOver = 1 << 20

// body holds a message, in an arena or in a file that has no name.
type body struct {
	in    *arena
	start int64 // in the arena
	file  *os.File
	size  int64
}

// newBody makes room behind what is in the arena, or in a file.
func newBody(size int64, inFile bool, dir string, in *arena) (*body, error) {
	if !inFile {
		return &body{in: in, start: in.size}, nil
	}
	f, err := os.CreateTemp(dir, "crossfade-backfill-*")
	if err != nil {
		return nil, fmt.Errorf("make room for a message of %d octets: %w", size, err)
	}
	// Without a name nothing is left behind, however the process ends.
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make room for a message of %d octets: %w", size, err)
	}
	return &body{file: f}, nil
}

// Write adds to the message; in an arena only to the last one.
func (b *body) Write(p []byte) (int, error) {
	if b.file == nil {
		if b.in == nil || b.start+b.size != b.in.size {
			return 0, errors.New("a message is written behind which another one lies")
		}
		b.in.write(p)
	} else if n, err := b.file.Write(p); err != nil {
		return n, err
	}
	b.size += int64(len(p))
	return len(p), nil
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
