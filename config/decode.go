package config

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// decoder writes a syntax tree into a Config. The library's own decoder stops at the first mistake, and loses the
// place of a mistake in a type that decodes itself; walking the tree here gives every mistake its place, and keeps
// the place of each key for Validate.
type decoder struct {
	src      *source
	problems []error
}

func (d *decoder) fail(at position, key, format string, args ...any) {
	d.problems = append(d.problems, d.src.problem(at, key, fmt.Sprintf(format, args...)))
}

// mapping decodes node into the struct v, whose keys have the prefix.
func (d *decoder) mapping(node ast.Node, v reflect.Value, prefix string) {
	m, ok := node.(*ast.MappingNode)
	if !ok {
		d.fail(nodePosition(node), strings.TrimSuffix(prefix, "."), "want keys and values (key: value), found %s", kindOf(node))
		return
	}
	fields := fieldsByKey(v)
	seen := make(map[string]position)
	for _, entry := range m.Values {
		at := nodePosition(entry.Key)
		name, _, ok := scalar(entry.Key)
		if !ok {
			d.fail(at, strings.TrimSuffix(prefix, "."), "a key must be a plain word")
			continue
		}
		key := prefix + name
		if first, twice := seen[name]; twice {
			d.fail(at, key, "the key is here twice: first in line %d", first.line)
			continue
		}
		seen[name] = at
		field, known := fields[name]
		if !known {
			d.fail(at, key, "%s", unknownKey(prefix, name))
			continue
		}
		d.src.keys[key] = at
		d.value(entry.Value, field, key)
	}
}

// fieldsByKey maps the keys of a section to its fields.
func fieldsByKey(v reflect.Value) map[string]reflect.Value {
	fields := make(map[string]reflect.Value)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = v.Field(i)
		}
	}
	return fields
}

// value decodes node into v, which has key.
func (d *decoder) value(node ast.Node, v reflect.Value, key string) {
	if v.Kind() == reflect.Pointer {
		if node.Type() == ast.NullType {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch {
	case isSection(v.Type()):
		// A section whose lines are all commented out is null: the defaults hold.
		if node.Type() != ast.NullType {
			d.mapping(node, v, key+".")
		}
	case node.Type() == ast.NullType:
		d.fail(d.src.keys[key], key, "no value: write one, or remove the line to get the default%s", emptyHint(v))
	case v.Kind() == reflect.Slice && !v.Addr().Type().Implements(textUnmarshaler):
		d.list(node, v, key)
	default:
		d.scalar(node, v, key)
	}
}

func emptyHint(v reflect.Value) string {
	switch v.Kind() {
	case reflect.String:
		return ` ("" is the empty string)`
	case reflect.Slice:
		return " ([] is the empty list)"
	}
	return ""
}

// list decodes a sequence. A list in the file replaces the default, it does not add to it.
func (d *decoder) list(node ast.Node, v reflect.Value, key string) {
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.fail(nodePosition(node), key, "want a list, such as [a, b], found %s", kindOf(node))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, element := range seq.Values {
		elementKey := fmt.Sprintf("%s[%d]", key, i)
		if element.Type() == ast.NullType {
			d.fail(nodePosition(element), elementKey, "an empty entry: write a value or remove it")
			continue
		}
		if sectionList(v.Type()) {
			out.Index(i).Set(entry(v.Type()))
			d.src.keys[elementKey] = nodePosition(element)
			d.mapping(element, out.Index(i), elementKey+".")
			continue
		}
		d.scalar(element, out.Index(i), elementKey)
	}
	v.Set(out)
}

// scalar decodes a single value.
func (d *decoder) scalar(node ast.Node, v reflect.Value, key string) {
	at := nodePosition(node)
	text, quoted, ok := scalar(node)
	if !ok {
		d.fail(at, key, "want %s, found %s", wanted(v), kindOf(node))
		return
	}
	d.src.keys[key] = at
	if err := setScalar(v, text, node); err != nil {
		var inside *valueError
		if errors.As(err, &inside) && node.GetToken().Type == token.StringType {
			at.column += utf8.RuneCountInString(text[:min(inside.offset, len(text))])
		} else if errors.As(err, &inside) && quoted && !strings.Contains(text, "\\") {
			at.column += 1 + utf8.RuneCountInString(text[:min(inside.offset, len(text))])
		}
		d.fail(at, key, "%s", err)
	}
}

// setScalar parses text into v. What is typed decides, not what YAML makes of it: 010 is not 8, and a login name may
// be all digits.
func setScalar(v reflect.Value, text string, node ast.Node) error {
	if prefix, ok := v.Addr().Interface().(*netip.Prefix); ok {
		return setPrefix(prefix, text)
	}
	if ip, ok := v.Addr().Interface().(*netip.Addr); ok {
		var err error
		if *ip, err = netip.ParseAddr(text); err != nil || ip.Zone() != "" {
			return badValue(0, "%q is not an IP address: write one such as 192.0.2.25 or 2001:db8::25", text)
		}
		return nil
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if _, isInt := node.(*ast.IntegerNode); !isInt || err != nil || strings.Trim(strconv.Itoa(n), "-") != strings.Trim(text, "+-") {
			return fmt.Errorf("want a whole number, such as 20, found %s", kindOf(node))
		}
		v.SetInt(int64(n))
	case reflect.Bool:
		b, isBool := node.(*ast.BoolNode)
		if !isBool {
			return fmt.Errorf("want true or false, found %s", kindOf(node))
		}
		v.SetBool(b.Value)
	default:
		return fmt.Errorf("keys of type %s cannot be read", v.Type())
	}
	return nil
}

func setPrefix(p *netip.Prefix, text string) error {
	parsed, err := netip.ParsePrefix(text)
	if err == nil {
		*p = parsed
		return nil
	}
	if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
		return badValue(0, "%q is an address, not a network: write %s/%d for this one alone", text, text, ip.BitLen())
	}
	return badValue(0, "%q is not a network: write address/bits, such as 10.0.0.0/8 or 2001:db8::/32", text)
}

// scalar returns the text of a single value as it was written (quotes and escapes resolved).
func scalar(node ast.Node) (text string, quoted, ok bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, n.Token.Type != token.StringType, true
	case *ast.LiteralNode:
		return n.Value.Value, false, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, false, true
	}
	return "", false, false
}

// wanted describes the kind of value that v takes.
func wanted(v reflect.Value) string {
	switch v.Interface().(type) {
	case Duration:
		return "a duration, such as 7d"
	case Size:
		return "a size, such as 50MiB"
	case Endpoint:
		return "a URL, such as smtp://host:25"
	}
	switch v.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	}
	return "a single value"
}

// kindOf describes what a node is, without repeating what it holds: that may be a secret in the wrong place.
func kindOf(node ast.Node) string {
	switch n := node.(type) {
	case *ast.MappingNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.IntegerNode:
		if _, err := strconv.Atoi(n.Token.Value); err != nil || len(n.Token.Value) > 1 && n.Token.Value[0] == '0' {
			return "a number in another notation (write plain decimal digits)"
		}
		return "a number"
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number with a fraction"
	case *ast.BoolNode:
		return "true or false"
	case *ast.StringNode:
		if n.Token.Type != token.StringType {
			return "a string in quotes"
		}
		if strings.Trim(n.Value, "0123456789") == "" {
			return "a number too large to count" // the library makes a string of it
		}
		return "a string"
	case *ast.LiteralNode:
		return "a block of text"
	}
	return "something else"
}

// nodePosition is where a reader would point: the first character of the node.
func nodePosition(node ast.Node) position {
	if m, ok := node.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return nodePosition(m.Values[0].Key) // the token of a block mapping is its first colon
	}
	return tokenPosition(node.GetToken())
}

// entryNumber is the place of an entry in a list of sections.
var entryNumber = regexp.MustCompile(`\[[0-9]+\]`)

// unknownKey says what may have been meant by a key that does not exist.
func unknownKey(prefix, name string) string {
	switch name {
	case "secret", "client_secret":
		if strings.HasSuffix(prefix, ".microsoft.") {
			return "a secret is never written here: put it into a file and name that with secret_file (or name an environment variable with secret_env)"
		}
	}
	switch name {
	case "password", "passwd", "pass", "secret":
		return "a password is never written here: put it into a file and name that with password_file (or name an environment variable with password_env)"
	}
	sections := knownKeys()
	prefix = entryNumber.ReplaceAllString(prefix, "[]")
	here := sections[strings.TrimSuffix(prefix, ".")]
	if best := nearest(name, here); best != "" {
		return fmt.Sprintf("unknown key; did you mean %q?", best)
	}
	for _, section := range sortedKeys(sections) {
		if slices.Contains(sections[section], name) {
			return fmt.Sprintf("unknown key here; did you mean %q?", strings.TrimPrefix(section+"."+name, "."))
		}
	}
	return "unknown key; known here are " + strings.Join(here, ", ")
}
