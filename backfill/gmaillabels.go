package backfill

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"crossfade/backfill/imapconn"
)

// GmailLabels says what becomes of the labels of a Gmail mailbox.
type GmailLabels string

// The ways to carry labels.
const (
	// GmailFolders puts a message into a folder for each of its labels, as Gmail's
	// own IMAP shows it; one without any goes to the archive. The zero value means
	// this.
	GmailFolders GmailLabels = "folders"
	// GmailKeywords copies each message once, and makes keywords of the users'
	// labels.
	GmailKeywords GmailLabels = "keywords"
	// GmailOff treats Gmail as any other server: All Mail has everything again.
	GmailOff GmailLabels = "off"
)

// The folders that a Gmail mailbox has here whatever its language. No label of a
// user can have a name with a backslash in front: these are the system's.
const (
	gmailInbox   = "INBOX"
	gmailSent    = `\Sent`
	gmailDrafts  = `\Drafts`
	gmailJunk    = `\Junk`
	gmailTrash   = `\Trash`
	gmailArchive = `\Archive`
)

// gmailNames are their names where the destination has no folder of that use.
var gmailNames = []struct{ wire, name string }{
	{gmailSent, "Sent"}, {gmailDrafts, "Drafts"}, {gmailJunk, "Junk"}, {gmailTrash, "Trash"}, {gmailArchive, "Archive"},
}

// systemLabel tells what a label of the system stands for: a folder or a flag.
// Others with a backslash are taken for users' labels, so that none is lost.
func systemLabel(label string) (folder, flag string, ok bool) {
	switch strings.ToLower(label) {
	case `\inbox`:
		return gmailInbox, "", true
	case `\sent`:
		return gmailSent, "", true
	case `\draft`, `\drafts`:
		return gmailDrafts, "", true
	case `\starred`:
		return "", `\Flagged`, true
	case `\important`:
		return "", "$Important", true // RFC 8457, 2
	case `\muted`:
		return "", "$Muted", true
	case `\spam`, `\junk`, `\trash`, `\all`, `\allmail`:
		return "", "", true // the folder that the message lies in says it
	}
	return "", "", false
}

// userLabels gives the labels of a list that are the users' own.
func userLabels(labels []string) []string {
	var out []string
	for _, l := range labels {
		if _, _, system := systemLabel(l); !system {
			out = append(out, l)
		}
	}
	return out
}

// gmailPlace is where the messages with one set of labels go, and the flags that
// they have beside their own.
type gmailPlace struct {
	folders, flags []string
}

// gmailRules turn labels into places.
type gmailRules struct {
	labels   GmailLabels
	keywords map[string]string // of the users' labels, with GmailKeywords
}

// place decides for a message of All Mail.
func (g gmailRules) place(labels []string) gmailPlace {
	var p gmailPlace
	for _, l := range labels {
		folder, flag, system := systemLabel(l)
		switch {
		case flag != "":
			p.flags = append(p.flags, flag)
		case folder != "":
			p.folders = append(p.folders, folder)
		case !system && g.labels == GmailKeywords:
			p.flags = append(p.flags, g.keywords[l])
		case !system:
			p.folders = append(p.folders, l)
		}
	}
	if len(p.folders) == 0 {
		p.folders = []string{gmailArchive}
	}
	if g.labels == GmailKeywords {
		p.folders = []string{firstOf(p.folders)}
	}
	slices.Sort(p.folders)
	slices.Sort(p.flags)
	p.folders, p.flags = slices.Compact(p.folders), slices.Compact(p.flags)
	return p
}

// placeIn decides for a message of Spam or Trash: it is there and nowhere else.
func (g gmailRules) placeIn(folder string, labels []string) gmailPlace {
	p := g.place(labels)
	p.folders = []string{folder}
	return p
}

// firstOf gives the one folder in which a user looks for the message first.
func firstOf(folders []string) string {
	for _, f := range []string{gmailInbox, gmailSent, gmailDrafts} {
		if slices.Contains(folders, f) {
			return f
		}
	}
	return gmailArchive
}

// takenKeywords mean something to mail programs.
var takenKeywords = []string{"junk", "nonjunk", "notjunk", "forwarded", "mdnsent", "redirected", "recent"}

const longestKeyword = 48 // octets: Dovecot takes 50

// gmailKeywords gives each of the users' labels a keyword, and tells of those
// that could not have the plain one. What a keyword is does not depend on the
// order of the labels.
func gmailKeywords(labels []string) (map[string]string, []Problem) {
	labels = slices.Compact(slices.Sorted(slices.Values(labels)))
	plain, users := map[string]string{}, map[string][]string{}
	for _, l := range labels {
		k := plainKeyword(l)
		plain[l] = k
		users[strings.ToLower(k)] = append(users[strings.ToLower(k)], l)
	}
	out := make(map[string]string, len(labels))
	var problems []Problem
	for _, l := range labels {
		k := plain[l]
		same := users[strings.ToLower(k)]
		// One that needed no change has the better right to its name.
		owner := same[0]
		if i := slices.IndexFunc(same, func(s string) bool { return plain[s] == s }); i >= 0 {
			owner = same[i]
		}
		reason := ""
		switch {
		case owner != l:
			reason = fmt.Sprintf("%q has that already", nameOf(owner))
		case slices.Contains(takenKeywords, strings.ToLower(k)):
			reason = "mail programs take that for something else"
		case len(k) > longestKeyword:
			reason = "that is too long"
		}
		if out[l] = k; reason != "" {
			sum := sha256.Sum256([]byte(l))
			out[l] = k[:min(len(k), longestKeyword-9)] + "_" + hex.EncodeToString(sum[:4])
			problems = append(problems, Problem{Folder: nameOf(l), Class: ClassFlag,
				Text: fmt.Sprintf("the label becomes the keyword %q, not %q: %s", out[l], k[:min(len(k), 2*longestKeyword)], reason)})
		}
	}
	return out, problems
}

// plainKeyword writes a label, a name in modified UTF-7, as a keyword (RFC 3501,
// 9: an atom), as Thunderbird does it for its tags.
func plainKeyword(label string) string {
	b := []byte(label)
	for i, c := range b {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`(){%*"\]<>/`, c) >= 0 {
			b[i] = '_'
		}
	}
	if len(b) == 0 || b[0] == '$' {
		return "_" + string(b[min(len(b), 1):]) // $ is for registered keywords (RFC 5788)
	}
	return string(b)
}

// gmailView is what LIST tells of a Gmail mailbox.
type gmailView struct {
	real    [3]string         // All Mail, Spam, Trash on the wire; empty when they are not shown
	inbox   imapconn.Folder   // as it is listed
	users   []imapconn.Folder // folders of users' labels, and levels above them
	special map[string]bool   // of folders here: it is subscribed
	odd     []imapconn.Folder // in the system's own tree, and nothing that is known: chats
}

const (
	gmailAll = iota
	gmailSpam
	gmailBin
)

// viewGmail sorts the folders of a list.
func viewGmail(folders []imapconn.Folder) (gmailView, error) {
	v := gmailView{special: map[string]bool{}}
	has := func(f imapconn.Folder, use string) bool { return slices.Contains(f.Attrs, use) }
	root := ""
	for _, f := range folders {
		if has(f, `\all`) {
			v.real[gmailAll] = f.Wire
			root, _, _ = strings.Cut(f.Wire, "/")
		}
	}
	if v.real[gmailAll] == "" {
		return v, fmt.Errorf("Gmail does not show All Mail to IMAP, and so not the messages without a label: " +
			"let it be shown (Settings, Labels, Show in IMAP), or say backends.old.gmail.labels: off")
	}
	for _, f := range folders {
		switch {
		case f.Name == "INBOX":
			v.inbox = f
		case has(f, `\all`):
			v.special[gmailArchive] = f.Subscribed
		case has(f, `\junk`):
			v.real[gmailSpam], v.special[gmailJunk] = f.Wire, f.Subscribed
		case has(f, `\trash`):
			v.real[gmailBin], v.special[gmailTrash] = f.Wire, f.Subscribed
		case has(f, `\sent`):
			v.special[gmailSent] = f.Subscribed
		case has(f, `\drafts`):
			v.special[gmailDrafts] = f.Subscribed
		case has(f, `\flagged`), has(f, `\important`), f.Wire == root:
		case strings.HasPrefix(f.Wire, root+"/"):
			v.odd = append(v.odd, f)
		default:
			v.users = append(v.users, f)
		}
	}
	return v, nil
}

// folders gives the folders of the mailbox as a pass sees them. labels are those
// that messages have, listed or not.
func (v gmailView) folders(mode GmailLabels, labels []string) []imapconn.Folder {
	out := []imapconn.Folder{{Name: "INBOX", Wire: gmailInbox, Delim: "/", Subscribed: v.inbox.Subscribed}}
	for _, n := range gmailNames {
		if n.wire == gmailJunk && v.real[gmailSpam] == "" || n.wire == gmailTrash && v.real[gmailBin] == "" {
			continue
		}
		out = append(out, imapconn.Folder{Name: n.name, Wire: n.wire, Delim: "/", Attrs: []string{strings.ToLower(n.wire)}, Subscribed: v.special[n.wire]})
	}
	if mode == GmailKeywords {
		return out
	}
	known := map[string]bool{}
	for _, f := range v.users {
		f.Attrs = slices.DeleteFunc(slices.Clone(f.Attrs), func(a string) bool {
			return (a == `\noselect` || a == `\nonexistent`) && slices.Contains(labels, f.Wire)
		})
		known[f.Wire] = true
		out = append(out, f)
	}
	for _, l := range labels {
		if !known[l] {
			known[l] = true
			out = append(out, imapconn.Folder{Name: nameOf(l), Wire: l, Delim: "/"})
		}
	}
	return out
}
