package config

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// The kinds of a [Mailbox].
const (
	MailboxMaildir = "maildir"
	MailboxMbox    = "mbox"
	MailboxPOP3    = "pop3"
)

// Mailbox is where old mailboxes are read that IMAP does not reach: trees on the disk, or POP3. The zero value means
// that none is configured.
type Mailbox struct {
	Kind    string // MailboxMaildir, MailboxMbox or MailboxPOP3
	Path    string // of a user's tree, with placeholders
	Inbox   string // with mbox: the file of the INBOX, with placeholders; empty means that it is in the tree
	Layout  string // with maildir: "", "maildir++" or "fs"
	TLS     TLSMode
	Address string // with pop3: host:port, for net.Dial
	Host    string

	text string
}

var pop3Schemes = []schemeInfo{
	{"pop3s", MailboxPOP3, TLSImplicit, "tcp", 995},
	{"pop3+starttls", MailboxPOP3, TLSRequired, "tcp", 110},
	{"pop3+insecure", MailboxPOP3, TLSNone, "tcp", 110},
}

const mailboxHelp = "write maildir:///path, mbox:///path, pop3s://host, pop3+starttls://host or pop3+insecure://host"

// placeholders are what a path says of a user.
var placeholders = []string{"{user}", "{local}", "{domain}"}

// ParseMailbox reads such a URL. The path of a tree is absolute and has a placeholder, or all users would be one.
func ParseMailbox(text string) (Mailbox, error) {
	scheme, rest, found := strings.Cut(text, "://")
	scheme = strings.ToLower(scheme)
	start := len(scheme) + len("://")
	if i := slices.IndexFunc(pop3Schemes, func(s schemeInfo) bool { return s.name == scheme }); found && i >= 0 {
		return parsePOP3(text, rest, start, pop3Schemes[i])
	}
	switch {
	case !found:
		return Mailbox{}, badValue(0, "not a URL: %s", mailboxHelp)
	case scheme == "pop3":
		return Mailbox{}, badValue(0, "scheme pop3:// does not say whether to encrypt: write pop3+starttls://, pop3s:// or pop3+insecure://")
	case strings.HasPrefix(scheme, "imap"):
		return Mailbox{}, badValue(0, "%s:// belongs into the key imap, not into mailbox", scheme)
	case scheme != MailboxMaildir && scheme != MailboxMbox:
		return Mailbox{}, badValue(0, "unknown scheme %q: %s", scheme, mailboxHelp)
	}
	m := Mailbox{Kind: scheme, text: text}
	tree, query, _ := strings.Cut(rest, "?")
	var err error
	if m.Path, err = parseTree(tree); err != nil {
		return Mailbox{}, badValue(start, "%s", err)
	}
	if err := m.parseQuery(query); err != nil {
		return Mailbox{}, badValue(start+len(tree), "%s", err)
	}
	return m, nil
}

func parsePOP3(text, rest string, start int, info schemeInfo) (Mailbox, error) {
	if strings.ContainsAny(rest, "@?#") || strings.Contains(strings.TrimSuffix(rest, "/"), "/") {
		return Mailbox{}, badValue(start, "only scheme://host:port is meant here: give imap_login for the login")
	}
	host, port, err := splitHostPort(strings.TrimSuffix(rest, "/"), info.port)
	if err != nil {
		return Mailbox{}, badValue(start, "%s", err)
	}
	return Mailbox{Kind: MailboxPOP3, TLS: info.tls, Host: host, Address: net.JoinHostPort(host, strconv.Itoa(port)), text: text}, nil
}

// parseTree checks a path with placeholders.
func parseTree(text string) (string, error) {
	bare := text
	for _, p := range placeholders {
		bare = strings.ReplaceAll(bare, p, "x")
	}
	switch {
	case !strings.HasPrefix(text, "/"):
		return "", fmt.Errorf("a path needs three slashes and is absolute, such as maildir:///srv/vmail/{domain}/{local}/Maildir")
	case strings.ContainsAny(bare, "{}"):
		return "", fmt.Errorf("%q has an unknown placeholder: known are %s", text, strings.Join(placeholders, ", "))
	case strings.ContainsAny(text, "\x00#"):
		return "", fmt.Errorf("%q has a character that a path here cannot have", text)
	case bare == text:
		return "", fmt.Errorf("%q is the same for all users: say where theirs differ with %s", text, strings.Join(placeholders, ", "))
	}
	clean := path.Clean(text)
	if slices.Contains(strings.Split(text, "/"), "..") {
		return "", fmt.Errorf("%q leads upwards: write it without ..", text)
	}
	if base, _ := splitTree(clean); base == "/" {
		return "", fmt.Errorf("%q would open every directory of the machine to a user's name: begin with a directory, such as /srv/vmail", text)
	}
	return clean, nil
}

func (m *Mailbox) parseQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return fmt.Errorf("%q makes no sense behind the path: %w", query, err)
	}
	for key, list := range values {
		value := list[len(list)-1]
		switch {
		case len(list) > 1:
			return fmt.Errorf("%s is there twice", key)
		case key == "layout" && m.Kind == MailboxMaildir:
			value = strings.ReplaceAll(value, " ", "+") // what a "+" means in a query
			if value != "maildir++" && value != "fs" {
				return fmt.Errorf("unknown layout %q: maildir++ or fs", value)
			}
			m.Layout = value
		case key == "inbox" && m.Kind == MailboxMbox:
			if m.Inbox, err = parseTree(value); err != nil {
				return fmt.Errorf("inbox: %w", err)
			}
		default:
			return fmt.Errorf("unknown option %q: maildir has layout=, mbox has inbox=", key)
		}
	}
	return nil
}

// splitTree cuts a path in front of the first level with a placeholder.
func splitTree(tree string) (base, rest string) {
	i := strings.Index(tree, "{")
	if i < 0 {
		return path.Dir(tree), path.Base(tree)
	}
	slash := strings.LastIndexByte(tree[:i], '/')
	return max(tree[:slash], "/"), tree[slash+1:]
}

// Tree says where a user's tree lies: a directory that the configuration names, and the path below it, which the
// user's name is part of and which never leads upwards. login is the user's name on this side.
func (m Mailbox) Tree(address, login string) (base, below string, err error) {
	return expandTree(m.Path, address, login)
}

// InboxFile is Tree for the file of the INBOX; empty without one.
func (m Mailbox) InboxFile(address, login string) (base, below string, err error) {
	if m.Inbox == "" {
		return "", "", nil
	}
	return expandTree(m.Inbox, address, login)
}

func expandTree(tree, address, login string) (base, below string, err error) {
	if login == "" {
		login = address
	}
	local, domain := login, ""
	if i := strings.LastIndexByte(login, '@'); i >= 0 {
		local, domain = login[:i], login[i+1:]
	} else if i := strings.LastIndexByte(address, '@'); i >= 0 {
		domain = address[i+1:]
	}
	base, below = splitTree(tree)
	for p, value := range map[string]string{"{user}": login, "{local}": local, "{domain}": domain} {
		if !strings.Contains(below, p) {
			continue
		}
		if value == "" || strings.ContainsAny(value, "/\\{}\x00") {
			return "", "", fmt.Errorf("%q cannot be part of a path (%s of %s): set old_login of this user", value, p, tree)
		}
		below = strings.ReplaceAll(below, p, value)
	}
	for level := range strings.SplitSeq(below, "/") {
		if level == "." || level == ".." {
			return "", "", fmt.Errorf("%q is no path of a user's own (%s)", below, tree)
		}
	}
	return base, below, nil
}

// IsZero reports whether no mailbox is configured.
func (m Mailbox) IsZero() bool { return m.Kind == "" }

// OnDisk reports whether mailboxes are trees on this machine.
func (m Mailbox) OnDisk() bool { return m.Kind == MailboxMaildir || m.Kind == MailboxMbox }

// Loopback reports whether POP3 cannot leave this machine.
func (m Mailbox) Loopback() bool { return isLoopback(m.Host) }

// String returns the URL as it was written.
func (m Mailbox) String() string { return m.text }

// UnmarshalText is [ParseMailbox].
func (m *Mailbox) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMailbox(string(text))
	return err
}

// MarshalText is [Mailbox.String].
func (m Mailbox) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Readable reports whether mailboxes of this side can be read: over IMAP, or otherwise.
func (b *Backend) Readable() bool { return !b.IMAP.IsZero() || !b.Mailbox.IsZero() }

// mailbox checks how mailboxes of one side are reached.
func (k *checker) mailbox(key string, b *Backend) {
	needs := !b.IMAP.IsZero() || b.Mailbox.Kind == MailboxPOP3
	what, also := "imap", key+".imap"
	if b.Mailbox.Kind == MailboxPOP3 {
		what = "pop3"
	}
	switch {
	case b.Mailbox.IsZero():
	case key == "backends.new":
		k.fail(key+".mailbox", "mail is put into new mailboxes over IMAP only: write %s.imap", key)
		return
	case !b.IMAP.IsZero():
		k.fail(key+".mailbox", "%s.imap is set too: mailboxes are read in one way, so remove one of them", key)
		return
	case b.Mailbox.OnDisk() && b.IMAPLogin != nil:
		k.fail(key+".imap_login", "files on the disk need no login: remove it")
		return
	case b.Mailbox.Kind == MailboxPOP3 && b.IMAPLogin != nil && (b.IMAPLogin.As.Bearer() || b.IMAPLogin.Mechanism == MechanismSCRAM):
		k.fail(key+".imap_login", "POP3 takes passwords, by USER or AUTH PLAIN: use as: user, authzid or suffix:*, and the mechanism auto or plain")
		return
	}
	switch {
	case needs && b.IMAPLogin == nil:
		k.fail(key+".imap_login", "missing: %s needs a login, such as {user: master, password_file: ./master.pw}", what)
	case !needs && b.IMAPLogin != nil:
		k.fail(key+".imap_login", "a login without a server: set %s, or remove this", also)
	}
}
