package audit

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"crossfade/backfill/certificate"
	"crossfade/mail"
)

//go:embed page.html
var pageText string

// shownDifferences bounds those on a page; the JSON file has all of them.
const shownDifferences = 1000

// pageTemplate is read once: there is a page for each of many users.
var pageTemplate = sync.OnceValues(func() (*template.Template, error) {
	return template.New("audit").Funcs(template.FuncMap{
		"number": strconv.Itoa, "look": func(l *Look) string { return l.String() },
		"moment": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") },
	}).Parse(pageText)
})

type pageData struct {
	*Document
	Style       template.CSS
	File, Only  string
	Left, Right int
	Shown       []pageDifference
	Hidden      int
}

type pageDifference struct {
	User string
	Difference
}

// Page gives the document as a page for people, which needs nothing but itself.
// file is the name of the JSON file beside it.
func (d *Document) Page(file string) ([]byte, error) {
	var b bytes.Buffer
	err := d.WritePage(&b, file)
	return b.Bytes(), err
}

// WritePage writes the page, row by row.
func (d *Document) WritePage(w io.Writer, file string) error {
	t := &d.Total
	p := pageData{Document: d, Style: certificate.Style(), File: file, Left: t.Accepted + t.Found,
		Right: t.Delivered + t.Swept + t.Bounced + t.Queued + t.Parked + t.Removed + t.Withdrawn + t.Left}
	if len(d.Request.Users) == 1 {
		p.Only = d.Request.Users[0]
	}
	for i := range d.Users {
		for _, x := range d.Users[i].All() {
			if len(p.Shown) < shownDifferences {
				p.Shown = append(p.Shown, pageDifference{d.Users[i].User, x})
			} else {
				p.Hidden++
			}
		}
	}
	tmpl, err := pageTemplate()
	if err != nil {
		return fmt.Errorf("the template of the audit: %w", err)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	if err := errors.Join(tmpl.Execute(out, p), out.Flush()); err != nil {
		return fmt.Errorf("make the page of an audit: %w", err)
	}
	return nil
}

// All gives the differences, those that a look found among them.
func (a *Account) All() []Difference {
	if a.Look == nil {
		return a.Differences
	}
	out := slices.Clip(a.Differences) // a look may have found very many
	for _, found := range []struct {
		ids  []mail.ID
		kind DifferenceKind
		text string
	}{
		{a.Look.BehindIDs, "behind", "it is in the mailbox that the user does not read, and not in the one that he reads"},
		{a.Look.MissingIDs, Missing, "it was delivered, and the mailbox was made anew since: look whether it can be had from a backup, or settle it (crossfade audit --settle)"},
		{a.Look.UnknownIDs, "unknown", "it was delivered and is not found, and not all of both mailboxes can be looked into: " + a.Look.Other},
		{a.Look.TwiceIDs, Twice, "it is in the mailbox more than once"},
	} {
		for _, id := range found.ids {
			out = append(out, Difference{Kind: found.kind, ID: id, Text: found.text})
		}
	}
	return out
}
