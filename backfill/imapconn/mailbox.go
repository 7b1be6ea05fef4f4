package imapconn

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Folder is a mailbox as a server lists it.
type Folder struct {
	// Name is the name in UTF-8 with the server's own separator; the name on the
	// wire when that is not modified UTF-7.
	Name string
	Wire string // the name as the server writes it
	// Delim separates the levels of Name; empty when there are none.
	Delim      string
	Attrs      []string // in lower case, with the backslash
	Subscribed bool
}

// Selectable tells whether the folder can hold messages.
func (f Folder) Selectable() bool {
	return !slices.Contains(f.Attrs, `\noselect`) && !slices.Contains(f.Attrs, `\nonexistent`)
}

// Uses of a folder (RFC 6154, 2) that are carried over.
var uses = []string{`\Archive`, `\Drafts`, `\Junk`, `\Sent`, `\Trash`}

// Use gives the special use of the folder, or "".
func (f Folder) Use() string {
	for _, u := range uses {
		if slices.Contains(f.Attrs, strings.ToLower(u)) {
			return u
		}
	}
	return ""
}

// Namespaces are the name prefixes of a server (RFC 2342).
type Namespaces struct {
	Prefix string   // of the user's own folders
	Delim  string   // of the user's own folders
	Others []string // prefixes of folders that belong to other users, or to all
}

// Namespaces asks for the namespaces. A server without the extension has an
// empty prefix, and the separator that LIST names.
func (s *Session) Namespaces() (Namespaces, error) {
	ask := &asking{s: s}
	answer := ask.namespaces()
	if err := ask.run(); err != nil {
		return Namespaces{}, err
	}
	return answer()
}

func (a *asking) namespaces() func() (Namespaces, error) {
	var ns Namespaces
	separator := func(r *response) {
		if f, ok := parseList(r); ok {
			ns.Delim = f.Delim
		}
	}
	if !a.s.Has("NAMESPACE") {
		told := a.add(newCommand(`LIST "" ""`), separator)
		return func() (Namespaces, error) {
			err := told()
			return ns, err
		}
	}
	told := a.add(newCommand("NAMESPACE"), func(r *response) {
		if r.name == "NAMESPACE" {
			ns = parseNamespaces(r.rest)
		}
	})
	return func() (Namespaces, error) {
		if err := told(); err != nil || ns.Delim != "" {
			return ns, err
		}
		err := a.s.run(newCommand(`LIST "" ""`), separator)
		return ns, err
	}
}

func parseNamespaces(b []byte) Namespaces {
	var ns Namespaces
	vs, err := parseValues(b)
	if err != nil || len(vs) == 0 {
		return ns
	}
	for _, d := range vs[0].list {
		if len(d.list) >= 2 {
			ns.Prefix, _ = decodeOrWire(d.list[0].str)
			if !d.list[1].isNil() {
				ns.Delim = d.list[1].str
			}
			break
		}
	}
	for _, v := range vs[1:] {
		for _, d := range v.list {
			if len(d.list) > 0 && d.list[0].str != "" {
				name, _ := decodeOrWire(d.list[0].str)
				ns.Others = append(ns.Others, name)
			}
		}
	}
	return ns
}

func decodeOrWire(wire string) (string, bool) {
	if name, err := DecodeName(wire); err == nil {
		return name, true
	}
	return wire, false
}

// List gives all folders, with their uses and subscriptions where the server
// tells them.
func (s *Session) List() ([]Folder, error) {
	ask := &asking{s: s}
	answer := ask.list(nil)
	if err := ask.run(); err != nil {
		return nil, err
	}
	return answer()
}

// list asks for all folders, and where status is not nil and the server can do
// that in one step (RFC 5819) for the status of each, by its name on the wire.
func (a *asking) list(status map[string]Status) func() ([]Folder, error) {
	c := newCommand(`LIST "" "*"`)
	extended := a.s.Has("LIST-EXTENDED")
	options := "SUBSCRIBED"
	if a.s.Has("SPECIAL-USE") {
		options += " SPECIAL-USE"
	}
	if status != nil && a.s.listsStatus() {
		options += " STATUS (" + a.s.statusItems() + ")"
	}
	if extended {
		c.raw("RETURN (" + options + ")")
	}
	all := a.listing(c, "LIST", status)
	if extended {
		return all
	}
	subscribed := a.listing(newCommand(`LSUB "" "*"`), "LSUB", nil)
	return func() ([]Folder, error) {
		folders, err := all()
		if err != nil {
			return nil, err
		}
		subs, err := subscribed()
		if err != nil {
			return nil, err
		}
		yes := map[string]bool{}
		for _, sub := range subs {
			yes[sub.Wire] = sub.Selectable()
		}
		for i := range folders {
			folders[i].Subscribed = yes[folders[i].Wire]
		}
		return folders, nil
	}
}

// listsStatus tells whether LIST gives the status of folders, too (RFC 5819).
func (s *Session) listsStatus() bool { return s.Has("LIST-EXTENDED") && s.Has("LIST-STATUS") }

// listing runs LIST or LSUB.
func (a *asking) listing(c *command, name string, status map[string]Status) func() ([]Folder, error) {
	var folders []Folder
	seen := map[string]bool{}
	var odd error
	answer := a.add(c, func(r *response) {
		if st, ok := parseStatusData(r); ok && status != nil && st.UIDValidity != 0 {
			status[statusName(r)] = st
		}
		if r.name != name {
			return
		}
		f, ok := parseList(r)
		if !ok && name == "LIST" {
			// Passed over, the folder and its mail would be missing in silence.
			odd = fmt.Errorf("%s: a folder cannot be told from %q: rename it on the server, or have the server's answer mended", name, printable(string(r.rest)))
		}
		if ok && !seen[f.Wire] {
			seen[f.Wire] = true
			folders = append(folders, f)
		}
	})
	return func() ([]Folder, error) {
		if err := answer(); err != nil {
			return folders, err
		}
		return folders, odd
	}
}

// parseList reads the data of LIST and LSUB.
func parseList(r *response) (Folder, bool) {
	if r.name != "LIST" && r.name != "LSUB" {
		return Folder{}, false
	}
	vs, err := parseValues(r.rest)
	if err != nil || len(vs) < 3 || !vs[0].isList {
		return Folder{}, false
	}
	f := Folder{Wire: vs[2].str}
	for _, a := range vs[0].list {
		f.Attrs = append(f.Attrs, strings.ToLower(a.str))
	}
	f.Subscribed = slices.Contains(f.Attrs, `\subscribed`)
	if !vs[1].isNil() {
		f.Delim = vs[1].str
	}
	f.Name, _ = decodeOrWire(f.Wire)
	if strings.EqualFold(f.Name, "INBOX") {
		f.Name = "INBOX"
	}
	return f, true
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

func parseUint32(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // 0 is "not told"
	return uint32(n)
}

func parseInt(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64) // 0 is "not told"
	return max(n, 0)
}

// Selected is the state of the folder that is open.
type Selected struct {
	UIDValidity uint32
	UIDNext     uint32
	Exists      uint32
	ModSeq      uint64 // 0 without CONDSTORE
	// Permanent are the flags that last (RFC 3501, 7.1); AnyKeyword tells that
	// new keywords may be made.
	Permanent  []string
	AnyKeyword bool
	ReadOnly   bool // the server opened it so that nothing can be changed
}

// CanKeep tells whether the folder keeps a flag.
func (s Selected) CanKeep(flag string) bool {
	if s.AnyKeyword && !strings.HasPrefix(flag, `\`) {
		return true
	}
	return slices.ContainsFunc(s.Permanent, func(p string) bool { return strings.EqualFold(p, flag) })
}

// Select opens a folder by its name on the wire for reading and writing.
func (s *Session) Select(wire string) (Selected, error) { return s.open("SELECT", wire) }

func (s *Session) open(verb, wire string) (Selected, error) {
	var sel Selected
	c := newCommand(verb)
	if err := c.str(wire); err != nil {
		return sel, err
	}
	told := false
	if s.broken != nil {
		return sel, s.broken
	}
	answer, err := s.roundTrip(c, func(r *response) { told = sel.take(r) || told })
	if err != nil {
		return sel, s.fail(fmt.Errorf("%s: %w", verb, err))
	}
	if err := answer.err(verb); err != nil {
		return sel, err
	}
	sel.ReadOnly = answer.code == "READ-ONLY"
	if !told {
		// RFC 3501, 7.1: without PERMANENTFLAGS all flags of FLAGS last.
		sel.AnyKeyword = len(sel.Permanent) == 0
	}
	if sel.UIDValidity == 0 || sel.UIDNext == 0 {
		st, errs, err := s.Statuses([]string{wire})
		if err != nil {
			return sel, err
		}
		if errs[wire] != nil {
			return sel, fmt.Errorf("%s: the server does not tell UIDVALIDITY and UIDNEXT: %w", verb, errs[wire])
		}
		sel.UIDValidity, sel.UIDNext = st[wire].UIDValidity, st[wire].UIDNext
	}
	return sel, nil
}

// take takes what a response tells of the folder; true for PERMANENTFLAGS.
func (s *Selected) take(r *response) bool {
	switch {
	case r.name == "EXISTS":
		s.Exists = r.num
	case r.name == "FLAGS" && len(s.Permanent) == 0:
		s.flags(r.rest)
	case r.code == "UIDVALIDITY":
		s.UIDValidity = parseUint32(r.arg)
	case r.code == "UIDNEXT":
		s.UIDNext = parseUint32(r.arg)
	case r.code == "HIGHESTMODSEQ":
		s.ModSeq, _ = strconv.ParseUint(r.arg, 10, 64)
	case r.code == "PERMANENTFLAGS":
		s.Permanent, s.AnyKeyword = nil, false
		s.flags([]byte(r.arg))
		return true
	}
	return false
}

func (s *Selected) flags(b []byte) {
	vs, err := parseValues(b)
	if err != nil || len(vs) == 0 {
		return
	}
	for _, v := range vs[0].list {
		if v.str == `\*` {
			s.AnyKeyword = true
			continue
		}
		s.Permanent = append(s.Permanent, v.str)
	}
}

// Create makes a folder by its name on the wire; a use is given along where
// the server can take it (RFC 6154, 3). A folder that is there already is no
// error.
func (s *Session) Create(wire, use string) error {
	c, err := createCommand(s, wire, use)
	if err != nil {
		return err
	}
	err = s.run(c, nil)
	var e *Error
	if errors.As(err, &e) && e.Code == "USEATTR" {
		return s.Create(wire, "")
	}
	return existing(err)
}

// Subscribe subscribes to a folder by its name on the wire.
func (s *Session) Subscribe(wire string) error {
	c := newCommand("SUBSCRIBE")
	if err := c.str(wire); err != nil {
		return err
	}
	return s.run(c, nil)
}

// Store adds and removes flags of messages in the selected folder.
func (s *Session) Store(uids []uint32, add, remove []string) error {
	for _, set := range FormatUIDs(uids, 4000) {
		for _, f := range []struct {
			op    string
			flags []string
		}{{"+FLAGS.SILENT", add}, {"-FLAGS.SILENT", remove}} {
			if len(f.flags) == 0 {
				continue
			}
			c := newCommand("UID STORE").raw(set).raw(f.op).raw("(" + strings.Join(f.flags, " ") + ")")
			if err := s.run(c, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// Expunge deletes messages of the selected folder, and no others (RFC 4315, 2.1):
// only where the server has UIDPLUS. UIDs that are not there are no error.
func (s *Session) Expunge(uids []uint32) error {
	if !s.Has("UIDPLUS") {
		return errors.New("expunge: the server has no UIDPLUS: it would delete what others marked, too")
	}
	if err := s.Store(uids, []string{`\Deleted`}, nil); err != nil {
		return err
	}
	for _, set := range FormatUIDs(uids, 4000) {
		if err := s.run(newCommand("UID EXPUNGE").raw(set), nil); err != nil {
			return err
		}
	}
	return nil
}

// FormatUIDs writes UIDs, ascending, as sequence sets of at most limit octets
// each, with ranges where they are without gaps.
func FormatUIDs(uids []uint32, limit int) []string {
	var sets []string
	var b []byte
	for i := 0; i < len(uids); {
		j := i
		for j+1 < len(uids) && uids[j+1] == uids[j]+1 {
			j++
		}
		part := strconv.AppendUint(nil, uint64(uids[i]), 10)
		if j > i {
			part = strconv.AppendUint(append(part, ':'), uint64(uids[j]), 10)
		}
		if len(b) > 0 && len(b)+1+len(part) > limit {
			sets, b = append(sets, string(b)), nil
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = append(b, part...)
		i = j + 1
	}
	if len(b) > 0 {
		sets = append(sets, string(b))
	}
	return sets
}
