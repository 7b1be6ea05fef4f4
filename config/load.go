package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// The bounds of a file. The YAML library takes time that grows with the square of nesting and of the number of keys,
// so a file beyond anything that is a configuration is refused before it gets there.
const (
	maxFile    = 1 << 20
	maxKeys    = 1000
	maxNesting = 16
)

// Load reads the file at path with [Parse]. The path is used in messages as it is given.
func Load(path string) (*Config, error) {
	data, err := readBounded(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse reads one YAML document over the defaults and validates it. The name is used in messages, and relative paths
// in the document are resolved against its directory. The error joins [*Problem] values (see [Problems]): all of the
// decoding, or, when that found none, all of Validate.
func Parse(name string, data []byte) (*Config, error) {
	text, err := cleanText(name, data)
	if err != nil {
		return nil, err
	}
	src := newSource(name, text)
	root, err := parseDocument(src, text)
	if err != nil {
		return nil, err
	}
	c := Default()
	c.src = src
	d := &decoder{src: src}
	d.mapping(root, reflect.ValueOf(c).Elem(), "")
	if err := src.join(d.problems); err != nil {
		return nil, err
	}
	c.resolve(filepath.Dir(name))
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// cleanText refuses what is not text, and takes a byte order mark and the line ends of other systems away, so that
// columns and excerpts are right.
func cleanText(name string, data []byte) (string, error) {
	whole := func(format string, args ...any) error {
		return &Problem{File: name, Text: fmt.Sprintf(format, args...)}
	}
	if len(data) > maxFile {
		return "", whole("the file is larger than %s: this is not a configuration", Size(maxFile))
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	line := 1
	for rest := data; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if r == utf8.RuneError && n == 1 {
			return "", &Problem{File: name, Line: line, Column: 1, Text: "not UTF-8 text: save the file as UTF-8"}
		}
		if r == '\n' {
			line++
		} else if r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufeff') {
			return "", &Problem{File: name, Line: line, Column: 1, Text: fmt.Sprintf("the control character %U does not belong into a configuration", r)}
		}
		rest = rest[n:]
	}
	return string(data), nil
}

// parseDocument returns the mapping that the file consists of, or nil where the file holds an empty one.
func parseDocument(src *source, text string) (root ast.Node, err error) {
	defer func() {
		// The library is given text that a person typed. A panic in it must not end a relay that reloads.
		if r := recover(); r != nil {
			root, err = nil, &Problem{File: src.name, Text: fmt.Sprintf("the YAML reader failed on this file: %v", r)}
		}
	}()
	tokens := lexer.Tokenize(text)
	if err := checkTokens(src, tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // we report duplicates ourselves, with both places
	if err != nil {
		return nil, syntaxProblem(src, text, err)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			return nil, src.problem(tokenPosition(doc.Body.GetToken()), "", "a second document begins here: one file is one document")
		}
		root = doc.Body
	}
	if root == nil || root.Type() == ast.NullType {
		return nil, &Problem{File: src.name, Text: "the file is empty: it needs at least hostname, domains, backends.old.smtp and backends.new.smtp"}
	}
	return root, nil
}

// checkTokens bounds the work of the parser and refuses the parts of YAML that a configuration has no use for.
func checkTokens(src *source, tokens token.Tokens) error {
	if bad := tokens.InvalidToken(); bad != nil {
		return syntaxProblem(src, strings.Join(src.lines, "\n"), &yaml.SyntaxError{Message: bad.Error, Token: bad})
	}
	keys, depth := 0, 0
	content := false // whether the first document has begun
	var before *token.Token
	for _, tk := range tokens {
		refuse := ""
		switch tk.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			refuse = "anchors, aliases and merge keys are not used here: write the value out (a value that begins with & or * needs quotes)"
		case token.TagType:
			refuse = "tags are not used here: write the value alone (a value that begins with ! needs quotes)"
		case token.MappingKeyType:
			refuse = "a key that begins with ? is not used here: write key: value"
		case token.DirectiveType:
			refuse = "directives are not used here: begin with the first key"
		case token.DocumentHeaderType:
			if content {
				refuse = "a second document begins here: one file is one document"
			}
			content = true
		case token.MappingValueType:
			keys++
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType:
			if before != nil && before.Type == token.SequenceEntryType && before.Position.Line == tk.Position.Line {
				refuse = "a list inside a list is not used here"
			}
		}
		if keys > maxKeys {
			refuse = fmt.Sprintf("more than %d keys: this is not a configuration", maxKeys)
		}
		if depth > maxNesting {
			refuse = fmt.Sprintf("nested deeper than %d brackets: this is not a configuration", maxNesting)
		}
		if refuse != "" {
			return src.problem(tokenPosition(tk), "", refuse)
		}
		if tk.Type != token.CommentType {
			content, before = true, tk
		}
	}
	return nil
}

// syntaxProblem puts the library's message into our form.
func syntaxProblem(src *source, text string, err error) error {
	var known yaml.Error
	if !errors.As(err, &known) || known.GetToken() == nil {
		return &Problem{File: src.name, Text: "not valid YAML: " + err.Error()}
	}
	at, message := tokenPosition(known.GetToken()), known.GetMessage()
	lines := strings.Split(text, "\n")
	if at.line >= 1 && at.line <= len(lines) {
		line := lines[at.line-1]
		if strings.Contains(line[:len(line)-len(strings.TrimLeft(line, " \t"))], "\t") {
			message = "a tab in the indentation: indent with spaces"
		}
	}
	return src.problem(at, "", "not valid YAML: "+message)
}

func tokenPosition(tk *token.Token) position {
	if tk == nil || tk.Position == nil {
		return position{}
	}
	return position{line: tk.Position.Line, column: max(tk.Position.Column, 1)}
}

// resolve makes paths relative to the working directory of the process instead of the file's, and domain names
// A-labels. A name that is none is left for Validate to report.
func (c *Config) resolve(dir string) {
	for _, l := range everyLeaf(reflect.ValueOf(c).Elem()) {
		if l.tag.Get("path") == "" {
			continue
		}
		if p := l.value.String(); p != "" && !filepath.IsAbs(p) && !strings.Contains(p, "://") {
			l.value.SetString(filepath.Join(dir, p))
		}
	}
	normal := func(name *string) {
		if ascii, err := NormalDomain(*name); err == nil {
			*name = ascii
		}
	}
	normal(&c.Hostname)
	for i := range c.Domains {
		normal(&c.Domains[i])
	}
	for _, b := range []*BackendTLS{&c.Backends.Old.TLS, &c.Backends.New.TLS, &c.SMTP.SmartHost.TLS} {
		normal(&b.MTASTS)
	}
	names := [][]string{c.DNS.RelayMX, c.DNS.OldMX, c.DNS.NewMX}
	if c.SMTP.TLS.ACME != nil {
		names = append(names, c.SMTP.TLS.ACME.Names)
	}
	for _, hosts := range names {
		for i := range hosts {
			normal(&hosts[i])
		}
	}
}

// leaf is one key that holds a value, in the order of the struct.
type leaf struct {
	key   string
	tag   reflect.StructTag
	value reflect.Value
}

// leaves lists the values below the struct v. A pointer that is nil (an optional section that is absent) has none.
func leaves(v reflect.Value, prefix string) []leaf {
	var out []leaf
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name := field.Tag.Get("yaml")
		if name == "" {
			continue
		}
		value, key := v.Field(i), prefix+name
		if value.Kind() == reflect.Pointer && !value.IsNil() {
			value = value.Elem()
		}
		switch {
		case isSection(value.Type()):
			out = append(out, leaves(value, key+".")...)
		case value.Kind() != reflect.Pointer:
			out = append(out, leaf{key: key, tag: field.Tag, value: value})
		}
	}
	return out
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// isSection reports whether t is a mapping of keys rather than a value.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textUnmarshaler)
}
