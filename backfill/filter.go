package backfill

import (
	"fmt"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
)

// Filter says what of the source is left out. The zero value leaves out
// nothing. What is left out is never looked at as missing, and is counted in
// every report, plan and verification with the class "filtered". What was copied
// before the filter left it out stays.
type Filter struct {
	// Since and Before bound the internal date: Since <= date < Before. Zero
	// bounds nothing. A message whose date cannot be read is not left out.
	Since, Before time.Time
	// MaxSize leaves out messages with more octets (RFC822.SIZE); zero bounds
	// nothing.
	MaxSize int64
	// Include and Exclude are patterns for names of folders of the source, in
	// UTF-8 with the server's own separator, in which "*" stands for any text,
	// separators too. Case matters, but for INBOX. Without Include all folders
	// are in; Exclude has the last word.
	Include, Exclude []string
}

// messages tells whether single messages are left out, and items what has to be
// known of each of them for that.
func (f Filter) messages() bool { return f.dated() || f.MaxSize > 0 }

func (f Filter) dated() bool { return !f.Since.IsZero() || !f.Before.IsZero() }

func (f Filter) items(it imapconn.Items) imapconn.Items {
	it.Size = it.Size || f.MaxSize > 0
	it.Date = it.Date || f.dated()
	return it
}

// omits tells whether a message is left out.
func (f Filter) omits(m imapconn.Meta) bool {
	if f.MaxSize > 0 && m.Size > f.MaxSize {
		return true
	}
	if m.Date.IsZero() {
		return false
	}
	return !f.Since.IsZero() && m.Date.Before(f.Since) || !f.Before.IsZero() && !m.Date.Before(f.Before)
}

// omitsFolder tells whether a whole folder is left out.
func (f Filter) omitsFolder(name string) bool {
	if len(f.Include) > 0 && !matchAny(f.Include, name) {
		return true
	}
	return matchAny(f.Exclude, name)
}

// mark tells filters apart that leave out different messages of a folder: what
// was finished under one has to be looked at again under the other.
func (f Filter) mark() string {
	if !f.messages() {
		return ""
	}
	return fmt.Sprint(f.Since.UTC().Format(time.RFC3339Nano), " ", f.Before.UTC().Format(time.RFC3339Nano), " ", f.MaxSize)
}

func matchAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if matchName(upInbox(p), upInbox(name)) {
			return true
		}
	}
	return false
}

// upInbox writes INBOX as the first level of a name in upper case (RFC 3501, 5.1).
func upInbox(s string) string {
	const inbox = "INBOX"
	if len(s) < len(inbox) || !strings.EqualFold(s[:len(inbox)], inbox) {
		return s
	}
	if len(s) > len(inbox) && !strings.ContainsRune(`./\*-_:`, rune(s[len(inbox)])) {
		return s // Inboxes
	}
	return inbox + s[len(inbox):]
}

// matchName tells whether a name fits a pattern in which "*" stands for any text.
func matchName(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	last := len(parts) - 1
	rest, ok := strings.CutPrefix(name, parts[0])
	for _, part := range parts[1:last] {
		if !ok {
			return false
		}
		_, rest, ok = strings.Cut(rest, part)
	}
	return ok && strings.HasSuffix(rest, parts[last])
}

// omitted is the problem that tells of what the filter left out of a folder.
func omitted(folder string, n int, whole bool) Problem {
	if whole && n < 0 {
		return Problem{Folder: folder, Class: ClassFiltered, Text: "the filter leaves out the folder, and the source does not tell how many messages it has"}
	}
	if whole {
		return Problem{Folder: folder, Count: n, Class: ClassFiltered, Text: fmt.Sprintf("the filter leaves out the folder, with %d messages", n)}
	}
	return Problem{Folder: folder, Count: n, Class: ClassFiltered, Text: fmt.Sprintf("the filter leaves out %d messages", n)}
}

// sift divides pairings into those that are copied and those that the filter
// leaves out. It comes after the mapping: no folder's place depends on the filter.
func (p *pass) sift(all []pairing) (in, out []pairing) {
	for _, pr := range all {
		if p.filter.omitsFolder(pr.src.Name) {
			out = append(out, pr)
		} else {
			in = append(in, pr)
		}
	}
	return in, out
}

// leaveOut tells of a folder that the filter leaves out.
func (p *pass) leaveOut(pr pairing, n int) {
	p.tally(func(r *Report, _ *Progress) { r.Filtered += max(n, 0) })
	p.note(omitted(pr.src.Name, n, true))
}

// countOf gives the messages of a folder, -1 when the source does not tell.
func countOf(stats map[string]imapconn.Status, pr pairing) int {
	if st, ok := stats[pr.src.Wire]; ok {
		return int(st.Messages)
	}
	return -1
}

// left gives the messages of a list that are copied, and how many are not. Those
// that are paired already stay: they were copied before.
func (p *pass) left(metas []imapconn.Meta, known pairs) (in []imapconn.Meta, n int) {
	f := p.filter
	if !f.messages() {
		return metas, 0
	}
	for _, m := range metas {
		if _, paired := known.dest(m.UID); !paired && f.omits(m) {
			n++
			continue
		}
		in = append(in, m)
	}
	return in, n
}
