package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	File    string // as given to Load or Parse; empty for a Config built in code
	Line    int    // from 1; 0 when there is no place to point at
	Column  int    // in characters, from 1
	Key     string // dotted, such as backends.old.smtp or domains[1]; empty for a problem of the whole file
	Text    string // what is wrong and what to do
	Excerpt string // the line and a mark below the column, passwords cut out; empty without a place
}

// Error returns "file:line:column: key: text", and the excerpt on lines of its own.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	if p.Excerpt != "" {
		b.WriteString("\n" + p.Excerpt)
	}
	return b.String()
}

// Problems returns every [*Problem] in err, in order; none when err did not come from this package.
func Problems(err error) []*Problem {
	var one *Problem
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*Problem
		for _, e := range joined.Unwrap() {
			all = append(all, Problems(e)...)
		}
		return all
	}
	if errors.As(err, &one) {
		return []*Problem{one}
	}
	return nil
}

// maxProblems bounds what one error reports: beyond it, the file is of another kind or has one mistake many times.
const maxProblems = 50

// join makes one error of all problems, or of the first and a count of the rest.
func (s *source) join(problems []error) error {
	if more := len(problems) - maxProblems; more > 0 {
		rest := &Problem{Text: fmt.Sprintf("and %d more problems", more)}
		if s != nil {
			rest.File = s.name
		}
		problems = append(problems[:maxProblems:maxProblems], rest)
	}
	return errors.Join(problems...)
}

// position is a place in the file: line and column in characters, both from 1.
type position struct{ line, column int }

// source is the text of a configuration file and where each key of it stands.
type source struct {
	name  string
	lines []string // for excerpts, already cut by redactLines
	keys  map[string]position
}

func newSource(name, text string) *source {
	return &source{name: name, lines: redactLines(strings.Split(text, "\n")), keys: make(map[string]position)}
}

// problem builds a Problem at a place.
func (s *source) problem(at position, key, text string) *Problem {
	return &Problem{File: s.name, Line: at.line, Column: at.column, Key: key, Text: text, Excerpt: s.excerpt(at)}
}

// at builds a Problem at a key. A key that the file lacks is shown at the nearest one around it.
func (s *source) at(key, text string) *Problem {
	if s == nil {
		return &Problem{Key: key, Text: text}
	}
	for around := key; around != ""; around = parentKey(around) {
		if at, ok := s.keys[around]; ok {
			return s.problem(at, key, text)
		}
	}
	return &Problem{File: s.name, Key: key, Text: text}
}

func parentKey(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

// excerptWidth is the most characters of a line that an excerpt shows.
const excerptWidth = 120

// excerpt shows one line with a mark below the column. We do not use the library's excerpts: they drop comments, join
// lines, and would print a password that stands near the mistake.
func (s *source) excerpt(at position) string {
	if at.line < 1 || at.line > len(s.lines) {
		return ""
	}
	line := []rune(s.lines[at.line-1])
	before := min(max(at.column-1, 0), len(line))
	from := max(0, before-excerptWidth/2)
	to := min(len(line), from+excerptWidth)
	pad := strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, string(line[from:before]))
	number := fmt.Sprintf("%4d", at.line)
	blank := strings.Repeat(" ", utf8.RuneCountInString(number))
	return strings.TrimRight(number+" | "+string(line[from:to]), " ") + "\n" + blank + " | " + pad + "^"
}

// secretKey finds a key whose value may be a secret; names that end in _file or _env only point at one.
var (
	secretKey = regexp.MustCompile(`(?i)(pass(word|wd|phrase)?|pw|secret|token|api_?key)["']?\s*[:=]`)
	userInfo  = regexp.MustCompile(`([A-Za-z+]+://)\S*@|[^\s"'{\[,]+:\S+@`)
)

// redactLines cuts out what may be a password: the value of a key named like one, with the lines indented below it,
// and what stands before the @ of a URL or of user:password@host.
func redactLines(lines []string) []string {
	out := make([]string, len(lines))
	hiddenBelow := -1 // indentation of the secret's key, or -1
	for i, line := range lines {
		indent := len(line) - len(strings.TrimLeft(line, " \t"))
		if hiddenBelow >= 0 && (indent > hiddenBelow || strings.TrimSpace(line) == "") {
			out[i] = redacted
			continue
		}
		hiddenBelow = -1
		if at := secretKey.FindStringIndex(line); at != nil {
			hiddenBelow = indent
			line = line[:at[1]] + " " + redacted
		}
		out[i] = userInfo.ReplaceAllString(line, "${1}"+redacted+"@")
	}
	return out
}
