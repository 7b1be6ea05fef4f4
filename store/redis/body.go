package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/queue"
)

// Sizes in octets.
const (
	inlineSize = 64 << 10     // compressed: such a body lies beside its message
	chunkSize  = 256<<10 - 64 // of a piece of a longer one, before it is compressed
)

// chunkTime is how long the pieces of a body last that never becomes a message.
const chunkTime = time.Hour

// bodies reads and writes the octets of messages.
type bodies struct {
	client goredis.UniversalClient
	server *Server
	queue  string
	enc    *zstd.Encoder
	dec    *zstd.Decoder
	pool   sync.Pool // of *[]byte with chunkSize
}

func newBodies(server *Server) *bodies {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constant
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(chunkSize+1024))
	if err != nil {
		panic(err)
	}
	return &bodies{
		client: server.client, server: server, queue: server.queue, enc: enc, dec: dec,
		pool: sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }},
	}
}

// body is a body that was received.
type body struct {
	id     mail.ID
	size   int64
	inline []byte // compressed; nil when it lies in chunks
	nonce  string
	chunks []int // octets of each, compressed
}

// place says where the body lies, as put.lua wants it.
func (b *body) place() string { return strconv.Itoa(len(b.chunks)) + " " + b.nonce }

// chunkKey names a piece. The nonce keeps a repeated put with another body from
// writing into the first one's pieces.
func (s *bodies) chunkKey(name string, i int) string {
	return "cx:" + s.queue + ":b:{" + name + "}:" + strconv.Itoa(i)
}

func (b *body) name() string { return string(b.id) + "-" + b.nonce }

// receive reads a body to its end. What it wrote goes away by itself when no
// message is made of it.
func (s *bodies) receive(ctx context.Context, id mail.ID, r io.Reader) (*body, error) {
	bp := s.pool.Get().(*[]byte)
	defer s.pool.Put(bp)
	buf := *bp
	b := &body{id: id}
	n, err := readFull(r, buf)
	if err != nil && err != io.EOF {
		return nil, err
	}
	b.size = int64(n)
	if err == io.EOF {
		z := s.enc.EncodeAll(buf[:n], nil)
		if len(z) <= inlineSize {
			b.inline = z
			return b, nil
		}
		b.nonce = rand.Text()[:8]
		return b, s.writeChunk(ctx, b, z)
	}
	b.nonce = rand.Text()[:8]
	for {
		if n > 0 {
			if werr := s.writeChunk(ctx, b, s.enc.EncodeAll(buf[:n], nil)); werr != nil {
				return nil, werr
			}
		}
		if err == io.EOF {
			return b, nil
		}
		if n, err = readFull(r, buf); err != nil && err != io.EOF {
			s.discard(b)
			return nil, err
		}
		b.size += int64(n)
	}
}

// readFull fills buf; io.EOF is the end of r, also with octets before it.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	return n, err
}

func (s *bodies) writeChunk(ctx context.Context, b *body, z []byte) error {
	key := s.chunkKey(b.name(), len(b.chunks))
	err := s.retry(ctx, func(ctx context.Context) error { return s.client.Set(ctx, key, z, chunkTime).Err() })
	if err != nil {
		s.discard(b)
		return fmt.Errorf("redis: write a body: %w", full(err))
	}
	b.chunks = append(b.chunks, len(z))
	return nil
}

func full(err error) error {
	if strings.HasPrefix(err.Error(), "OOM") {
		return fmt.Errorf("%w: Redis is at its maxmemory", queue.ErrFull)
	}
	return err
}

// retry repeats what may be repeated for a while.
func (s *bodies) retry(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	pause := 10 * time.Millisecond
	for {
		err := f(ctx)
		if err == nil || errors.Is(err, goredis.Nil) || errors.Is(err, errUnsafe) || ctx.Err() != nil {
			return err
		}
		switch code, _, _ := strings.Cut(err.Error(), " "); code {
		case "OOM", "NOPERM", "ERR", "WRONGTYPE":
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
		pause = min(2*pause, time.Second)
	}
}

const sealSrc = `#!lua flags=allow-oom
-- pieces; the length of each -> OK | GONE
for i, key in ipairs(KEYS) do
  if redis.call('STRLEN', key) ~= tonumber(ARGV[i]) then return 'GONE' end
end
for _, key in ipairs(KEYS) do redis.call('PERSIST', key) end
return 'OK'`

// seal makes the pieces of a body stay, and waits until they are as safe as
// the message will be: a message must not refer to a body that a failover
// takes away.
func (s *bodies) seal(ctx context.Context, b *body) error {
	if len(b.chunks) == 0 {
		return nil
	}
	keys := make([]any, len(b.chunks))
	lens := make([]any, len(b.chunks))
	for i, n := range b.chunks {
		keys[i], lens[i] = s.chunkKey(b.name(), i), n
	}
	args := append(append([]any{"EVAL", sealSrc, len(keys)}, keys...), lens...)
	return s.retry(ctx, func(ctx context.Context) error {
		w, err := s.server.hosts.take(ctx, keys[0].(string))
		if err != nil {
			return err
		}
		err = s.sealOn(ctx, w, args, s.chunkKey(b.name(), len(b.chunks)))
		s.server.hosts.give(ctx, w, err)
		return err
	})
}

// sealOn seals over the connection w to the server that has the pieces: it
// counts its own replicas.
func (s *bodies) sealOn(ctx context.Context, w *wire, args []any, mark string) error {
	if err := w.host.unsafe(); err != nil {
		return err
	}
	pipe := w.cn.Pipeline()
	said := pipe.Do(ctx, args...)
	wait := w.host.need().add(ctx, pipe, mark)
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	if asString(said.Val()) != "OK" {
		return errors.New("ERR the pieces of the body are gone: Redis lost writes, or an hour went by")
	}
	return wait.check()
}

// discard removes the pieces of a body that no message has. Where it cannot,
// they go by themselves, or `store audit` lists them.
func (s *bodies) discard(b *body) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.unlink(ctx, b.name(), len(b.chunks)+1)
}

func (s *bodies) unlink(ctx context.Context, name string, chunks int) error {
	pipe := s.client.Pipeline()
	for i := range chunks {
		pipe.Unlink(ctx, s.chunkKey(name, i))
	}
	_, err := pipe.Exec(ctx)
	return err
}

// inline opens a body that lies beside its message.
func (s *bodies) inline(z []byte, size int64) (io.ReadCloser, error) {
	raw, err := s.dec.DecodeAll(z, make([]byte, 0, min(size, chunkSize)))
	if err != nil || int64(len(raw)) != size {
		return &damaged{}, nil
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

// damaged is a body of which nothing can be read.
type damaged struct{}

func (*damaged) Read([]byte) (int, error) { return 0, queue.ErrCorrupt }
func (*damaged) Close() error             { return nil }

// chunkReader streams a body that lies in pieces.
type chunkReader struct {
	s    *bodies
	ctx  context.Context
	name string
	left int64
	n    int // pieces
	i    int
	buf  []byte
	rest []byte
	gone func() bool // the message is no longer queued
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.i == r.n {
			if r.left != 0 {
				return 0, queue.ErrCorrupt
			}
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *chunkReader) next() error {
	var z []byte
	err := r.s.retry(r.ctx, func(ctx context.Context) (err error) {
		z, err = r.s.client.Get(ctx, r.s.chunkKey(r.name, r.i)).Bytes()
		return err
	})
	if errors.Is(err, goredis.Nil) {
		if r.gone() {
			return queue.ErrNotFound
		}
		return fmt.Errorf("%w: piece %d of %d of its body is not there", queue.ErrCorrupt, r.i+1, r.n)
	}
	if err != nil {
		return fmt.Errorf("redis: read a body: %w", err)
	}
	if r.buf, err = r.s.dec.DecodeAll(z, r.buf[:0]); err != nil || int64(len(r.buf)) > r.left {
		return queue.ErrCorrupt
	}
	r.i++
	r.rest = r.buf
	r.left -= int64(len(r.buf))
	return nil
}

func (r *chunkReader) Close() error { return nil }
