package certificate

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
	"time"

	"crossfade/backfill"
)

//go:embed page.html
var pageText string

//go:embed summary.html
var summaryText string

//go:embed style.css
var styleText string

// Style is the style sheet of all our pages.
func Style() template.CSS { return template.CSS(styleText) }

// shown bounds the exceptions on a page; the JSON file has all of them.
const shown = 500

// meanings say what the classes mean, in the order in which the page has them:
// what keeps a mailbox from being complete comes first.
var meanings = []struct{ Class, Meaning string }{
	{backfill.ClassMissing, "on old, and nowhere on new"},
	{backfill.ClassRefused, "new does not take the message; its words are below"},
	{backfill.ClassUnreadable, "a server lists the message, or the folder, and does not hand it out"},
	{backfill.ClassWrapped, "new refused the message; it is there whole, as an attachment of a mail in a folder of its own"},
	{backfill.ClassAltered, "on new with what the server itself changed: line ends, NUL"},
	{backfill.ClassMoved, "in another folder of new"},
	{backfill.ClassDeleted, "copied, and gone from new since: whoever reads new deleted it"},
	{backfill.ClassDeletions, "in a folder that was copied once and that old does not list any more: not compared"},
	{backfill.ClassFiltered, "left out by the filter of the configuration, not compared"},
}

// pageRow is a folder on the page.
type pageRow struct {
	backfill.FolderCheck
	Altered, Moved, Deleted, Refused, Unreadable int
}

// pageClass is a class of exceptions on the page.
type pageClass struct {
	Class, Meaning string
	Count          int
	Problems       []backfill.Problem
	Hidden         int
}

type pageData struct {
	Certificate
	V                                backfill.Verification
	Rows                             []pageRow
	Total                            pageRow
	Classes                          []pageClass
	Plot                             *plot
	Style                            template.CSS
	OnNew                            int
	OnNewBytes, OldBytes             int64
	File, Took, IssuedAt, ComparedAt string
}

func funcs() template.FuncMap {
	return template.FuncMap{"number": number, "size": size, "moment": moment}
}

// Page gives the certificate as a page of its own: nothing is loaded from
// anywhere. file is the name of the JSON file beside it.
func (c Certificate) Page(file string) ([]byte, error) {
	v := c.Verification
	d := pageData{Certificate: c, V: v, Plot: newPlot(v.History), Style: template.CSS(styleText), File: file,
		Took: v.Took.Round(100 * time.Millisecond).String(), IssuedAt: moment(c.Issued), ComparedAt: moment(v.At)}
	for _, f := range v.Folders {
		r := pageRow{FolderCheck: f, Altered: f.Classes[backfill.ClassAltered], Moved: f.Classes[backfill.ClassMoved],
			Deleted: f.Classes[backfill.ClassDeleted], Refused: f.Classes[backfill.ClassRefused], Unreadable: f.Classes[backfill.ClassUnreadable]}
		d.Rows = append(d.Rows, r)
		d.Total.add(r)
	}
	d.OldBytes = d.Total.Bytes
	for _, h := range v.Holds {
		d.OnNew += h.Messages
		d.OnNewBytes += h.Bytes
	}
	d.Classes = classesOf(v.Problems)
	return render("page", pageText, d)
}

func (r *pageRow) add(x pageRow) {
	r.OnSource += x.OnSource
	r.OnDest += x.OnDest
	r.Matched += x.Matched
	r.Filtered += x.Filtered
	r.Wrapped += x.Wrapped
	r.Extra += x.Extra
	r.Twice += x.Twice
	r.Altered += x.Altered
	r.Moved += x.Moved
	r.Deleted += x.Deleted
	r.Refused += x.Refused
	r.Unreadable += x.Unreadable
	r.Bytes += x.Bytes
	r.Missing = append(r.Missing, x.Missing...)
}

func classesOf(problems []backfill.Problem) (out []pageClass) {
	known := map[string]int{}
	for i, m := range meanings {
		known[m.Class] = i
		out = append(out, pageClass{Class: m.Class, Meaning: m.Meaning})
	}
	for _, p := range problems {
		i, ok := known[p.Class]
		if !ok {
			i = len(out)
			known[p.Class] = i
			out = append(out, pageClass{Class: p.Class})
		}
		c := &out[i]
		c.Count += max(p.Count, 1)
		if len(c.Problems) < shown {
			c.Problems = append(c.Problems, p)
		} else {
			c.Hidden++
		}
	}
	return slices.DeleteFunc(out, func(c pageClass) bool { return c.Count == 0 })
}

func render(name, text string, data any) ([]byte, error) {
	t, err := template.New(name).Funcs(funcs()).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the template of the page %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("making the page %s: %w", name, err)
	}
	return b.Bytes(), nil
}
