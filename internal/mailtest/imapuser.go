package mailtest

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

// mailUser is one user with the tree of folders.
type mailUser struct {
	addr, password string
	sep            string
	prefix         string

	mu       sync.Mutex
	folders  map[string]*mailFolder
	validity uint32 // UIDVALIDITY of the next folder
}

type mailFolder struct {
	box        *mailbox
	subscribed bool
	use        []imap.MailboxAttr
}

func newMailUser(addr, password string, cfg MailsystemConfig) *mailUser {
	u := &mailUser{
		addr: addr, password: password,
		sep: string(cfg.Separator), prefix: cfg.Prefix,
		folders:  make(map[string]*mailFolder),
		validity: cfg.FirstUIDValidity,
	}
	u.makeLocked("INBOX").subscribed = true
	for _, name := range slices.Sorted(maps.Keys(cfg.SpecialUse)) {
		f := u.makeLocked(cfg.Prefix + name)
		f.subscribed = true
		f.use = []imap.MailboxAttr{cfg.SpecialUse[name]}
	}
	return u
}

// box returns a folder's messages, or the error that IMAP wants for a folder that does not exist.
func (u *mailUser) box(name string) (*mailbox, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.folders[name]; f != nil {
		return f.box, nil
	}
	return nil, no(imap.ResponseCodeNonExistent, "no such folder")
}

// destination is box for APPEND, COPY and MOVE, whose error invites the client to create the folder (RFC 3501, 6.3.11).
func (u *mailUser) destination(name string) (*mailbox, error) {
	b, err := u.box(name)
	if err != nil {
		return nil, no(imap.ResponseCodeTryCreate, "no such folder")
	}
	return b, nil
}

func (u *mailUser) has(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.folders[name] != nil
}

func (u *mailUser) names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.namesLocked()
}

func (u *mailUser) namesLocked() []string {
	l := slices.Sorted(maps.Keys(u.folders))
	if i := slices.Index(l, "INBOX"); i > 0 {
		l = slices.Insert(slices.Delete(l, i, i+1), 0, "INBOX")
	}
	return l
}

func no(code imap.ResponseCode, text string) error {
	return &imap.Error{Type: imap.StatusResponseTypeNo, Code: code, Text: text}
}

// checkName refuses what a server with a namespace prefix refuses.
func (u *mailUser) checkName(name string) error {
	switch {
	case name == "" || strings.Contains(name, u.sep+u.sep) || strings.HasPrefix(name, u.sep):
		return no(imap.ResponseCodeCannot, "invalid folder name")
	case u.prefix != "" && !strings.HasPrefix(name, u.prefix):
		return no(imap.ResponseCodeCannot, "folder names must begin with "+u.prefix)
	}
	return nil
}

// create makes a folder and the levels above it (RFC 3501, 6.3.3).
func (u *mailUser) create(name string, options *imap.CreateOptions) error {
	name = strings.TrimSuffix(name, u.sep)
	if err := u.checkName(name); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.folders[name] != nil {
		return no(imap.ResponseCodeAlreadyExists, "folder exists")
	}
	parts := strings.Split(strings.TrimPrefix(name, u.prefix), u.sep)
	for i := 1; i <= len(parts); i++ {
		level := u.prefix + strings.Join(parts[:i], u.sep)
		if u.folders[level] == nil {
			u.makeLocked(level)
		}
	}
	if options != nil {
		u.folders[name].use = options.SpecialUse
	}
	return nil
}

// makeLocked makes one folder. A name that was used before gets a new UIDVALIDITY (RFC 3501, 2.3.1.1).
func (u *mailUser) makeLocked(name string) *mailFolder {
	f := &mailFolder{box: newMailbox(u.validity)}
	u.validity++
	u.folders[name] = f
	return f
}

func (u *mailUser) delete(name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if name == "INBOX" {
		return no(imap.ResponseCodeCannot, "INBOX cannot be deleted")
	}
	if u.folders[name] == nil {
		return no(imap.ResponseCodeNonExistent, "no such folder")
	}
	delete(u.folders, name)
	return nil
}

// rename takes subfolders along (RFC 3501, 6.3.5).
func (u *mailUser) rename(oldName, newName string) error {
	newName = strings.TrimSuffix(newName, u.sep)
	if err := u.checkName(newName); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case oldName == "INBOX":
		return no(imap.ResponseCodeCannot, "INBOX cannot be renamed here")
	case u.folders[newName] != nil:
		return no(imap.ResponseCodeAlreadyExists, "folder exists")
	case strings.HasPrefix(newName, oldName+u.sep):
		return no(imap.ResponseCodeCannot, "a folder cannot move below itself")
	}
	if u.folders[oldName] == nil {
		return no(imap.ResponseCodeNonExistent, "no such folder")
	}
	for _, name := range u.namesLocked() {
		if name != oldName && !strings.HasPrefix(name, oldName+u.sep) {
			continue
		}
		to := newName + strings.TrimPrefix(name, oldName)
		u.folders[to] = u.folders[name]
		delete(u.folders, name)
	}
	return nil
}

func (u *mailUser) subscribe(name string, on bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.folders[name]
	if f == nil {
		return no(imap.ResponseCodeNonExistent, "no such folder")
	}
	f.subscribed = on
	return nil
}

// list answers LIST and LSUB.
func (u *mailUser) list(w *imapserver.ListWriter, ref string, patterns []string, options *imap.ListOptions) error {
	delim := []rune(u.sep)[0]
	if len(patterns) == 0 { // LIST "" "" asks for the separator
		return w.WriteList(&imap.ListData{Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}, Delim: delim})
	}
	for _, data := range u.listData(ref, patterns, options) {
		if options.ReturnStatus != nil {
			box, err := u.box(data.Mailbox)
			if err != nil {
				continue // deleted since
			}
			data.Status = box.status(data.Mailbox)
		}
		if err := w.WriteList(&data); err != nil {
			return err
		}
	}
	return nil
}

func (u *mailUser) listData(ref string, patterns []string, options *imap.ListOptions) []imap.ListData {
	delim := []rune(u.sep)[0]
	u.mu.Lock()
	defer u.mu.Unlock()
	var l []imap.ListData
	for _, name := range u.namesLocked() {
		f := u.folders[name]
		match := slices.ContainsFunc(patterns, func(p string) bool { return matchFolder(name, delim, ref, p) })
		if !match || options.SelectSubscribed && !f.subscribed || options.SelectSpecialUse && len(f.use) == 0 {
			continue
		}
		l = append(l, imap.ListData{Mailbox: name, Delim: delim, Attrs: u.attrsLocked(name, f, options)})
	}
	return l
}

// matchFolder matches as the library does, and takes a reference the way RFC 3501, 6.3.8 describes it: put in front of the
// pattern. The library's own handling adds a separator between the two.
func matchFolder(name string, delim rune, ref, pattern string) bool {
	if imapserver.MatchList(name, delim, "", ref+pattern) {
		return true
	}
	return name == "INBOX" && strings.EqualFold(ref+pattern, "INBOX")
}

func (u *mailUser) attrsLocked(name string, f *mailFolder, options *imap.ListOptions) []imap.MailboxAttr {
	var attrs []imap.MailboxAttr
	if f.subscribed && (options.ReturnSubscribed || options.SelectSubscribed) {
		attrs = append(attrs, imap.MailboxAttrSubscribed)
	}
	if options.ReturnSpecialUse || options.SelectSpecialUse {
		attrs = append(attrs, f.use...)
	}
	if options.ReturnChildren {
		child := imap.MailboxAttrHasNoChildren
		for other := range u.folders {
			if strings.HasPrefix(other, name+u.sep) {
				child = imap.MailboxAttrHasChildren
				break
			}
		}
		attrs = append(attrs, child)
	}
	return attrs
}
