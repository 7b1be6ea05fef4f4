package backfill

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"crossfade/backfill/imapconn"
)

// side is what a server says of its folders.
type side struct {
	ns      imapconn.Namespaces
	folders []imapconn.Folder
}

// looked is a side with the status of its folders, by their names on the wire.
type looked struct {
	side
	status map[string]imapconn.Status
	errs   map[string]error
}

// pairing says where a folder of the source goes.
type pairing struct {
	src    imapconn.Folder
	name   string // on the destination, in UTF-8
	wire   string // on the destination, as its server writes it
	use    string // of the source folder, when the destination has no folder of that use
	exists bool
}

// useNames are names under which folders of a use go where the server does not
// tell the use: English, German, French, Spanish, Italian, Dutch, Portuguese,
// Polish and the Nordic languages, in lower case.
func useNames(use string) []string {
	switch use {
	case `\Sent`:
		return []string{"sent", "sent items", "sent messages", "sent mail", "sent-mail", "gesendet", "gesendete objekte", "gesendete elemente",
			"envoyés", "éléments envoyés", "messages envoyés", "enviados", "elementos enviados", "mensajes enviados", "posta inviata", "inviati", "inviata",
			"verzonden", "verzonden items", "verzonden berichten", "itens enviados", "mensagens enviadas", "wysłane", "skickat", "sendt", "sendte elementer"}
	case `\Drafts`:
		return []string{"drafts", "draft", "entwürfe", "brouillons", "borradores", "bozze", "concepten", "rascunhos", "wersje robocze", "utkast", "kladder"}
	case `\Trash`:
		return []string{"trash", "deleted items", "deleted messages", "deleted", "papierkorb", "gelöscht", "gelöschte objekte", "gelöschte elemente",
			"corbeille", "éléments supprimés", "papelera", "elementos eliminados", "cestino", "posta eliminata", "elementi eliminati",
			"prullenbak", "verwijderde items", "lixo", "lixeira", "itens excluídos", "itens eliminados", "kosz", "papperskorgen", "slettet post"}
	case `\Junk`:
		return []string{"junk", "spam", "junk e-mail", "junk email", "junk mail", "bulk mail", "junk-e-mail", "unerwünscht", "werbung", "courrier indésirable", "indésirables", "pourriel",
			"correo no deseado", "no deseado", "posta indesiderata", "ongewenste e-mail", "ongewenst", "lixo eletrônico", "lixo eletrónico", "correio electrónico não solicitado", "skräppost", "søppelpost"}
	case `\Archive`:
		return []string{"archive", "archives", "archiv", "archivo", "archivio", "archief", "arquivo", "archiwum", "arkiv"}
	}
	return nil
}

// fold is the form in which names are the same when case does not matter.
func fold(s string) string { return cases.Fold().String(norm.NFC.String(s)) }

// levels takes the name of a folder apart; the prefix of the namespace is not
// part of it, INBOX is its own first level.
func levels(f imapconn.Folder, ns imapconn.Namespaces) []string {
	delim := f.Delim
	if delim == "" {
		delim = ns.Delim
	}
	name := f.Name
	if p := ns.Prefix; p != "" && len(name) > len(p) && strings.EqualFold(name[:len(p)], p) {
		name = name[len(p):]
	}
	if delim == "" {
		return []string{name}
	}
	parts := slices.DeleteFunc(strings.Split(name, delim), func(s string) bool { return s == "" })
	if len(parts) == 0 {
		return []string{name}
	}
	return parts
}

// inOthers tells whether a folder belongs to somebody else, or to all.
func inOthers(f imapconn.Folder, ns imapconn.Namespaces) bool {
	return slices.ContainsFunc(ns.Others, func(p string) bool {
		return strings.HasPrefix(f.Name, p) || f.Name+f.Delim == p
	})
}

// usesOf finds the folders of each use: by what the server says, else by name.
func usesOf(s side) map[string]imapconn.Folder {
	found := map[string]imapconn.Folder{}
	for _, f := range s.folders {
		if u := f.Use(); u != "" && f.Selectable() && !inOthers(f, s.ns) {
			if _, ok := found[u]; !ok {
				found[u] = f
			}
		}
	}
	for _, use := range []string{`\Sent`, `\Drafts`, `\Trash`, `\Junk`, `\Archive`} {
		if _, ok := found[use]; ok {
			continue
		}
		if f, ok := useByName(s, use); ok {
			found[use] = f
		}
	}
	return found
}

func useByName(s side, use string) (imapconn.Folder, bool) {
	for _, name := range useNames(use) {
		for _, f := range s.folders {
			l := levels(f, s.ns)
			if f.Use() == "" && f.Selectable() && !inOthers(f, s.ns) && len(l) == 1 && fold(l[0]) == fold(name) {
				return f, true
			}
		}
	}
	return imapconn.Folder{}, false
}

// mapper finds a place on the destination for each folder of the source, and
// never the same place for two.
type mapper struct {
	src, dst side
	delim    string
	byFold   map[string][]imapconn.Folder // folders of the destination
	taken    map[string]string            // folded name on the destination: levels of the source, joined
	placed   map[string][]string          // levels of the source, joined: levels on the destination
	holds    map[string]bool              // folded name on the destination: it is a folder's own place, not just a parent's
	useOf    map[string]string            // name on the wire of the source: its use
	dstUse   map[string]imapconn.Folder
	problems []Problem
}

func newMapper(src, dst side) *mapper {
	m := &mapper{
		src: src, dst: dst, delim: dst.ns.Delim,
		byFold: map[string][]imapconn.Folder{}, taken: map[string]string{}, placed: map[string][]string{}, holds: map[string]bool{},
		useOf: map[string]string{}, dstUse: usesOf(dst),
	}
	for use, f := range usesOf(src) {
		m.useOf[f.Wire] = use
	}
	for _, f := range dst.folders {
		k := fold(strings.Join(levels(f, dst.ns), "\x00"))
		m.byFold[k] = append(m.byFold[k], f)
	}
	return m
}

// mapFolders finds the place of each folder that can hold messages. known are
// places from earlier passes, wire names of source and destination; that of
// atticSource is no folder of the source.
func mapFolders(src, dst side, known map[string]string) ([]pairing, []Problem) {
	m := newMapper(src, dst)
	if name, err := imapconn.DecodeName(known[atticSource]); err == nil && name != "" {
		m.take(atticSource, levels(imapconn.Folder{Name: name}, dst.ns))
	}
	var todo []imapconn.Folder
	for _, f := range src.folders {
		if f.Selectable() && !inOthers(f, src.ns) {
			todo = append(todo, f)
		}
	}
	// Known places first, then those by use, then from the top down, so that
	// children follow their parents.
	rank := func(f imapconn.Folder) int {
		switch {
		case f.Name == "INBOX":
			return 0
		case known[f.Wire] != "":
			return 1
		case m.useOf[f.Wire] != "" && m.hasUse(m.useOf[f.Wire]):
			return 2
		}
		return 2 + len(levels(f, src.ns))
	}
	slices.SortStableFunc(todo, func(a, b imapconn.Folder) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.Wire, b.Wire)
	})
	var out []pairing
	for _, f := range todo {
		p := m.place(f, known[f.Wire])
		m.holds[m.spot(p.name)] = true
		out = append(out, p)
	}
	return out, m.problems
}

func (m *mapper) hasUse(use string) bool {
	_, ok := m.dstUse[use]
	return ok
}

func (m *mapper) place(f imapconn.Folder, known string) pairing {
	path := levels(f, m.src.ns)
	id := strings.Join(path, "\x00")
	p := pairing{src: f, use: m.useOf[f.Wire]}
	switch d, ok := m.dstUse[p.use]; {
	case f.Name == "INBOX":
		if m.src.ns.Prefix != "" {
			id = "\x00" + id // not the folder INBOX.INBOX
		}
		m.take(id, []string{"INBOX"})
		p.name, p.wire, p.exists = "INBOX", "INBOX", true
		return p
	case known != "":
		name, err := imapconn.DecodeName(known)
		if err != nil {
			name = known
		}
		m.take(id, levels(imapconn.Folder{Name: name}, m.dst.ns))
		p.name, p.wire = name, known
		p.exists = slices.ContainsFunc(m.dst.folders, func(d imapconn.Folder) bool { return d.Wire == known && d.Selectable() })
		return p
	case p.use != "" && ok && m.free(id, levels(d, m.dst.ns)):
		m.take(id, levels(d, m.dst.ns))
		p.name, p.wire, p.use, p.exists = d.Name, d.Wire, "", true
		return p
	}
	return m.placeByName(p, path)
}

// placeByName walks down the levels; each gets a name that is free.
func (m *mapper) placeByName(p pairing, path []string) pairing {
	if m.dst.ns.Prefix != "" && m.belowInbox(p.src) {
		path = path[1:] // all folders of the destination are below INBOX already
	}
	if m.hasUse(p.use) {
		p.use = "" // another folder has it
	}
	var to []string
	for i := range path {
		id := strings.Join(levels(p.src, m.src.ns)[:len(levels(p.src, m.src.ns))-len(path)+i+1], "\x00")
		at, ok := m.placed[id]
		if ok && i == len(path)-1 && m.holds[m.spotOf(at)] {
			// Another folder with the same levels: "a//b" beside "a/b".
			id, ok = id+"\x00\x00"+p.src.Wire, false
		}
		if ok {
			to = at
			continue
		}
		if i == 0 && m.dst.ns.Prefix == "" && m.belowInbox(p.src) {
			to = []string{"INBOX"}
			continue
		}
		to = m.freeBelow(id, to, m.clean(path[i]))
		m.take(id, to)
	}
	p.name = m.dst.ns.Prefix + strings.Join(to, m.delim)
	p.wire = imapconn.EncodeName(p.name)
	if d, ok := m.existing(to); ok {
		p.name, p.wire, p.exists = d.Name, d.Wire, d.Selectable()
	}
	if slices.Equal(path, to) || m.sameButUse(path, to) {
		return p
	}
	m.problems = append(m.problems, Problem{Folder: p.src.Name, Class: ClassName, Text: fmt.Sprintf("it is called %q on the destination", p.name)})
	return p
}

// belowInbox tells whether a folder has the INBOX itself as its first level.
func (m *mapper) belowInbox(f imapconn.Folder) bool {
	l := levels(f, m.src.ns)
	return m.src.ns.Prefix == "" && len(l) > 1 && strings.EqualFold(l[0], "INBOX")
}

// sameButUse tells whether only the parents differ, which were mapped by use or
// already have a problem of their own, or only the case differs, because the
// destination has the folder so.
func (m *mapper) sameButUse(path, to []string) bool {
	return len(path) == len(to) && fold(path[len(path)-1]) == fold(to[len(to)-1])
}

// existing finds a folder of the destination by its levels: the same name, else
// the only one that differs in case.
func (m *mapper) existing(to []string) (imapconn.Folder, bool) {
	all := m.byFold[fold(strings.Join(to, "\x00"))]
	for _, d := range all {
		if slices.Equal(levels(d, m.dst.ns), to) {
			return d, true
		}
	}
	if len(all) == 1 {
		return all[0], true
	}
	return imapconn.Folder{}, false
}

func (m *mapper) free(id string, to []string) bool {
	by, ok := m.taken[fold(strings.Join(to, "\x00"))]
	return !ok || by == id
}

// spot is a name on the destination as a place.
func (m *mapper) spot(name string) string {
	return m.spotOf(levels(imapconn.Folder{Name: name}, m.dst.ns))
}

func (m *mapper) spotOf(levels []string) string { return fold(strings.Join(levels, "\x00")) }

func (m *mapper) take(id string, to []string) {
	m.taken[fold(strings.Join(to, "\x00"))] = id
	m.placed[id] = to
}

// freeBelow gives name below parent, with a number when another folder of the
// source, or one that is the same but for case, has the name.
func (m *mapper) freeBelow(id string, parent []string, name string) []string {
	to := append(slices.Clone(parent), name)
	for n := 2; !m.free(id, to); n++ {
		to[len(to)-1] = name + "-" + strconv.Itoa(n)
	}
	return to
}

// clean replaces in one level what the destination would take for a separator,
// and control characters.
func (m *mapper) clean(level string) string {
	sub := "_"
	if m.delim == "_" {
		sub = "-"
	}
	if m.delim != "" {
		level = strings.ReplaceAll(level, m.delim, sub)
	}
	level = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, level)
	return level
}

const (
	shortLevel = 64 // octets of a level on the wire that every server takes
	fewLevels  = 3
)

// otherNames are names for a folder whose own is refused, the likest first:
// without what servers dislike, then with short levels, then with few of them,
// and in the end with a sum of it, which no other one has.
// What is cut off is told apart by a sum.
func otherNames(name string, ns imapconn.Namespaces) []string {
	plain := plainName(name, ns.Prefix, ns.Delim)
	out := []string{plain}
	path := levels(imapconn.Folder{Name: plain}, ns)
	sum := sha256.Sum256([]byte(name))
	tag := "-" + hex.EncodeToString(sum[:4])
	short := slices.Clone(path)
	for i, l := range short {
		short[i] = cutLevel(l, shortLevel, tag)
	}
	if !slices.Equal(short, path) {
		out = append(out, ns.Prefix+strings.Join(short, ns.Delim))
	}
	if len(path) > fewLevels {
		last := cutLevel(strings.Join(path[fewLevels-1:], "-"), shortLevel, tag)
		if !strings.HasSuffix(last, tag) {
			last += tag
		}
		out = append(out, ns.Prefix+strings.Join(append(short[:fewLevels-1:fewLevels-1], last), ns.Delim))
	}
	if end := len(short) - 1; !strings.HasSuffix(short[end], tag) {
		short[end] = cutLevel(short[end], shortLevel-len(tag), "") + tag
		out = append(out, ns.Prefix+strings.Join(short, ns.Delim))
	}
	return out
}

// cutLevel cuts a level that is longer than most octets on the wire, and puts tag
// behind what is left.
func cutLevel(level string, most int, tag string) string {
	if len(imapconn.EncodeName(level)) <= most {
		return level
	}
	r := []rune(level)
	for len(r) > 0 && len(imapconn.EncodeName(string(r)+tag)) > most {
		r = r[:len(r)-1]
	}
	return string(r) + tag
}

// plainName is another name for a folder whose own is refused: what servers
// dislike is replaced, and where there is nothing such, it gets a "_" at its end.
func plainName(name, prefix, delim string) string {
	rest := strings.TrimPrefix(name, prefix)
	plain := prefix + strings.Map(func(r rune) rune {
		// Courier cannot tell characters beyond the first 65,536 apart from errors.
		if strings.ContainsRune(`/\%*~#"<>|:?.`, r) && string(r) != delim || r > 0xffff {
			return '_'
		}
		return r
	}, rest)
	if plain == name {
		return name + "_"
	}
	return plain
}
