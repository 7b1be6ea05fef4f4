package dkim

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// maxTags is the number of tags in one list. The longest in use have a dozen.
const maxTags = 64

// Tag is one tag of a list. Its value has no white space around it; folds within
// it are left as they are.
type Tag struct {
	Name, Value string
	// from and to are where the value and the white space around it lie in the text
	// of the list.
	from, to int
}

// TagList is a list of RFC 6376, 3.2. No name is in it twice.
type TagList []Tag

// ParseTags reads a list: the text of a header field behind its colon, or of a
// key record. An empty tag, a name that is none, and a name that comes twice make
// the whole list invalid.
func ParseTags(text string) (TagList, error) {
	list := make(TagList, 0, min(strings.Count(text, ";")+1, maxTags))
	for at := 0; at < len(text); {
		end := len(text)
		if i := strings.IndexByte(text[at:], ';'); i >= 0 {
			end = at + i
		}
		if end == len(text) && trimFWS(text[at:]) == "" {
			break // behind the semicolon that may end a list
		}
		tag, err := parseTag(text, at, end)
		if err != nil {
			return nil, err
		}
		if _, twice := list.Get(tag.Name); twice {
			return nil, fmt.Errorf("tag %s= is there twice", tag.Name)
		}
		if len(list) == maxTags {
			return nil, fmt.Errorf("more than %d tags", maxTags)
		}
		list = append(list, tag)
		at = end + 1
	}
	if len(list) == 0 {
		return nil, errors.New("no tags")
	}
	return list, nil
}

// parseTag reads what lies between two semicolons.
func parseTag(text string, from, to int) (Tag, error) {
	eq := strings.IndexByte(text[from:to], '=')
	if eq < 0 {
		return Tag{}, errors.New("a tag without =")
	}
	name := trimFWS(text[from : from+eq])
	if !tagName(name) {
		return Tag{}, errors.New("a tag without a valid name")
	}
	value := trimFWS(text[from+eq+1 : to])
	for i := range len(value) {
		if c := value[i]; c < ' ' && !isFWS(c) || c == 0x7F {
			return Tag{}, fmt.Errorf("a control character in tag %s=", name)
		}
	}
	return Tag{Name: name, Value: value, from: from + eq + 1, to: to}, nil
}

// tagName tells whether s is a tag-name: ALPHA *ALNUMPUNC.
func tagName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case i > 0 && (c >= '0' && c <= '9' || c == '_'):
		default:
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Get gives the value of a tag. Names are compared as they are written (RFC 6376,
// 3.2).
func (l TagList) Get(name string) (value string, ok bool) {
	for _, t := range l {
		if t.Name == name {
			return t.Value, true
		}
	}
	return "", false
}

// Without gives the text of the list with the value of a tag, and the white space
// around it, taken out, as the signature is from the text that it covers (RFC
// 6376, 3.7).
func (l TagList) Without(text, name string) string {
	for _, t := range l {
		if t.Name == name {
			return text[:t.from] + text[t.to:]
		}
	}
	return text
}

// Base64 gives the octets of a value, in which there may be folds.
func Base64(value string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(stripFWS(value))
}

// stripFWS takes all white space out of a value.
func stripFWS(s string) string {
	at := strings.IndexAny(s, " \t\r\n")
	if at < 0 {
		return s
	}
	out := make([]byte, at, len(s))
	copy(out, s)
	for i := at; i < len(s); i++ {
		if !isFWS(s[i]) {
			out = append(out, s[i])
		}
	}
	return string(out)
}

func trimFWS(s string) string { return strings.Trim(s, " \t\r\n") }

func isFWS(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
