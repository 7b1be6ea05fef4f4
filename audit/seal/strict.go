package seal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A signed file must say the same to everybody who reads it. JSON leaves open which
// of two members with one name counts, encoding/json takes "Total" for "total", and
// gives U+FFFD for octets and escapes that are no text. So all of that is refused
// before anything is read.

// strict refuses a text of which two readers may think differently. It is one pass
// and keeps only the names of the objects that are open.
func strict(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	if !json.Valid(data) {
		return fmt.Errorf("not a JSON object: %w", syntaxError(data))
	}
	var open []map[string]string // of each object its names; nil: an array
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{':
			open = append(open, map[string]string{})
		case '[':
			open = append(open, nil)
		case '}', ']':
			open = open[:len(open)-1]
		case '"':
			end := stringEnd(data, i)
			if err := wholeText(data[i:end]); err != nil {
				return err
			}
			if names := open; len(names) > 0 && isName(data[end:]) {
				if err := newName(names[len(names)-1], data[i:end], len(names)); err != nil {
					return err
				}
			}
			i = end - 1
		}
	}
	return nil
}

// syntaxError says what is wrong with a text that is no JSON.
func syntaxError(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	return errors.New("it cannot be read")
}

// stringEnd gives the place behind the string that begins at i.
func stringEnd(data []byte, i int) int {
	for i++; data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// isName tells by what follows whether a string was the name of a member.
func isName(rest []byte) bool {
	rest = bytes.TrimLeft(rest, " \t\r\n")
	return len(rest) > 0 && rest[0] == ':'
}

// newName notes the name of a member, and refuses one that is there. In the outermost
// object and right below it those are the same that differ in case alone: what is not
// signed must not be read instead of what is.
func newName(names map[string]string, quoted []byte, depth int) error {
	var name string
	if err := json.Unmarshal(quoted, &name); err != nil {
		return err
	}
	as := name
	if depth <= 2 {
		as = strings.ToLower(strings.ToUpper(name)) // folds the Kelvin sign and the long s too
	}
	if other, ok := names[as]; ok {
		return fmt.Errorf("it has two members %q and %q in one object: which of them counts is anybody's guess", other, name)
	}
	names[as] = name
	return nil
}

// wholeText refuses a string with half of a pair of surrogates in it.
func wholeText(quoted []byte) error {
	for i := 0; i+6 <= len(quoted); i++ {
		if quoted[i] != '\\' {
			continue
		}
		if quoted[i+1] != 'u' {
			i++
			continue
		}
		u, size := escaped(quoted[i:]), 6
		if u >= 0xd800 && u < 0xdc00 && i+12 <= len(quoted) {
			if low := escaped(quoted[i+6:]); low >= 0xdc00 && low < 0xe000 {
				u, size = 0, 12
			}
		}
		if u >= 0xd800 && u < 0xe000 {
			return fmt.Errorf("the string %s has half a character in it", quoted)
		}
		i += size - 1
	}
	return nil
}

// escaped gives the number of an escape like \u00e4; 0 for what is none.
func escaped(b []byte) uint64 {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0
	}
	u, err := strconv.ParseUint(string(b[2:6]), 16, 32)
	if err != nil {
		return 0
	}
	return u
}

// eachPart gives the parts of a JSON object one after the other: a member, or what is
// right below one. Only one part at a time is in memory beside data.
func eachPart(data []byte, wants func(name string) bool, f func(part string, v any) error) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("not a JSON object: %w", errors.Join(err, errNoObject))
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return fmt.Errorf("not a JSON object: %w", err)
		}
		name, _ := t.(string)
		if !wants(name) {
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return fmt.Errorf("not a JSON object: %w", err)
			}
			continue
		}
		if err := member(dec, name, f); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON object")
	}
	return nil
}

var errNoObject = errors.New("it begins otherwise")

// member gives the parts of one member.
func member(dec *json.Decoder, name string, f func(part string, v any) error) error {
	t, err := dec.Token()
	if err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	open, ok := t.(json.Delim)
	if !ok {
		return f(name, t)
	}
	n := 0
	for ; dec.More(); n++ {
		part := name + "/" + strconv.Itoa(n)
		if open == '{' {
			key, err := dec.Token()
			if err != nil {
				return fmt.Errorf("not a JSON object: %w", err)
			}
			part = fmt.Sprintf("%s/%v", name, key)
		}
		var v any
		if err := dec.Decode(&v); err != nil {
			return fmt.Errorf("not a JSON object: %w", err)
		}
		if err := f(part, v); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	if n > 0 {
		return nil
	}
	if open == '{' { // empty ones are parts themselves
		return f(name, map[string]any{})
	}
	return f(name, []any{})
}
