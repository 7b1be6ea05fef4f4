package arc

import "strings"

const (
	// foldAt is the length at which a line is broken (RFC 5322, 2.1.1: 78 characters
	// without CRLF).
	foldAt = 77
	// maxWord bounds what cannot be broken, below the 998 of RFC 5322, 2.1.1.
	maxWord = 900
)

// folder writes a header field in lines.
type folder struct {
	b    strings.Builder
	line int // length of the present line
}

func newFolder(name string) *folder {
	f := &folder{line: len(name) + 1}
	f.b.WriteString(name + ":")
	return f
}

// word adds a word with a space or a fold before it.
func (f *folder) word(w string) {
	if f.line+1+len(w) > foldAt {
		f.fold()
	} else {
		f.b.WriteByte(' ')
		f.line++
	}
	f.add(w)
}

// glue adds what belongs to the word before it, with a fold before it where the
// line would be too long. In tags that is no part of the value.
func (f *folder) glue(w string) {
	if f.line+len(w) > foldAt {
		f.fold()
	}
	f.add(w)
}

func (f *folder) fold() {
	f.b.WriteString("\r\n\t")
	f.line = 1
}

func (f *folder) add(w string) {
	f.b.WriteString(w)
	f.line += len(w)
}

// end gives the field, to which more may be added yet.
func (f *folder) end() string { return f.b.String() + "\r\n" }

// Results gives what an AAR says of what was found out here: the results of all
// Authentication-Results fields of one authserv-id among header lines, in one
// (RFC 8617, 4.1.1). It is empty when there are none.
func Results(lines, authservID string) string {
	var all []string
	for _, field := range fieldsOf(lines) {
		name, text, _ := strings.Cut(field, ":")
		if !strings.EqualFold(strings.TrimRight(name, " \t"), "Authentication-Results") {
			continue
		}
		id, rest, _ := strings.Cut(text, ";")
		words := strings.Fields(id)
		if len(words) == 0 || !strings.EqualFold(words[0], authservID) {
			continue
		}
		rest = strings.Trim(strings.Join(strings.Fields(rest), " "), "; ")
		if rest != "" && rest != "none" {
			all = append(all, rest)
		} else if all == nil {
			all = []string{}
		}
	}
	switch {
	case all == nil:
		return ""
	case len(all) == 0:
		return authservID + "; none"
	}
	return authservID + "; " + strings.Join(all, "; ")
}

// fieldsOf takes header lines apart.
func fieldsOf(lines string) []string {
	var out []string
	for line := range strings.Lines(lines) {
		if last := len(out) - 1; last >= 0 && (line[0] == ' ' || line[0] == '\t') {
			out[last] += line
			continue
		}
		out = append(out, line)
	}
	return out
}
