package backfill

import (
	"context"
	"sync"

	"crossfade/backfill/imapconn"
)

// Source is where a mailbox is read from. A Job without one reads over IMAP;
// other sources are trees on disk and POP3. A source is only ever read: nothing
// of a pass changes it.
type Source interface {
	// Open opens the mailbox for one pass. What it gives ends with ctx. Where the
	// store has no UIDs of its own, n gives and keeps them.
	Open(ctx context.Context, n *Numbers) (Mailbox, error)
}

// Mailbox is the source of one pass. Its methods are called by one goroutine at
// a time, but for NewReader, which every lane calls for itself.
type Mailbox interface {
	// Namespaces and List tell which folders there are. Folders are known in the
	// ledger by their Wire, so that has to be the same in every pass.
	Namespaces() (imapconn.Namespaces, error)
	List() ([]imapconn.Folder, error)
	// Statuses gives the status of folders by their Wire. A folder that cannot be
	// looked into has its error in errs. A folder whose status is that of the last
	// pass is left out: whatever changes in it, mail or flags, has to change one of
	// Messages, UIDNext, UIDValidity and ModSeq.
	Statuses(wires []string) (stats map[string]imapconn.Status, errs map[string]error, err error)
	// NewReader makes a reader for one lane; it connects when it is first used.
	NewReader() MailReader
	Close() error
}

// MailReader reads the messages of one folder after another. It is used by one
// goroutine at a time. One that can also tell UIDs by themselves, with
// UIDsFrom(uint32) ([]uint32, error), says thereby that what is not there was
// deleted by the user: only then deletions are carried over.
type MailReader interface {
	// Select opens a folder. UIDs mean the same messages for as long as
	// UIDValidity is the same, whatever happens in the folder.
	Select(f imapconn.Folder) (imapconn.Selected, error)
	// ListAll gives the messages of the open folder, UIDs ascending, and the state
	// that the list belongs to. A list that misses a message that is there is an
	// error: what is not listed counts as deleted.
	ListAll(it imapconn.Items) ([]imapconn.Meta, imapconn.Selected, error)
	// Fetch hands messages of the open folder (UIDs ascending) to recv, each once,
	// with CRLF at the ends of lines. Those that are gone or cannot be read are in
	// failures; an error is one of the source as a whole, or of recv.
	Fetch(uids []uint32, it imapconn.Items, recv imapconn.Receiver) (failures []imapconn.Failure, err error)
	Close() error
}

// openSource opens what a pass reads from.
func (p *pass) openSource() (Mailbox, error) {
	if p.job.From != nil {
		return p.job.From.Open(p.ctx, &Numbers{ctx: p.ctx, book: p.book, dry: p.dry})
	}
	s, err := p.c.Dialer.Open(p.ctx, p.job.Source)
	if err != nil {
		p.srcServer().refused(err, srcSeats)
		return nil, err
	}
	if p.o.Back && s.Has(imapconn.GmailExtensions) {
		s.Close()
		return nil, noWayBack("the new mailbox is Gmail's, which shows each message in several folders")
	}
	if s.Has(imapconn.GmailExtensions) && p.job.Gmail != GmailOff {
		b, err := openGmail(p, s)
		if err != nil {
			return nil, err
		}
		return b, nil
	}
	return &imapMailbox{Session: s, p: p}, nil
}

// imapMailbox is the source over IMAP: its session lists folders until the first
// reader takes the connection over.
type imapMailbox struct {
	*imapconn.Session
	p *pass

	mu    sync.Mutex
	taken bool
}

// NewReader implements [Mailbox].
func (m *imapMailbox) NewReader() MailReader {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.Session
	if m.taken {
		s = nil
	}
	m.taken = true
	return m.p.reader(m.p.job.Source, s)
}

// folderLister is what tells the folders of one side.
type folderLister interface {
	Namespaces() (imapconn.Namespaces, error)
	List() ([]imapconn.Folder, error)
	Statuses(wires []string) (stats map[string]imapconn.Status, errs map[string]error, err error)
}
