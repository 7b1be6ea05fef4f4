package seal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// Object reads a JSON object, numbers as they are written. Anything behind it is
// an error, and so is a text that two readers may read differently.
func Object(data []byte) (map[string]any, error) {
	if err := strict(data); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var object map[string]any
	if err := dec.Decode(&object); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the JSON object")
	}
	return object, nil
}

// Canonical gives the canonical form (RFC 8785) of a value that [Object] gave a part
// of.
func Canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	err := canonical(&b, v)
	return b.Bytes(), err
}

// canonical writes a value that encoding/json decoded: no white space, members
// in the order of their names as UTF-16, the shortest escapes.
func canonical(b *bytes.Buffer, v any) error {
	switch v := v.(type) {
	case map[string]any:
		return canonicalObject(b, v)
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := canonical(b, e); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case string:
		canonicalString(b, v)
	case json.Number:
		// Of numbers, certificates have whole ones alone: they are the same in every
		// form of writing.
		if strings.ContainsAny(v.String(), ".eE") || v.String() == "-0" {
			return fmt.Errorf("the number %s: a certificate has whole numbers only", v)
		}
		b.WriteString(v.String())
	case bool:
		fmt.Fprint(b, v)
	case nil:
		b.WriteString("null")
	}
	return nil
}

func canonicalObject(b *bytes.Buffer, v map[string]any) error {
	names := make([]string, 0, len(v))
	for name := range v {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(slices.Compare(utf16.Encode([]rune(x)), utf16.Encode([]rune(y))), cmp.Compare(x, y))
	})
	b.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		canonicalString(b, name)
		b.WriteByte(':')
		if err := canonical(b, v[name]); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

func canonicalString(b *bytes.Buffer, s string) {
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	b.WriteByte('"')
	for _, r := range s {
		switch escape, ok := short[r]; {
		case ok:
			b.WriteString(escape)
		case r < ' ':
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}
