package ondisk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/backfill/ondisk"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"go.uber.org/goleak"
)

const childEnv = "ONDISK_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child(strings.Split(os.Getenv(childEnv), "|")))
	}
	goleak.VerifyTestMain(m)
}

// dirLedger keeps each record in a file that is replaced whole. With a number of
// writes it kills the process in front of the last of them.
type dirLedger struct {
	dir  string
	left int
}

func (l *dirLedger) LoadLedger(context.Context, string) (map[string][]byte, error) {
	out := map[string][]byte{}
	files, err := filepath.Glob(filepath.Join(l.dir, "*.rec"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		var rec [2][]byte
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &rec)
		}
		if err != nil {
			return nil, err
		}
		out[string(rec[0])] = rec[1]
	}
	return out, nil
}

func (l *dirLedger) SaveLedger(_ context.Context, _, name string, data []byte) error {
	if l.left--; l.left == 0 {
		die()
	}
	file := filepath.Join(l.dir, fmt.Sprintf("%x.rec", name))
	if data == nil {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal([2][]byte{[]byte(name), data})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// child is one pass in a process of its own, which kills itself at the nth write
// of the ledger, or at the nth call of a crash point.
func child(args []string) int {
	kind, dir, address, ledger, point := args[0], args[1], args[2], args[3], args[4]
	nth, err := strconv.Atoi(args[5])
	if err != nil {
		return 2
	}
	l := &dirLedger{dir: ledger}
	c := &backfill.Copier{Ledger: l, BatchMessages: 9, Settle: 100 * time.Millisecond}
	if point == "" {
		l.left = nth
	} else {
		c.CrashPoint = func(name string) {
			if name == point {
				if nth--; nth == 0 {
					die()
				}
			}
		}
	}
	if _, err := c.Pass(context.Background(), jobAt(kind, dir, address), backfill.Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func jobAt(kind, dir, address string) backfill.Job {
	var from backfill.Source = ondisk.Maildir{Place: ondisk.Place{Base: dir}}
	if kind == "mbox" {
		from = ondisk.Mbox{Folders: ondisk.Place{Base: dir}}
	}
	return backfill.Job{User: user, Host: "mx.example.org", From: from, Dest: imapconn.Account{
		Server: imapconn.Server{Address: address, Mode: imapconn.TLSNone}, Login: imapconn.Login{User: user, Password: "secret"}}}
}

// TestKilledPassesCopyOnce: whatever was in the ledger when the process died, the
// numbers are the same afterwards, and every message is there once.
func TestKilledPassesCopyOnce(t *testing.T) {
	for _, kind := range []string{"maildir", "mbox"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
			dir, ledger := t.TempDir(), t.TempDir()
			count := 0
			more := func(n int) {
				for range n {
					deliver(t, kind, dir, count)
					count++
				}
			}
			more(40)
			kills := 0
			for nth := 1; nth <= 12; nth++ {
				for _, point := range []string{"", "after-append", "after-journal"} {
					if point != "" && nth > 3 {
						continue
					}
					if killed(t, kind, dir, dst.IMAPAddr, ledger, point, nth) {
						kills++
					}
					more(2)
				}
			}
			if kills < 9 {
				t.Errorf("only %d passes were killed", kills)
			}
			l := &dirLedger{dir: ledger}
			pass(t, l, jobAt(kind, dir, dst.IMAPAddr), backfill.Options{})
			if r := pass(t, l, jobAt(kind, dir, dst.IMAPAddr), backfill.Options{Final: true}); !r.Clean() || r.Messages != count {
				t.Errorf("last pass: %+v", r)
			}
			want := contents(t, jobAt(kind, dir, dst.IMAPAddr).From, &mailtest.Ledger{})
			same(t, content(want, "INBOX.", "."), content(served(t, dst), "", "/"))
			if n := len(want["INBOX"]); n != count {
				t.Errorf("%d of %d messages", n, count)
			}
		})
	}
}

func deliver(t *testing.T, kind, dir string, n int) {
	t.Helper()
	text := fmt.Sprintf("Subject: %d\n\nbody of %d\n", n, n)
	when := time.Unix(1400000000+int64(n), 0)
	if kind == "maildir" {
		file := filepath.Join(dir, "new", fmt.Sprintf("%d.M%d.host", when.Unix(), n))
		write(t, file, text)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
		return
	}
	f, err := os.OpenFile(filepath.Join(dir, "INBOX"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "From a@example.org %s\n%s\n", when.Format("Mon Jan _2 15:04:05 2006"), text); err != nil {
		t.Fatal(err)
	}
}

// killed runs a pass in a process of its own, and tells whether it was killed and
// not done before.
func killed(t *testing.T, args ...any) bool {
	t.Helper()
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = fmt.Sprint(a)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(words, "|"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return false
}
