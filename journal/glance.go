package journal

import (
	"bytes"
	"encoding/json"
	"time"
)

// glance is what an index needs of a line.
type glance struct {
	at            time.Time
	id, messageID string
}

// glanceAt takes it out of a line without reading all of that: each line is looked at
// when a block is sealed, and to parse it took more time than the rest of that. What does
// not look as Entry.Line writes it is parsed.
func glanceAt(line []byte) (glance, error) {
	if g, ok := quick(line); ok {
		return g, nil
	}
	e, err := ParseEntry(line)
	return glance{e.At, string(e.ID), e.MessageID}, err
}

// quick reads the members of a line up to the one with the Message-ID, which are in the
// order of Entry.
func quick(line []byte) (g glance, ok bool) {
	at, rest, ok := member(line, `{"t":`)
	kind, rest, ok2 := member(rest, `,"e":`)
	id, rest, ok3 := member(rest, `,"id":`)
	if !ok || !ok2 || !ok3 || len(kind) == 0 || len(id) == 0 {
		return g, false
	}
	t, err := time.Parse(time.RFC3339, string(at))
	if err != nil {
		return g, false
	}
	g = glance{at: t, id: string(id)}
	if string(kind) != string(Accepted) {
		return g, !bytes.Contains(rest, []byte(`"msgid":`))
	}
	if _, behind, ok := quoted(rest, `,"from":`); ok {
		rest = behind
	}
	if bytes.HasPrefix(rest, []byte(`,"size":`)) {
		rest = bytes.TrimLeft(rest[len(`,"size":`):], "-0123456789")
	}
	raw, behind, ok := quoted(rest, `,"msgid":`)
	if !ok {
		return g, !bytes.Contains(rest, []byte(`"msgid":`))
	}
	return g, json.Unmarshal(raw, &g.messageID) == nil && len(behind) > 0
}

// member gives a string of a line that has no escapes.
func member(line []byte, name string) (value, rest []byte, ok bool) {
	raw, rest, ok := quoted(line, name)
	if !ok || bytes.IndexByte(raw, '\\') >= 0 {
		return nil, rest, false
	}
	return raw[1 : len(raw)-1], rest, true
}

// quoted gives the string behind a name, with its quotes, and what follows.
func quoted(line []byte, name string) (raw, rest []byte, ok bool) {
	if !bytes.HasPrefix(line, []byte(name)) || len(line) <= len(name) || line[len(name)] != '"' {
		return nil, line, false
	}
	line = line[len(name):]
	for i := 1; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '"':
			return line[:i+1], line[i+1:], true
		}
	}
	return nil, line, false
}
