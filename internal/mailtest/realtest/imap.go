package realtest

import (
	"bufio"
	"net"
	"slices"
	"strings"
	"testing"

	"crossfade/internal/mailtest"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// IMAP is the IMAP side of a running server, and a client of the tests' own for it, which is plain on purpose: it asks for
// nothing that a server may lack, and shares no code with the engine that it checks.
type IMAP struct {
	Name     string // of the program, for messages: "dovecot", "cyrus", "courier"
	IMAPAddr string // 127.0.0.1:port
	Password string // of every user
	// Separator is between the levels of a folder's name, Prefix in front of all names but INBOX ("INBOX." or "").
	Separator, Prefix string
}

// Folder gives the server's own name of a folder that is told by its levels.
func (s *IMAP) Folder(levels ...string) string {
	if len(levels) == 1 && levels[0] == "INBOX" {
		return "INBOX"
	}
	return s.Prefix + strings.Join(levels, s.Separator)
}

// Levels takes the server's own name of a folder apart.
func (s *IMAP) Levels(folder string) []string {
	return strings.Split(strings.TrimPrefix(folder, s.Prefix), s.Separator)
}

// IMAPURL returns the URL for Crossfade's configuration.
func (s *IMAP) IMAPURL() string { return "imap+insecure://" + s.IMAPAddr }

// Login connects as a user. The connection is closed when the test ends; close it earlier if there are many.
func (s *IMAP) Login(t testing.TB, user string) *imapclient.Client {
	t.Helper()
	conn, err := net.Dial("tcp", s.IMAPAddr)
	if err != nil {
		t.Fatalf("connect to %s: %v", s.Name, err)
	}
	c := imapclient.New(&plainBodies{Conn: conn, r: bufio.NewReader(conn)}, nil)
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Login(user, s.Password).Wait(); err != nil {
		t.Fatalf("log in to %s as %s: %v", s.Name, user, err)
	}
	return c
}

// plainBodies hides from go-imap that Cyrus sends a message with a NUL as a literal8 ("~{3}", RFC 3516), which go-imap cannot
// read. Test messages do not have "BODY[] ~" in them.
type plainBodies struct {
	net.Conn
	r    *bufio.Reader
	seen string // of the mark, at the end of what was handed out
}

func (p *plainBodies) Read(b []byte) (int, error) {
	const mark = "BODY[] "
	n := 0
	for n < len(b) && (n == 0 || p.r.Buffered() > 0) {
		c, err := p.r.ReadByte()
		if err != nil {
			return n, err
		}
		if p.seen == mark && c == '~' {
			continue
		}
		if p.seen += string(c); !strings.HasPrefix(mark, p.seen) {
			p.seen = ""
			if c == mark[0] {
				p.seen = mark[:1]
			}
		}
		b[n] = c
		n++
	}
	return n, nil
}

// Append puts a message into a folder, which is made when it does not exist, and returns its UID.
func (s *IMAP) Append(t testing.TB, user, folder string, m mailtest.StoredMessage) uint32 {
	t.Helper()
	c := s.Login(t, user)
	defer func() { _ = c.Close() }()
	if !strings.EqualFold(folder, "INBOX") {
		_ = c.Create(folder, nil).Wait() // it may exist; if it cannot be made APPEND will say so
	}
	opts := &imap.AppendOptions{Time: m.InternalDate}
	for _, f := range m.Flags {
		opts.Flags = append(opts.Flags, imap.Flag(f))
	}
	cmd := c.Append(folder, int64(len(m.Body)), opts)
	if _, err := cmd.Write(m.Body); err != nil {
		t.Fatalf("append to %s of %s: %v", folder, user, err)
	}
	if err := cmd.Close(); err != nil {
		t.Fatalf("append to %s of %s: %v", folder, user, err)
	}
	data, err := cmd.Wait()
	if err != nil {
		t.Fatalf("append to %s of %s: %v", folder, user, err)
	}
	return uint32(data.UID)
}

// Folders returns the names of a user's selectable folders, sorted.
func (s *IMAP) Folders(t testing.TB, user string) []string {
	t.Helper()
	c := s.Login(t, user)
	defer func() { _ = c.Close() }()
	l, err := c.List("", "*", nil).Collect()
	if err != nil {
		t.Fatalf("list the folders of %s: %v", user, err)
	}
	var names []string
	for _, data := range l {
		if !slices.Contains(data.Attrs, imap.MailboxAttrNoSelect) && !slices.Contains(data.Attrs, imap.MailboxAttrNonExistent) {
			names = append(names, data.Mailbox)
		}
	}
	slices.Sort(names)
	return names
}

// Messages returns what a folder holds, over IMAP, in UID order and without changing it.
func (s *IMAP) Messages(t testing.TB, user, folder string) []mailtest.StoredMessage {
	t.Helper()
	c := s.Login(t, user)
	defer func() { _ = c.Close() }()
	sel, err := c.Select(folder, &imap.SelectOptions{ReadOnly: true}).Wait()
	if err != nil {
		t.Fatalf("open %s of %s: %v", folder, user, err)
	}
	if sel.NumMessages == 0 {
		return nil
	}
	section := &imap.FetchItemBodySection{Peek: true}
	bufs, err := c.Fetch(imap.SeqSet{{Start: 1, Stop: sel.NumMessages}}, &imap.FetchOptions{
		UID: true, Flags: true, InternalDate: true, BodySection: []*imap.FetchItemBodySection{section},
	}).Collect()
	if err != nil {
		t.Fatalf("read %s of %s: %v", folder, user, err)
	}
	l := make([]mailtest.StoredMessage, 0, len(bufs))
	for _, b := range bufs {
		m := mailtest.StoredMessage{UID: uint32(b.UID), InternalDate: b.InternalDate, Body: b.FindBodySection(section)}
		for _, f := range b.Flags {
			if f != `\Recent` { // says something about the session, not the message
				m.Flags = append(m.Flags, string(f))
			}
		}
		slices.Sort(m.Flags)
		l = append(l, m)
	}
	return l
}
