package window

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"crossfade/router"
)

// TestHold measures how long mail is held by a flip, with large mailboxes in twenty folders, under mail on all ways. It is a
// measurement and has no limit; that each flip comes to its end is the test.
func TestHold(t *testing.T) {
	people, messages := 3, 400
	if long() {
		people, messages = 30, 10_000
	}
	c := found(t, servers{}, people, 0, 1)
	for _, p := range c.people {
		c.fill(p, messages)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	work := &crowd{}
	work.goes(func() error { return c.stream(ctx, 1, 50*time.Millisecond) })
	args := []string{"backfill", "run", "--no-wait"}
	for _, p := range c.people {
		args = append(args, p.addr)
	}
	if _, err := c.relay.ask(args...); err != nil {
		t.Fatal(err)
	}
	c.await(c.people, router.StateReady, 20*time.Minute)
	var holds []time.Duration
	for _, p := range c.people {
		c.shift([]*person{p}, true, "start")
		st, err := c.relay.client.Move(ctx, p.addr)
		if err != nil {
			t.Fatal(err)
		}
		holds = append(holds, st.HoldTime)
	}
	stop()
	if err := work.wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(holds)
	at := func(q int) time.Duration { return holds[(len(holds)-1)*q/100].Round(time.Millisecond) }
	figure(t, "%d flips of mailboxes of %d messages in 20 folders, under mail: held p50 %s, p99 %s, longest %s", len(holds), messages, at(50), at(99), at(100))
}

// fill puts many messages into a mailbox on old, past its server.
func (c *company) fill(p *person, n int) {
	t := c.t
	t.Helper()
	root := filepath.Join(c.old.root, p.addr, "Maildir")
	for i := range n {
		dir := filepath.Join(root, fmt.Sprintf(".Folder %02d", i%20))
		if i%20 == 0 {
			dir = root
		}
		if i < 20 {
			for _, sub := range []string{"cur", "new", "tmp"} {
				if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
					t.Fatal(err)
				}
			}
		}
		id := c.book.add(p, past)
		body := message(id, p.addr, 600+i%900)
		if err := os.WriteFile(filepath.Join(dir, "cur", fmt.Sprintf("%d.M%dP1.past:2,S", 1_600_000_000+i, i)), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own(t, filepath.Join(c.old.root, p.addr))
}

// mailOwner owns the mail when root starts Dovecot.
const mailOwner = 5999

// own gives a tree to the user that Dovecot works as.
func own(t *testing.T, root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, mailOwner, mailOwner)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
