package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
)

// mountSmall puts a small file system in memory where the store will be.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: a small file system can be mounted by root only; run this test as root")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mount a small file system: %v (the container needs CAP_SYS_ADMIN)", err)
		}
		t.Skipf("SKIPPED: a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fill sends messages of a size until one is refused, and gives the tokens
// that got a 250 and the refusal.
func (s *site) fill(prefix string, size int) (tokens []string, refusal error) {
	s.t.Helper()
	for i := range 2000 {
		token := fmt.Sprintf("tok-%s-%04d", prefix, i)
		_, err := sendOne(s.limit(), s.addr, outside, []string{"full@" + faultsDomain}, tokenMessage(token, size))
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, token)
	}
	s.t.Fatal("2000 messages and the disk is not full")
	return nil, nil
}

func wantCode(t *testing.T, err error, code int) {
	t.Helper()
	var e *textproto.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("refused with %v, want %d", err, code)
	}
}

func (s *site) pause() {
	s.t.Helper()
	for _, r := range []mail.Route{mail.Old, mail.New} {
		if err := s.client.PauseBackend(s.limit(), r, "test"); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) resume() {
	s.t.Helper()
	for _, r := range []mail.Route{mail.Old, mail.New} {
		if err := s.client.ResumeBackend(s.limit(), r); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) ready(want bool) {
	s.t.Helper()
	eventually(s.t, 10*time.Second, fmt.Sprintf("ready is %t", want), func() bool {
		r, err := s.client.Ready(s.limit())
		return err == nil && r.Ready == want && (want || len(r.Reasons) > 0)
	})
}

func (s *site) arrivedOnce(sink *mailtest.Sink, tokens []string) {
	s.t.Helper()
	n := map[string]int{}
	for _, m := range sink.Messages() {
		if f := tokenField.FindSubmatch(m.Body); f != nil {
			n[string(f[1])]++
		}
	}
	for _, token := range tokens {
		if n[token] != 1 {
			s.t.Errorf("%s arrived %d times", token, n[token])
		}
	}
}

// TestFaultsDiskReserve runs into the reserve of a small file system: 452, and
// on as soon as there is room again, without a restart. The reserve has to be
// larger than the write-ahead log: what is queued is settled out of it.
func TestFaultsDiskReserve(t *testing.T) {
	s := newSite(t, "queue: {min_free: 24MiB}\nrouting: {unknown: old}")
	mountSmall(t, s.cfg.Store, "64m")
	s.start()
	s.pause()
	ballast := filepath.Join(s.cfg.Store, "ballast")
	leave(t, s.cfg.Store, ballast, 30<<20)
	var all []string
	for round, sizes := range [][]int{{1 << 21, 100_000, 3000}, {100_000, 3000}} {
		for _, size := range sizes {
			tokens, err := s.fillSlowly(fmt.Sprintf("r%d-%d", round, size), size)
			wantCode(t, err, 452)
			t.Logf("%d messages of %d octets, then: %v", len(tokens), size, err)
			all = append(all, tokens...)
		}
		s.ready(false)
		s.resume()
		s.empty()
		s.ready(true) // nobody makes room: what was delivered gives its own back
		all = append(all, fmt.Sprintf("tok-after-%d", round))
		s.send(all[len(all)-1], outside, "full@"+faultsDomain)
		s.empty()
		s.pause()
	}
	s.resume()
	s.arrivedOnce(s.old, all)
}

// fillSlowly is fill for a store that asks for the room once a second.
func (s *site) fillSlowly(prefix string, size int) (tokens []string, refusal error) {
	s.t.Helper()
	sent := 0
	for i := range 2000 {
		token := fmt.Sprintf("tok-%s-%04d", prefix, i)
		_, err := sendOne(s.limit(), s.addr, outside, []string{"full@" + faultsDomain}, tokenMessage(token, size))
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, token)
		if sent += size; sent >= 1<<20 {
			sent = 0
			rest(s.limit(), 1050*time.Millisecond)
		}
	}
	s.t.Fatal("2000 messages and the disk is not full")
	return nil, nil
}

// TestFaultsDiskFull runs into the end of the file system itself: somebody
// else filled it, and also the database may find no room. Then the relay may
// stop itself, and a new start with room goes on.
func TestFaultsDiskFull(t *testing.T) {
	for _, size := range []int{300, 40_000, 1 << 21} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newSite(t, plainQueue)
			mountSmall(t, s.cfg.Store, "12m")
			s.start()
			s.pause()
			ballast := filepath.Join(s.cfg.Store, "ballast")
			leave(t, s.cfg.Store, ballast, 5<<20)
			tokens, refusal := s.fill("f", size)
			t.Logf("%d messages, then: %v", len(tokens), refusal)
			stopped := s.survives(ballast)
			t.Logf("the relay stopped itself: %t", stopped)
			if !stopped {
				wantCode(t, refusal, 452)
			}
			s.resume()
			s.send("tok-after", outside, "full@"+faultsDomain)
			s.empty()
			s.arrivedOnce(s.old, append(tokens, "tok-after"))
		})
	}
}

// TestFaultsDiskNoRoom has no octet free, and nobody makes room: what is queued
// is delivered all the same, and then mail is accepted again.
func TestFaultsDiskNoRoom(t *testing.T) {
	for _, size := range []int{300, 40_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newSite(t, plainQueue)
			mountSmall(t, s.cfg.Store, "24m")
			s.start()
			s.pause()
			ballast := filepath.Join(s.cfg.Store, "ballast")
			leave(t, s.cfg.Store, ballast, 5<<20)
			tokens, refusal := s.fill("n", size)
			wantCode(t, refusal, 452)
			f, err := os.OpenFile(ballast, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for n := 1 << 20; n > 0; {
				if _, err := f.Write(make([]byte, n)); err != nil {
					n /= 2
				}
			}
			s.ready(false)
			s.resume()
			s.empty()
			s.ready(true)
			s.send("tok-after", outside, "full@"+faultsDomain)
			s.empty()
			s.arrivedOnce(s.old, append(tokens, "tok-after"))
			if !strings.Contains(s.log.String(), "the disk is full") {
				t.Error("the log does not say that the disk is full")
			}
		})
	}
}

// leave fills a file system up to some octets.
func leave(t *testing.T, dir, ballast string, octets int64) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if n := int64(st.Bavail)*st.Bsize - octets; n > 0 {
		if err := os.WriteFile(ballast, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// survives makes room, and starts the relay anew if it stopped itself.
func (s *site) survives(ballast string) (stopped bool) {
	s.t.Helper()
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case err := <-s.ended:
		s.t.Logf("Run: %v", err)
		if err == nil || !strings.Contains(err.Error(), "start it again") {
			s.t.Errorf("Run ended with %v, which does not say what to do", err)
		}
		stopped = true
		s.d = nil
	case <-t.C:
	}
	if err := os.Remove(ballast); err != nil {
		s.t.Fatal(err)
	}
	if stopped {
		s.start()
	}
	s.ready(true)
	return stopped
}

// TestFaultsSecondProcess starts a second relay on a store.
func TestFaultsSecondProcess(t *testing.T) {
	s := newSite(t, plainQueue).start()
	second := &site{t: t, dir: s.dir, old: s.old, new: s.new, cfg: s.cfg, log: &lockedBuffer{}}
	err := second.tryStart(nil)
	if err == nil || !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), s.cfg.Store) {
		t.Errorf("a second daemon on the same store: %v", err)
	}
	s.send("tok-first", outside, "a@"+faultsDomain)
	s.empty()
}

// TestFaultsCorruptBody damages one stored message: that one is parked with an
// alarm, the others arrive.
func TestFaultsCorruptBody(t *testing.T) {
	s := newSite(t, plainQueue).start()
	s.pause()
	var ids []mail.ID
	for i := range 5 {
		ids = append(ids, s.send(fmt.Sprintf("tok-c%d", i), outside, "c@"+faultsDomain))
	}
	big, err := sendOne(s.limit(), s.addr, outside, []string{"c@" + faultsDomain}, tokenMessage("tok-cbig", 2<<20))
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	damage(t, s.cfg.Store, "X-Token: tok-c2\r\n")
	damage(t, s.cfg.Store, "X-Token: tok-cbig\r\n")
	s.start()
	alarms := make(chan string, 100)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	connected := make(chan struct{})
	go func() {
		_ = s.client.Listen(ctx, 0, func() { close(connected) }, func(e admin.Event) error {
			if e.Kind == "alarm" {
				alarms <- string(e.Data)
			}
			return nil
		})
	}()
	<-connected
	_, _ = s.client.Apply(s.limit(), admin.QueueApply{Action: queue.DoRetry, All: true})
	for _, id := range []mail.ID{ids[2], big} {
		r := s.rcpt(id, "parked", func(r queue.Rcpt) bool { return r.State == queue.Parked })
		if !strings.Contains(r.LastReply, "damaged") {
			t.Errorf("operators read %q", r.LastReply)
		}
	}
	eventually(t, 10*time.Second, "the others arrived", func() bool { return s.old.Count() >= 4 })
	s.arrivedOnce(s.old, []string{"tok-c0", "tok-c1", "tok-c3", "tok-c4"})
	if count(s.old, "tok-c2")+count(s.old, "tok-cbig") != 0 {
		t.Error("a damaged message was delivered")
	}
	if page, err := s.client.Queue(s.limit(), admin.QueueFilter{}, "", 10); err != nil || len(page.Messages) != 2 {
		t.Errorf("%d messages are left, %v", len(page.Messages), err)
	}
	if !strings.Contains(s.log.String(), "damaged") {
		t.Error("the log does not say that a message is damaged")
	}
	select {
	case a := <-alarms:
		t.Logf("alarm: %s", a)
	case <-s.limit().Done():
		t.Error("there was no alarm among the events")
	}
}

// damage changes a byte behind some text in whichever file of the store holds
// it.
func damage(t *testing.T, dir, text string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		i := bytes.Index(b, []byte(text))
		if i < 0 {
			return nil
		}
		b[i+len(text)+20] ^= 0x20
		return errors.Join(os.WriteFile(path, b, 0o600), filepath.SkipAll)
	})
	if err != nil && !errors.Is(err, filepath.SkipAll) {
		t.Fatal(err)
	}
}

// TestFaultsCorruptDatabase: a database that cannot be opened says what to do.
func TestFaultsCorruptDatabase(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(b []byte) []byte
	}{
		{"header", func(b []byte) []byte { return append(bytes.Repeat([]byte("no db"), 40), b[200:]...) }},
		{"schema page", func(b []byte) []byte { copy(b[100:], bytes.Repeat([]byte{0xff}, 3900)); return b }},
		{"cut off", func(b []byte) []byte { return b[:len(b)/2] }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, plainQueue).start()
			s.pause()
			for i := range 30 {
				s.send(fmt.Sprintf("tok-d%d", i), outside, "d@"+faultsDomain)
			}
			s.stop()
			paths, err := filepath.Glob(filepath.Join(s.cfg.Store, "*.db"))
			if err != nil || len(paths) != 1 {
				t.Fatal(paths, err)
			}
			b, err := os.ReadFile(paths[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(paths[0], test.damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			err = s.tryStart(nil)
			if err == nil {
				t.Fatal("it started")
			}
			t.Log(err)
			if !strings.Contains(err.Error(), paths[0]) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("the error does not name the file and what to do: %v", err)
			}
		})
	}
}

// TestFaultsStoreDirectory gives directories that are none.
func TestFaultsStoreDirectory(t *testing.T) {
	t.Run("a file", func(t *testing.T) {
		s := newSite(t, plainQueue)
		if err := os.WriteFile(s.cfg.Store, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		err := s.tryStart(nil)
		if err == nil || !strings.Contains(err.Error(), s.cfg.Store) {
			t.Errorf("Run says %v", err)
		}
		t.Log(err)
	})
	t.Run("read-only", func(t *testing.T) {
		s := newSite(t, plainQueue)
		mountSmall(t, s.cfg.Store, "24m")
		s.start()
		s.stop()
		if err := syscall.Mount("", s.cfg.Store, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		err := s.tryStart(nil)
		if err == nil || !strings.Contains(err.Error(), s.cfg.Store) {
			t.Errorf("Run says %v", err)
		}
		t.Log(err)
	})
}
