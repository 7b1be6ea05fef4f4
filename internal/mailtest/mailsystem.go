package mailtest

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

// MailsystemConfig says what kind of mail system a [Mailsystem] plays. The zero value speaks SMTP and IMAP without TLS on
// free loopback ports, with "/" between folders and no master login.
type MailsystemConfig struct {
	// Name is the host name in greetings, and with it the origin of UIDVALIDITY values; empty means mail.test.
	Name string
	// TLS holds the certificate. With it both protocols offer STARTTLS, and IMAP refuses logins in clear text;
	// ImplicitTLS has them speak TLS from the first byte instead.
	TLS         *tls.Config
	ImplicitTLS bool
	// LMTP makes the delivery side LMTP instead of SMTP.
	LMTP bool
	// Separator stands between folder levels; 0 means '/'. Prefix is the personal namespace ("INBOX."): every folder but
	// INBOX must begin with it.
	Separator rune
	Prefix    string
	// SpecialUse are folders that each user gets, with their RFC 6154 attribute. Names are without Prefix.
	SpecialUse map[string]imap.MailboxAttr
	// MasterUser and MasterPassword let an operator into every mailbox: as "user*master" (MasterSeparator, default "*"),
	// and by AUTHENTICATE PLAIN with the user as authorization identity (RFC 4616).
	MasterUser, MasterPassword, MasterSeparator string
	// OAuthToken, when set, is accepted by AUTHENTICATE XOAUTH2 for every user.
	OAuthToken string
	// FirstUIDValidity is the UIDVALIDITY of a user's first folder; later folders count up. 0 derives one from Name, so
	// that two systems do not agree by accident.
	FirstUIDValidity uint32
	// TraceHeaders puts Return-Path and Delivered-To on top of delivered mail, as most mail systems do.
	TraceHeaders bool
	// Caps replaces the IMAP capabilities. Nil means IMAP4rev1 with NAMESPACE, UIDPLUS, ESEARCH, LIST-EXTENDED,
	// LIST-STATUS, MOVE, STATUS=SIZE, CHILDREN, SPECIAL-USE and CREATE-SPECIAL-USE.
	Caps imap.CapSet
	// SMTPHook and IMAPHook script faults; see [Sink.SetHook] and [Mailsystem.SetIMAPHook] to change them later.
	SMTPHook Hook
	IMAPHook IMAPHook
}

// IMAPEvent is what an [IMAPHook] is asked about.
type IMAPEvent struct {
	Conn    int    // number of the connection, from 1
	User    string // the mailbox's owner
	Command string // LOGIN, SELECT, LIST, STATUS, CREATE, APPEND, FETCH, SEARCH, STORE, EXPUNGE
	Folder  string // where it applies to one
	Size    int64  // of the literal, APPEND only
}

// IMAPHook decides whether an IMAP command may run. Nil runs it. An *imap.Error becomes the reply as it is, [ErrDropBefore]
// and [ErrDropAfter] cut the connection, and any other error becomes a NO with its text. It is called from several
// goroutines at a time.
type IMAPHook func(IMAPEvent) error

var (
	// ErrDropBefore cuts the connection before the command did anything.
	ErrDropBefore = errors.New("mailtest: drop the connection before the command")
	// ErrDropAfter carries the command out and cuts the connection in place of the reply: the case in which a client
	// cannot know whether its message was appended.
	ErrDropAfter = errors.New("mailtest: drop the connection after the command")
)

// StoredMessage is one message in a folder.
type StoredMessage struct {
	UID          uint32
	Flags        []string // sorted, in the spelling in which they were set first
	InternalDate time.Time
	Body         []byte
}

// Mailsystem is a mail system in one process: an SMTP or LMTP [Sink] that delivers into mailboxes, and an IMAP server over
// the same mailboxes. Make one with [NewMailsystem].
//
// The IMAP protocol is go-imap's server, the mailboxes are our own: byte for byte what was appended, with separators,
// namespaces, special-use folders, and no news about a message before its EXISTS. It has no CONDSTORE, QRESYNC or
// MULTIAPPEND and keeps all mail in memory: green tests on it do not replace those against Dovecot.
type Mailsystem struct {
	cfg  MailsystemConfig
	sink *Sink
	imap *imapserver.Server
	wg   sync.WaitGroup

	mu       sync.Mutex
	users    map[string]*mailUser
	hook     IMAPHook
	ln       *trackListener
	addr     string
	conns    int
	sessions sync.WaitGroup
	closed   bool
}

// NewMailsystem starts a mail system without users.
func NewMailsystem(cfg MailsystemConfig) (*Mailsystem, error) {
	cfg.Name = cmp.Or(cfg.Name, "mail.test")
	cfg.Separator = cmp.Or(cfg.Separator, '/')
	cfg.MasterSeparator = cmp.Or(cfg.MasterSeparator, "*")
	cfg.FirstUIDValidity = cmp.Or(cfg.FirstUIDValidity, crc32.ChecksumIEEE([]byte(cfg.Name))%4000+2)
	if cfg.Caps == nil {
		cfg.Caps = defaultCaps()
	}
	m := &Mailsystem{cfg: cfg, users: make(map[string]*mailUser), hook: cfg.IMAPHook}
	m.imap = imapserver.New(&imapserver.Options{
		NewSession:   m.newSession,
		Caps:         cfg.Caps,
		Logger:       log.New(io.Discard, "", 0),
		TLSConfig:    cfg.TLS,
		InsecureAuth: cfg.TLS == nil,
	})
	sink, err := NewSink(SinkConfig{
		LMTP: cfg.LMTP, Hostname: cfg.Name, Hook: cfg.SMTPHook,
		TLS: cfg.TLS, STARTTLS: cfg.TLS != nil && !cfg.ImplicitTLS, ImplicitTLS: cfg.TLS != nil && cfg.ImplicitTLS,
		Users: m.known, Deliver: m.deliver,
	})
	if err != nil {
		return nil, fmt.Errorf("start mail system %s: %w", cfg.Name, err)
	}
	m.sink = sink
	if err := m.IMAPUp(); err != nil {
		_ = sink.Close()
		return nil, fmt.Errorf("start mail system %s: %w", cfg.Name, err)
	}
	return m, nil
}

func defaultCaps() imap.CapSet {
	return imap.CapSet{
		imap.CapIMAP4rev1: {}, imap.CapNamespace: {}, imap.CapUIDPlus: {}, imap.CapESearch: {}, imap.CapListExtended: {},
		imap.CapListStatus: {}, imap.CapMove: {}, imap.CapStatusSize: {}, imap.CapChildren: {}, imap.CapSpecialUse: {},
		imap.CapCreateSpecialUse: {},
	}
}

// IMAPUp listens for IMAP again after IMAPDown, on the same address.
func (m *Mailsystem) IMAPUp() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("start IMAP: the mail system was closed")
	}
	if m.ln != nil {
		return nil
	}
	ln, err := net.Listen("tcp", cmp.Or(m.addr, "127.0.0.1:0"))
	if err != nil {
		return fmt.Errorf("start IMAP: %w", err)
	}
	m.addr = ln.Addr().String()
	m.ln = newTrackListener(ln)
	serve := net.Listener(m.ln)
	if m.cfg.TLS != nil && m.cfg.ImplicitTLS {
		serve = tls.NewListener(serve, m.cfg.TLS)
	}
	m.wg.Go(func() { _ = m.imap.Serve(serve) })
	<-m.ln.ready // Serve and Close of the library must not begin at the same time
	return nil
}

// IMAPDown stops listening for IMAP and cuts every connection; the mail stays.
func (m *Mailsystem) IMAPDown() {
	m.mu.Lock()
	ln := m.ln
	m.ln = nil
	m.mu.Unlock()
	if ln != nil {
		ln.shut()
	}
}

// Close stops both servers and waits for their connections to end. It may be called twice.
func (m *Mailsystem) Close() error {
	err := m.sink.Close()
	m.IMAPDown()
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	if first {
		_ = m.imap.Close() // can only complain about listeners that IMAPDown closed before it
	}
	m.wg.Wait()
	m.sessions.Wait()
	return err
}

// Sink returns the delivery side, with its faults and its record of messages.
func (m *Mailsystem) Sink() *Sink { return m.sink }

// SMTPURL returns the delivery side's URL as Crossfade's configuration wants it.
func (m *Mailsystem) SMTPURL() string { return m.sink.URL("") }

// IMAPAddr returns where IMAP is spoken, host:port.
func (m *Mailsystem) IMAPAddr() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addr
}

// IMAPURL returns the IMAP side's URL as Crossfade's configuration wants it.
func (m *Mailsystem) IMAPURL() string {
	scheme := "imap+insecure"
	switch {
	case m.cfg.TLS != nil && m.cfg.ImplicitTLS:
		scheme = "imaps"
	case m.cfg.TLS != nil:
		scheme = "imap+starttls"
	}
	return scheme + "://" + m.IMAPAddr()
}

// SetIMAPHook replaces the IMAP hook; nil makes the server healthy.
func (m *Mailsystem) SetIMAPHook(h IMAPHook) {
	m.mu.Lock()
	m.hook = h
	m.mu.Unlock()
}

// AddUser makes a mailbox with an INBOX and the special-use folders. The address is the login name; letter case does not
// matter. Adding a user who exists is an error.
func (m *Mailsystem) AddUser(addr, password string) error {
	u := newMailUser(addr, password, m.cfg)
	m.mu.Lock()
	defer m.mu.Unlock()
	key := strings.ToLower(addr)
	if m.users[key] != nil {
		return fmt.Errorf("add user %s to %s: the user exists", addr, m.cfg.Name)
	}
	m.users[key] = u
	return nil
}

func (m *Mailsystem) user(addr string) *mailUser {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.users[strings.ToLower(addr)]
}

func (m *Mailsystem) mustUser(what, addr string) (*mailUser, error) {
	u := m.user(addr)
	if u == nil {
		return nil, fmt.Errorf("%s: %s has no user %s", what, m.cfg.Name, addr)
	}
	return u, nil
}

// Users returns the addresses, sorted.
func (m *Mailsystem) Users() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.users))
}

func (m *Mailsystem) known(addr string) bool { return m.user(addr) != nil }

func (m *Mailsystem) deliver(from, rcpt string, body []byte) error {
	if m.cfg.TraceHeaders {
		body = append(fmt.Appendf(nil, "Return-Path: <%s>\r\nDelivered-To: %s\r\n", from, rcpt), body...)
	}
	_, err := m.Append(rcpt, "INBOX", nil, time.Time{}, body)
	return err
}

// Append puts a message into a folder, which is made when it does not exist, and returns its UID. A zero time means now.
// The folder is named with the system's own separator and prefix.
func (m *Mailsystem) Append(user, folder string, flags []string, t time.Time, body []byte) (uid uint32, err error) {
	u, err := m.mustUser("append", user)
	if err != nil {
		return 0, err
	}
	folder = canonicalFolder(folder)
	if !u.has(folder) {
		if err := u.create(folder, &imap.CreateOptions{}); err != nil {
			return 0, fmt.Errorf("append to %s of %s: make the folder: %w", folder, user, err)
		}
	}
	box, err := u.box(folder)
	if err != nil {
		return 0, fmt.Errorf("append to %s of %s: %w", folder, user, err)
	}
	var l []imap.Flag
	for _, f := range flags {
		l = append(l, imap.Flag(f))
	}
	return uint32(box.append(slices.Clone(body), l, t).UID), nil
}

// List returns the names of a user's folders, sorted, INBOX first.
func (m *Mailsystem) List(user string) ([]string, error) {
	u, err := m.mustUser("list folders", user)
	if err != nil {
		return nil, err
	}
	return u.names(), nil
}

// Count returns how many messages a folder holds; it is cheaper than Messages. A folder that does not exist holds none.
func (m *Mailsystem) Count(user, folder string) (int, error) {
	u, err := m.mustUser("count messages", user)
	if err != nil {
		return 0, err
	}
	box, err := u.box(canonicalFolder(folder))
	if err != nil {
		return 0, nil
	}
	return box.count(), nil
}

// UIDValidity returns a folder's UIDVALIDITY.
func (m *Mailsystem) UIDValidity(user, folder string) (uint32, error) {
	u, err := m.mustUser("read UIDVALIDITY", user)
	if err != nil {
		return 0, err
	}
	box, err := u.box(canonicalFolder(folder))
	if err != nil {
		return 0, fmt.Errorf("read UIDVALIDITY of %s of %s: %w", folder, user, err)
	}
	return box.uidValidity, nil
}

// Messages returns what a folder holds, in UID order. The bodies are the stored ones and must not be changed.
func (m *Mailsystem) Messages(user, folder string) ([]StoredMessage, error) {
	u, err := m.mustUser("read messages", user)
	if err != nil {
		return nil, err
	}
	box, err := u.box(canonicalFolder(folder))
	if err != nil {
		return nil, fmt.Errorf("read messages in %s of %s: %w", folder, user, err)
	}
	var l []StoredMessage
	for _, b := range box.snapshot() {
		msg := StoredMessage{UID: uint32(b.uid), InternalDate: b.time, Body: b.body}
		for _, f := range b.flags {
			msg.Flags = append(msg.Flags, string(f))
		}
		slices.Sort(msg.Flags)
		l = append(l, msg)
	}
	return l, nil
}

func canonicalFolder(name string) string {
	if strings.EqualFold(name, "INBOX") {
		return "INBOX"
	}
	return name
}
