package matrix

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"time"
)

// seen is a message as a client of ours saw it.
type seen struct {
	exact, loose [sha256.Size]byte // of its octets, or unknown; of what is left when what servers alter is taken away
	date         string
	flags        string
	head         string // for people
}

// read gives what a server has for a user, by folder, in its own names.
func read(t testing.TB, s server, user string) map[string][]seen {
	t.Helper()
	out := map[string][]seen{}
	for _, f := range s.Folders(t, user) {
		out[f] = []seen{}
		for _, m := range s.Messages(t, user, f) {
			flags := slices.DeleteFunc(slices.Clone(m.Flags), func(f string) bool { return strings.EqualFold(f, `\Recent`) })
			for i := range flags {
				flags[i] = strings.ToLower(flags[i]) // keywords have no case (RFC 9051, 2.3.2)
			}
			slices.Sort(flags)
			one := look(m.Body)
			one.date, one.flags = m.InternalDate.UTC().Format(time.RFC3339), strings.Join(flags, " ")
			out[f] = append(out[f], one)
		}
	}
	return out
}

// unknown is the sum of octets that the reader wrote himself.
var unknown [sha256.Size]byte

func look(body []byte) seen {
	return seen{exact: sha256.Sum256(body), loose: sha256.Sum256(settled(body)), head: fmt.Sprintf("%.60q (%d octets)", body, len(body))}
}

// unwrapped gives the messages that are attached to those of a folder: what the destination refused.
func unwrapped(t testing.TB, s server, user, folder string) []seen {
	t.Helper()
	var out []seen
	for _, m := range s.Messages(t, user, folder) {
		if m, err := attached(m.Body); err != nil {
			t.Errorf("a message in %q: %v", folder, err)
		} else {
			out = append(out, look(m))
		}
	}
	return out
}

func attached(wrapper []byte) ([]byte, error) {
	m, err := mail.ReadMessage(bytes.NewReader(wrapper))
	if err != nil {
		return nil, err
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := r.NextRawPart()
		if err != nil {
			return nil, fmt.Errorf("it has no attachment: %w", err)
		}
		if kind, _, _ := mime.ParseMediaType(part.Header.Get("Content-Disposition")); kind != "attachment" {
			continue
		}
		if part.Header.Get("Content-Transfer-Encoding") == "base64" {
			return io.ReadAll(base64.NewDecoder(base64.StdEncoding, part))
		}
		return io.ReadAll(part)
	}
}

// settled takes away what servers are known to alter: carriage returns, NUL, line ends at the end, and 8-bit octets in the
// header, which Cyrus makes "X".
func settled(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte("\r"), nil)
	b = bytes.ReplaceAll(b, []byte{0}, []byte{0x80})
	end := len(b)
	if bytes.HasPrefix(b, []byte("\n")) {
		end = 0
	} else if i := bytes.Index(b, []byte("\n\n")); i >= 0 {
		end = i
	}
	for i, c := range b[:end] {
		if c >= 0x80 {
			b[i] = 'X'
		}
	}
	return bytes.TrimRight(b, "\n")
}

// difference is what comparing two mailboxes found.
type difference struct {
	messages, altered int
	lost, duplicated  []string // what is on one side only
	missing           []seen   // what is lost
	dates, flags      []string // of messages that are on both
}

func (d *difference) add(o difference) {
	d.messages += o.messages
	d.altered += o.altered
	d.lost = append(d.lost, o.lost...)
	d.missing = append(d.missing, o.missing...)
	d.duplicated = append(d.duplicated, o.duplicated...)
	d.dates = append(d.dates, o.dates...)
	d.flags = append(d.flags, o.flags...)
}

// unwrap takes what is there as an attachment off what is lost.
func (d *difference) unwrap(wrapped []seen) {
	for _, w := range wrapped {
		i := slices.IndexFunc(d.missing, func(m seen) bool { return m.exact == w.exact })
		if i < 0 {
			d.duplicated = append(d.duplicated, "as an attachment: "+w.head)
			continue
		}
		d.missing, d.lost = slices.Delete(d.missing, i, i+1), slices.Delete(d.lost, i, i+1)
	}
}

// compare compares two folders as multisets: messages with the same octets first, and among those the ones that have the
// same date and flags too; then those that differ only in what servers alter.
func compare(folder string, src, dst []seen) difference {
	d := difference{messages: len(src)}
	dst = slices.Clone(dst)
	take := func(same func(seen) bool) (seen, bool) {
		i := slices.IndexFunc(dst, same)
		if i < 0 {
			return seen{}, false
		}
		found := dst[i]
		dst = slices.Delete(dst, i, i+1)
		return found, true
	}
	left := src
	for round := range 3 {
		var next []seen
		for _, m := range left {
			found, ok := take(func(o seen) bool {
				switch round {
				case 0:
					return o == m
				case 1:
					return m.exact != unknown && o.exact == m.exact
				}
				return o.loose == m.loose
			})
			switch {
			case !ok:
				next = append(next, m)
				continue
			case round == 2:
				d.altered++
			}
			if found.date != m.date {
				d.dates = append(d.dates, fmt.Sprintf("%s: %s: %s, was %s", folder, m.head, found.date, m.date))
			}
			if found.flags != m.flags {
				d.flags = append(d.flags, fmt.Sprintf("%s: %s: %q, was %q", folder, m.head, found.flags, m.flags))
			}
		}
		left = next
	}
	for _, m := range left {
		d.lost, d.missing = append(d.lost, folder+": "+m.head), append(d.missing, m)
	}
	for _, m := range dst {
		d.duplicated = append(d.duplicated, folder+": "+m.head)
	}
	return d
}
