package matrix

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest/realtest"
)

const mbsyncConf = `IMAPAccount a
Host %s
Port %s
User "%s"
Pass "%s"
SSLType None
AuthMechs LOGIN
Timeout 20

IMAPStore far
Account a

MaildirStore near
Path %[5]s/
Inbox %[5]s/INBOX
SubFolders Verbatim

Channel c
Far :far:
Near :near:
Patterns *
Create Near
Sync Pull
SyncState %[5]s/state-
CopyArrivalDate yes
`

// pull has mbsync bring a mailbox to a directory, and gives its messages as a multiset: what mbsync reads is the opinion
// of another program.
func pull(t testing.TB, s server, user string) []seen {
	t.Helper()
	path := realtest.Need(t, "mbsync")
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(s.IMAPAddr)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "mbsyncrc")
	if err := os.WriteFile(conf, fmt.Appendf(nil, mbsyncConf, host, port, user, s.Password, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-q", "-c", conf, "c")
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("mbsync of %s: %v\n%.2000s", s.name, err, out)
	}
	var msgs []seen
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if sub := filepath.Base(filepath.Dir(path)); err != nil || e.IsDir() || sub != "cur" && sub != "new" {
			return err
		}
		b, err := os.ReadFile(path)
		m := look(withoutField(b, "X-TUID: "))
		m.exact = unknown // mbsync writes line ends of its own
		msgs = append(msgs, m)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// withoutField takes away the field that mbsync puts into every header.
func withoutField(b []byte, name string) []byte {
	if from := bytes.Index(b, []byte(name)); from >= 0 && (from == 0 || b[from-1] == '\n') {
		if end := bytes.IndexByte(b[from:], '\n'); end >= 0 {
			return append(bytes.Clone(b[:from]), b[from+end+1:]...)
		}
	}
	return b
}

// secondOpinion has mbsync read both sides and compares what it got.
func secondOpinion(t testing.TB, src, dst server, user string) {
	t.Helper()
	if !src.mbsync || !dst.mbsync {
		return
	}
	before, after := pull(t, src, user), pull(t, dst, user)
	d := compare("mbsync", before, after)
	if len(before) == 0 || len(d.lost)+len(d.duplicated) > 0 {
		t.Errorf("mbsync sees %d messages on the source and %d on the destination:\n lost: %s\n more: %s", len(before), len(after),
			strings.Join(d.lost, "\n       "), strings.Join(d.duplicated, "\n       "))
	}
}
