package matrix

import (
	"path/filepath"
	"testing"

	"crossfade/internal/mailtest/realtest"
)

// server is one side of a pair.
type server struct {
	name string
	*realtest.IMAP
	// inbox is the directory in which a user's INBOX keeps its files, for servers
	// that take what is put there; nil for others.
	inbox  func(user string) string
	mbsync bool // mbsync is asked about it
	// keepsDeleted: it has no UIDPLUS, so that deletions cannot be carried over to it.
	keepsDeleted bool
}

// bare is what is left of a server's capabilities that has none but those of
// RFC 3501.
const bare = "IMAP4rev1"

// startServers starts one of each kind. Cyrus 2's names only in the long form.
func startServers(t testing.TB) []server {
	t.Helper()
	special := map[string]string{"Sent Items": `\Sent`, "Papierkorb": `\Trash`}
	dovecot := func(name string, o realtest.DovecotOptions) server {
		o.MailFsync = "never"
		d := realtest.StartDovecot(t, o)
		s := server{name: name, IMAP: &d.IMAP, mbsync: true, keepsDeleted: o.Capability == bare}
		if o.Layout != realtest.Sdbox {
			s.inbox = func(user string) string { return filepath.Join(d.MailRoot, user, "Maildir") }
		}
		return s
	}
	courier := realtest.StartCourier(t, realtest.CourierOptions{})
	servers := []server{
		dovecot("dovecot .", realtest.DovecotOptions{Layout: realtest.Dot}),
		dovecot("dovecot INBOX.", realtest.DovecotOptions{Layout: realtest.DotINBOX, SpecialUse: special}),
		dovecot("dovecot sdbox", realtest.DovecotOptions{Layout: realtest.Sdbox, SpecialUse: special}),
		dovecot("dovecot bare", realtest.DovecotOptions{Layout: realtest.Slash, Capability: bare}),
		{name: "cyrus", IMAP: &realtest.StartCyrus(t, realtest.CyrusOptions{}).IMAP},
		{name: "courier", IMAP: &courier.IMAP, inbox: func(user string) string { return filepath.Join(courier.MailRoot, "u-"+user, "Maildir") }},
	}
	if long() {
		servers = append(servers, server{name: "cyrus INBOX.", IMAP: &realtest.StartCyrus(t, realtest.CyrusOptions{Classic: true}).IMAP})
	}
	return servers
}
