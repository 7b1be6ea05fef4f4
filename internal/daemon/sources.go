package daemon

import (
	"context"
	"fmt"
	"os"

	"crossfade/backfill"
	"crossfade/backfill/ondisk"
	"crossfade/backfill/pop3"
	"crossfade/config"
	"crossfade/router"
)

// jobFrom is Job for an old mailbox that is not reached over IMAP.
func (s *imapSides) jobFrom(u router.User) (backfill.Job, error) {
	from, err := s.old.source(u.Address, u.OldLogin)
	if err != nil {
		return backfill.Job{}, fmt.Errorf("backends.old.mailbox: %w", err)
	}
	dst, err := s.new.account(u.Address, u.NewLogin)
	if err != nil {
		return backfill.Job{}, err
	}
	return backfill.Job{User: u.Address, From: from, Dest: dst, Host: s.host}, nil
}

// source says where one user's old mailbox is read.
func (s imapSide) source(address, login string) (backfill.Source, error) {
	m := s.mailbox
	if m.Kind == config.MailboxPOP3 {
		return s.pop3(address, login)
	}
	base, below, err := m.Tree(address, login)
	if err != nil {
		return nil, err
	}
	tree := ondisk.Place{Base: base, Path: below}
	if m.Kind == config.MailboxMaildir {
		return ondisk.Maildir{Place: tree, Layout: ondisk.Layout(m.Layout)}, nil
	}
	base, below, err = m.InboxFile(address, login)
	return ondisk.Mbox{Folders: tree, Inbox: ondisk.Place{Base: base, Path: below}}, err
}

func (s imapSide) pop3(address, login string) (backfill.Source, error) {
	a, err := s.account(address, login)
	if err != nil {
		return nil, err
	}
	mode := pop3.TLSStart
	switch s.mailbox.TLS {
	case config.TLSImplicit:
		mode = pop3.TLSImplicit
	case config.TLSNone:
		mode = pop3.TLSNone
	}
	return pop3.Source{
		Server: pop3.Server{Address: s.mailbox.Address, Mode: mode, TLS: s.server.TLS},
		Login:  pop3.Login{User: a.Login.User, Password: a.Login.Password, Authz: a.Login.Authz},
	}, nil
}

// checkSource opens a user's old mailbox and lists its folders.
func checkSource(ctx context.Context, m config.Mailbox, job backfill.Job) Finding {
	f := Finding{What: fmt.Sprintf("backends.old.mailbox %s", m),
		Hint: "is it where the path says, and may the user who runs crossfade read it?"}
	if m.Kind == config.MailboxPOP3 {
		f.Hint = "does the login work by hand, and does nobody else have the mailbox open?"
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	n, err := backfill.NewNumbers(ctx, forgetful{}, job.User)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	box, err := job.From.Open(ctx, n)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	defer box.Close()
	folders, err := box.List()
	if err != nil {
		f.Text = err.Error()
		return f
	}
	f.OK, f.Hint = true, ""
	f.Text = fmt.Sprintf("opened, %d folders", len(folders))
	return f
}

// checkBase looks at the directory below which the trees lie.
func checkBase(m config.Mailbox) []Finding {
	if !m.OnDisk() {
		return nil
	}
	base, _, err := m.Tree("user@example.org", "")
	f := Finding{What: fmt.Sprintf("backends.old.mailbox %s", m)}
	if err == nil {
		_, err = os.ReadDir(base)
	}
	if err != nil {
		f.Text, f.Hint = err.Error(), "the old system's disk has to be mounted, and readable for the user who runs crossfade"
		return []Finding{f}
	}
	f.OK, f.Text = true, base+" is there"
	return []Finding{f}
}

// forgetful is a ledger that keeps nothing: a check leaves no trace.
type forgetful struct{}

// LoadLedger implements [backfill.Ledger].
func (forgetful) LoadLedger(context.Context, string) (map[string][]byte, error) {
	return map[string][]byte{}, nil
}

// SaveLedger implements [backfill.Ledger].
func (forgetful) SaveLedger(context.Context, string, string, []byte) error { return nil }
