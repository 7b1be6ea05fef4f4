package faults

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// drive is a disk with a volatile cache: what was written is kept for certain
// only once it was flushed. Its power can be cut, and what it holds then is what
// was flushed and any part of the rest. The kernel sees it as one file of a
// FUSE file system, with a loop device and an ext4 on it.
type drive struct {
	t    testing.TB
	fuse string // where the file system with the one file is mounted
	fd   int

	mu      sync.Mutex
	now     []byte // as the kernel reads it
	durable []byte
	pending []sector
	dead    bool
	served  chan struct{}
}

// sector is a write that was not flushed.
type sector struct {
	off  uint64
	data []byte
}

// plugIn makes a drive of what one held before, and mounts its ext4 on dir.
func plugIn(t testing.TB, held []byte, dir string) *drive {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		missing(t, "/dev/fuse: %v", err)
	}
	d := &drive{t: t, fuse: t.TempDir(), fd: fd, now: held, durable: bytes.Clone(held), served: make(chan struct{})}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := syscall.Mount("faults", d.fuse, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, opts); err != nil {
		syscall.Close(fd)
		missing(t, "mount a FUSE file system: %v", err)
	}
	go d.serve()
	rescue(t, d.fuse, dir)
	t.Cleanup(func() { d.pull(dir) })
	if out, err := exec.Command("mount", "-o", "loop", filepath.Join(d.fuse, "image"), dir).CombinedOutput(); err != nil {
		missing(t, "mount -o loop: %v\n%s", err, out)
	}
	return d
}

// rescue watches over a drive from another process: should this one die, with
// threads of it waiting for its own drive, nobody would ever answer them, and
// each sync on the machine would hang. To unmount by force gives the drive up.
func rescue(t testing.TB, drive, dir string) {
	t.Helper()
	const watch = `while grep -q " $2 fuse " /proc/mounts; do
		case $(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) in ''|Z) umount -f "$2"; umount -l "$3" "$2"; exit ;; esac
		sleep 1
	done`
	cmd := exec.Command("sh", "-c", watch, "rescue", strconv.Itoa(os.Getpid()), drive, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// formatted is what a new drive holds.
func formatted(t testing.TB, megabytes int) []byte {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	err := os.WriteFile(image, nil, 0o600)
	if err == nil {
		err = os.Truncate(image, int64(megabytes)<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", image).CombinedOutput(); err != nil {
		missing(t, "mkfs.ext4: %v\n%s", err, out)
	}
	held, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return held
}

// cut is the power failure: it gives what the drive holds. After it every
// access fails.
func (d *drive) cut() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.now = true, nil
	keep := rand.IntN(3) // nothing of what was not flushed, all of it, or anything
	for _, s := range d.pending {
		if keep == 1 || keep == 2 && rand.IntN(2) == 0 {
			copy(d.durable[s.off:], s.data)
		}
	}
	d.pending = nil
	return d.durable
}

// pull takes a drive away whose power is off; once is enough.
func (d *drive) pull(dir string) {
	d.mu.Lock()
	d.dead = true
	d.now, d.durable, d.pending = nil, nil, nil // many are made in one test
	d.mu.Unlock()
	_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	_ = syscall.Unmount(d.fuse, syscall.MNT_DETACH)
	select {
	case <-d.served:
	case <-time.After(10 * time.Second):
		d.t.Logf("a drive is still in use: %s", d.fuse)
	}
}

// The requests of FUSE that matter here (linux/fuse.h).
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseSetattr = 4
	fuseOpen    = 14
	fuseRead    = 15
	fuseWrite   = 16
	fuseStatfs  = 17
	fuseRelease = 18
	fuseFsync   = 20
	fuseFlush   = 25
	fuseInit    = 26
	fuseOpendir = 27
	fuseRelDir  = 29
	fuseIntr    = 36
	fuseForgets = 42
)

func (d *drive) serve() {
	defer close(d.served)
	defer syscall.Close(d.fd)
	buf := make([]byte, 1<<20+4096)
	for {
		n, err := syscall.Read(d.fd, buf)
		if errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAGAIN) {
			continue
		}
		if err != nil || n < 40 {
			return // unmounted
		}
		op, unique := binary.LittleEndian.Uint32(buf[4:]), buf[8:16]
		if op == fuseForget || op == fuseForgets || op == fuseIntr {
			continue
		}
		out, code := d.answer(op, binary.LittleEndian.Uint64(buf[16:]), buf[40:n])
		head := make([]byte, 16, 16+len(out))
		binary.LittleEndian.PutUint32(head, uint32(16+len(out)))
		binary.LittleEndian.PutUint32(head[4:], uint32(-int32(code)))
		copy(head[8:], unique)
		_, _ = syscall.Write(d.fd, append(head, out...))
	}
}

// pack writes numbers one behind the other as C does.
func pack(v ...any) []byte {
	var b bytes.Buffer
	for _, x := range v {
		_ = binary.Write(&b, binary.LittleEndian, x)
	}
	return b.Bytes()
}

func (d *drive) attr(node uint64) []byte {
	mode, size := uint32(syscall.S_IFDIR|0o700), uint64(0)
	if node == 2 {
		mode, size = syscall.S_IFREG|0o600, uint64(len(d.now))
	}
	return pack(node, size, size/512, [3]uint64{}, [3]uint32{}, mode, uint32(1), [3]uint32{}, uint32(4096), uint32(0))
}

// answer does a request.
func (d *drive) answer(op uint32, node uint64, in []byte) ([]byte, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	const long = uint64(3600)
	switch op {
	case fuseInit:
		const bigWrites, maxPages = 1 << 5, 1 << 22
		return pack(uint32(7), uint32(31), uint32(128<<10), uint32(bigWrites|maxPages), uint16(16), uint16(12), uint32(512<<10), uint32(1),
			uint16(128), uint16(0), [8]uint32{}), 0
	case fuseLookup:
		if string(bytes.TrimRight(in, "\x00")) != "image" {
			return nil, syscall.ENOENT
		}
		return append(pack(uint64(2), uint64(0), long, long, uint64(0)), d.attr(2)...), 0
	case fuseGetattr, fuseSetattr:
		return append(pack(long, uint64(0)), d.attr(node)...), 0
	case fuseOpen, fuseOpendir:
		return pack([2]uint64{}), 0
	case fuseStatfs:
		return make([]byte, 80), 0
	case fuseRelease, fuseRelDir, fuseFlush:
		return nil, 0
	case fuseRead, fuseWrite, fuseFsync:
		if d.dead {
			return nil, syscall.EIO
		}
		return d.transfer(op, in)
	}
	return nil, syscall.ENOSYS
}

func (d *drive) transfer(op uint32, in []byte) ([]byte, syscall.Errno) {
	if op == fuseFsync {
		for _, s := range d.pending {
			copy(d.durable[s.off:], s.data)
		}
		d.pending = nil
		return nil, 0
	}
	off, size := binary.LittleEndian.Uint64(in[8:]), uint64(binary.LittleEndian.Uint32(in[16:]))
	if off > uint64(len(d.now)) || off+size > uint64(len(d.now)) {
		if op == fuseWrite {
			return nil, syscall.EFBIG
		}
		off = min(off, uint64(len(d.now)))
		size = uint64(len(d.now)) - off
	}
	if op == fuseRead {
		return bytes.Clone(d.now[off : off+size]), 0
	}
	data := bytes.Clone(in[40 : 40+size])
	copy(d.now[off:], data)
	d.pending = append(d.pending, sector{off, data})
	return pack(uint32(size), uint32(0)), 0
}
