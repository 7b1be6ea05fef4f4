package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// Blocks implements [Shelf].
func (d *Dir) Blocks(ctx context.Context, w Want) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		names, err := d.names()
		if err != nil {
			yield(Block{}, err)
			return
		}
		for _, name := range names {
			r, err := openBlocks(filepath.Join(d.path, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was pruned meanwhile
			}
			if err != nil {
				yield(Block{}, err)
				return
			}
			more := r.give(ctx, w, yield)
			r.close()
			if !more {
				return
			}
		}
	}
}

// blockReader reads a file of blocks.
type blockReader struct {
	f    *os.File
	name string
	size int64
	at   int64 // behind the last block that was given
}

func openBlocks(path string) (*blockReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", errors.Join(err, f.Close()))
	}
	return &blockReader{f: f, name: filepath.Base(path), size: info.Size()}, nil
}

func (r *blockReader) close() { _ = r.f.Close() } // read only

func (r *blockReader) all(ctx context.Context, w Want) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) { r.give(ctx, w, yield) }
}

// give yields the blocks that are wanted; false when no more is asked for.
func (r *blockReader) give(ctx context.Context, w Want, yield func(Block, error) bool) bool {
	for r.at < r.size {
		if err := ctx.Err(); err != nil {
			yield(Block{}, err)
			return false
		}
		b, skipped, err := r.next(w)
		switch {
		case errors.Is(err, errDamaged):
			from := r.at
			if r.at, err = r.resume(from+1, err); !yield(Block{}, err) {
				return false
			}
		case err != nil:
			yield(Block{}, fmt.Errorf("read the journal: %s: %w", r.name, err))
			return false
		case skipped:
		case !yield(b, nil):
			return false
		}
	}
	return true
}

// next reads the block at r.at and moves behind it.
func (r *blockReader) next(w Want) (b Block, skipped bool, err error) {
	head := make([]byte, min(prefixSize, r.size-r.at))
	if _, err := r.f.ReadAt(head, r.at); err != nil {
		return b, false, err
	}
	x, err := parseHeader(head)
	if err == nil && x.size() > r.size-r.at {
		err = fmt.Errorf("%w: it is cut short", errDamaged)
	}
	if err != nil {
		return b, false, err
	}
	if skipped, err = r.skips(w, x); err != nil {
		return b, false, err
	}
	if skipped {
		r.at += x.size()
		return b, true, nil
	}
	data := make([]byte, x.size())
	if _, err := r.f.ReadAt(data, r.at); err != nil {
		return b, false, err
	}
	if b, err = OpenBlock(data); err == nil {
		r.at += x.size()
	}
	return b, false, err
}

// skips tells whether a block is not wanted. Its index is read only where that
// depends on it.
func (r *blockReader) skips(w Want, x extent) (bool, error) {
	if w.skips(x.Info) || w.Of == "" {
		return w.skips(x.Info), nil
	}
	front := make([]byte, prefixSize+x.index)
	if _, err := r.f.ReadAt(front, r.at); err != nil {
		return false, err
	}
	return w.Skips(front)
}

// resume looks for the next block behind what cannot be read, and says what that
// was.
func (r *blockReader) resume(from int64, cause error) (int64, error) {
	damage := &Damage{Where: r.name, At: from - 1, Err: cause}
	mark := binary.LittleEndian.AppendUint32(nil, frameMagic)
	buf := make([]byte, 1<<20)
	for at := from; at < r.size; {
		n, err := r.f.ReadAt(buf[:min(int64(len(buf)), r.size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return r.size, fmt.Errorf("read the journal: %s: %w", r.name, err)
		}
		i := bytes.Index(buf[:n], mark)
		if i < 0 {
			at += int64(max(n-len(mark)+1, 1))
			continue
		}
		if at += int64(i); r.begins(at) {
			return at, damage
		}
		at++
	}
	damage.Torn = true
	return r.size, damage
}

// begins tells whether a block begins at a place, by its header.
func (r *blockReader) begins(at int64) bool {
	head := make([]byte, prefixSize)
	if _, err := r.f.ReadAt(head, at); err != nil {
		return false
	}
	x, err := parseHeader(head)
	return err == nil && x.size() <= r.size-at
}
