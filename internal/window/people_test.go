package window

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/textproto"
	"slices"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

const archive = "Archive"

// reads is the mail system that somebody reads, other the one he does not.
func (c *company) reads(p *person) *system {
	if p.onNew {
		return c.new
	}
	return c.old
}

func (c *company) other(p *person) *system {
	if p.onNew {
		return c.old
	}
	return c.new
}

// givePast puts mail into somebody's mailbox on old.
func (c *company) givePast(p *person, n int) {
	t := c.t
	t.Helper()
	cl, err := login(c.old, p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	folder := c.old.Folder(archive)
	if err := cl.Create(folder, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		id := c.book.add(p, past)
		m, to := message(id, p.addr, 300+i*40), "INBOX"
		if i%3 == 0 {
			to = folder
		}
		cmd := cl.Append(to, int64(len(m)), &imap.AppendOptions{Time: time.Date(2020, 1, 1+i, 12, 0, 0, 0, time.UTC)})
		_, err := cmd.Write(m)
		if err = errors.Join(err, cmd.Close()); err == nil {
			_, err = cmd.Wait()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func login(d *system, user string) (*imapclient.Client, error) {
	cl, err := imapclient.DialInsecure(d.IMAPAddr, nil)
	if err != nil {
		return nil, err
	}
	if err := cl.Login(user, d.Password).Wait(); err != nil {
		_ = cl.Close()
		return nil, err
	}
	return cl, nil
}

// live has people use their mailboxes until ctx is over.
func (c *company) live(ctx context.Context, seed uint64, every time.Duration) error {
	rnd := rand.New(rand.NewPCG(seed, 9))
	for ctx.Err() == nil {
		sleep(ctx, every)
		p := c.people[rnd.IntN(len(c.people))]
		p.mu.Lock()
		var err error
		if !p.moving {
			err = c.act(p, rnd)
		}
		p.mu.Unlock()
		if err != nil {
			return fmt.Errorf("%s: %w", p.addr, err)
		}
	}
	return nil
}

// act does one of the things that people do with a message: read or flag it, file it away, delete it. One in ten is done
// by a device that still looks at the other mailbox, and files away there.
func (c *company) act(p *person, rnd *rand.Rand) error {
	d, what := c.reads(p), rnd.IntN(10)
	if what == 9 {
		d = c.other(p)
	}
	cl, err := login(d, p.addr)
	if err != nil {
		return err
	}
	defer cl.Close()
	from, to := "INBOX", d.Folder(archive)
	if rnd.IntN(3) == 0 {
		from, to = to, from
	}
	sel, err := cl.Select(from, nil).Wait()
	if err != nil || sel.NumMessages == 0 {
		return nil // he has no such folder there yet, or nothing in it
	}
	id, uid, err := one(cl, 1+rnd.Uint32N(sel.NumMessages))
	if err != nil || id == "" {
		return err
	}
	switch {
	case what < 4:
		flags := &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagSeen}, Silent: true}
		if what == 0 {
			flags.Flags = append(flags.Flags, imap.FlagFlagged)
		}
		return cl.Store(imap.UIDSetNum(uid), flags, nil).Close()
	case what == 8: // deleted
		flags := &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}
		if err := cl.Store(imap.UIDSetNum(uid), flags, nil).Close(); err != nil {
			return err
		}
		c.book.change(id, func(e *entry) { e.gone = true })
		return cl.UIDExpunge(imap.UIDSetNum(uid)).Close()
	}
	if d == c.other(p) {
		c.book.change(id, func(e *entry) { e.touched = true })
	}
	_ = cl.Create(d.Folder(archive), nil).Wait() // it is there mostly
	_, err = cl.Move(imap.UIDSetNum(uid), to).Wait()
	return err
}

// one looks at one message.
func one(cl *imapclient.Client, seq uint32) (id string, uid imap.UID, err error) {
	section := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, HeaderFields: []string{mark}, Peek: true}
	got, err := cl.Fetch(imap.SeqSetNum(seq), &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}).Collect()
	if err != nil || len(got) != 1 {
		return "", 0, err
	}
	return marked(got[0].FindBodySection(section)), got[0].UID, nil
}

func marked(header []byte) string {
	h, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(header, "\r\n\r\n"...)))).ReadMIMEHeader()
	if err != nil {
		return ""
	}
	return h.Get(mark)
}

// contents counts the messages in all folders of somebody's mailbox.
func contents(d *system, user string) (map[string][]string, error) {
	cl, err := login(d, user)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	folders, err := cl.List("", "*", nil).Collect()
	if err != nil {
		return nil, err
	}
	section := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, HeaderFields: []string{mark}, Peek: true}
	out := map[string][]string{}
	for _, f := range folders {
		if slices.Contains(f.Attrs, imap.MailboxAttrNoSelect) {
			continue
		}
		sel, err := cl.Select(f.Mailbox, &imap.SelectOptions{ReadOnly: true}).Wait()
		if err != nil {
			return nil, err
		}
		if sel.NumMessages == 0 {
			continue
		}
		all, err := cl.Fetch(imap.SeqSet{{Start: 1, Stop: 0}}, &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}).Collect()
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			id := marked(m.FindBodySection(section))
			out[id] = append(out[id], fmt.Sprintf("%s %d", f.Mailbox, m.UID))
		}
	}
	return out, nil
}
