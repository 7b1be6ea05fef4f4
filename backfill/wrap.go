package backfill

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
)

const (
	longestLine = 998 // octets of a line without CRLF (RFC 5322, 2.1.1)
	base64Line  = 76  // characters (RFC 2045, 6.8)
	wrapInFile  = 256 << 10
)

// wrapper is a mail of ours that carries a message which the destination
// refuses as it is.
type wrapper struct {
	user, host string
	refused    string // the system that did
	folder     string // of the source
	original   *incoming
	words      string // of the server
	now        time.Time
}

// build writes the mail. With plain the message stands in it as message/rfc822
// as it is; otherwise in base64, as a file: message/rfc822 must not be in base64
// (RFC 2046, 5.2.1), and servers that parse what they store would take the
// encoded text for a header.
func (w *wrapper) build(plain bool, dir string) (*incoming, error) {
	o := w.original
	size := o.body.size + 4096
	if !plain {
		size += o.body.size * 2 / 5
	}
	b, err := newBody(size, size > wrapInFile, dir, &arena{})
	if err != nil {
		return nil, err
	}
	h := newHasher("")
	if err := w.write(io.MultiWriter(h, b), plain); err != nil {
		b.close()
		return nil, fmt.Errorf("wrap UID %d of folder %q: %w", o.meta.UID, w.folder, err)
	}
	m := &incoming{meta: o.meta, id: h.end(), body: b}
	m.meta.Size = b.size
	return m, nil
}

func (w *wrapper) write(out io.Writer, plain bool) error {
	o := w.original
	sum := hex.EncodeToString(o.id.Exact[:16])
	boundary := "=_crossfade_" + sum // the message cannot have its own sum in it
	host := w.host
	if host == "" {
		host = "crossfade.invalid"
	}
	subject := mime.QEncoding.Encode("utf-8", "Could not be copied as it is: UID "+fmt.Sprint(o.meta.UID)+" of "+shorten(w.folder, 60))
	head := []string{
		"From: Crossfade <postmaster@" + host + ">",
		"To: <" + w.user + ">",
		"Subject: " + subject,
		"Date: " + w.now.Format("Mon, 02 Jan 2006 15:04:05 -0700"),
		fmt.Sprintf("Message-ID: <wrapped.%s.%d@%s>", sum, o.meta.UID, host),
		"Auto-Submitted: auto-generated",
		"MIME-Version: 1.0",
		`Content-Type: multipart/mixed; boundary="` + boundary + `"`,
		"",
		"--" + boundary,
		"Content-Type: text/plain; charset=utf-8",
		"Content-Transfer-Encoding: quoted-printable",
		"", "",
	}
	if _, err := io.WriteString(out, strings.Join(head, "\r\n")); err != nil {
		return err
	}
	text := quotedprintable.NewWriter(out)
	_, err := io.WriteString(text, w.text())
	if err = errors.Join(err, text.Close()); err != nil {
		return err
	}
	kind, encoding := "message/rfc822", "7bit"
	if !plain {
		kind, encoding = `application/octet-stream; name="message.eml"`, "base64"
	}
	_, err = fmt.Fprintf(out, "\r\n--%s\r\nContent-Type: %s\r\nContent-Transfer-Encoding: %s\r\nContent-Disposition: attachment; filename=\"message.eml\"\r\n\r\n",
		boundary, kind, encoding)
	if err != nil {
		return err
	}
	if err := w.attach(out, plain); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "\r\n--%s--\r\n", boundary)
	return err
}

// text is for the owner of the mailbox and for whoever he asks.
func (w *wrapper) text() string {
	o := w.original
	date := "that system does not tell"
	if !o.meta.Date.IsZero() {
		date = o.meta.Date.Format("Mon, 02 Jan 2006 15:04:05 -0700")
	}
	return strings.Join([]string{
		"The " + w.refused + " mail system refused this message as it is. It is attached, whole",
		"and unchanged: open or save the attachment message.eml.",
		"",
		"Folder on the other system: " + w.folder,
		fmt.Sprintf("UID there: %d", o.meta.UID),
		"Received: " + date,
		fmt.Sprintf("Size: %d octets", o.body.size),
		"What the " + w.refused + " system said: " + w.words,
		"",
	}, "\r\n")
}

func (w *wrapper) attach(out io.Writer, plain bool) error {
	body := io.NewSectionReader(w.original.body, 0, w.original.body.size)
	if plain {
		_, err := io.Copy(out, body)
		return err
	}
	enc := base64.NewEncoder(base64.StdEncoding, &lineBreaker{w: out})
	_, err := io.Copy(enc, body)
	return errors.Join(err, enc.Close())
}

// lineBreaker breaks base64 into lines.
type lineBreaker struct {
	w  io.Writer
	at int // characters in the line
}

func (f *lineBreaker) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if f.at == base64Line {
			if _, err := io.WriteString(f.w, "\r\n"); err != nil {
				return 0, err
			}
			f.at = 0
		}
		n := min(len(rest), base64Line-f.at)
		if _, err := f.w.Write(rest[:n]); err != nil {
			return 0, err
		}
		f.at, rest = f.at+n, rest[n:]
	}
	return len(p), nil
}

// sevenBit tells whether a message may stand in another one as it is: US-ASCII
// without NUL, in lines that are not too long and end in CRLF.
func sevenBit(r io.Reader) (bool, error) {
	br := bufio.NewReader(r)
	line, prev := 0, byte(0)
	for {
		c, err := br.ReadByte()
		if errors.Is(err, io.EOF) {
			return prev != '\r', nil
		}
		if err != nil {
			return false, err
		}
		if c == 0 || c >= 0x80 || (prev == '\r') != (c == '\n') {
			return false, nil
		}
		if prev = c; c == '\n' {
			line = 0
		} else if line++; line > longestLine+1 || line > longestLine && c != '\r' {
			return false, nil
		}
	}
}

// shorten cuts a name for a place with little room.
func shorten(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}

// wrapRefused carries the messages over that were refused in this pass, each as
// an attachment. That comes after all others of the folder: by then it is known
// that the server refuses single messages, and not the folder.
func (f *folderRun) wrapRefused() error {
	for _, uid := range sortedKeys(f.rec.Refused) {
		r := f.rec.Refused[uid]
		if !r.fresh || r.tooBig || r.Wrapped || r.Text == unrecognised {
			continue
		}
		if err := f.regain(); err != nil {
			return fmt.Errorf("source: %w", err)
		}
		if err := f.wrap(uid, r); err != nil {
			return err
		}
	}
	return nil
}

func (f *folderRun) wrap(uid uint32, r *refusal) error {
	t := &fetcher{keep: true, dir: f.p.c.TempDir, room: wrapInFile}
	defer func() { t.close() }()
	failures, err := f.lane.src.Fetch([]uint32{uid}, imapconn.Items{Flags: true, Date: true, Body: true}, t)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if len(failures) > 0 || len(t.msgs) != 1 {
		return nil // it stays refused, and is looked at again
	}
	w := &wrapper{user: f.p.job.User, host: f.p.job.Host, folder: f.src.Name, original: t.msgs[0], words: r.Text, now: time.Now()}
	w.refused = "new"
	if f.p.o.Back {
		w.refused = "old"
	}
	words, err := f.p.attic.put(f, w)
	if err != nil {
		return fmt.Errorf("destination: folder %q: %w", atticName, err)
	}
	if words != "" {
		r.Text += "; as an attachment it was refused too: " + words
		return nil
	}
	r.Wrapped, r.Skip = true, never
	f.unsaved = true
	return nil
}

// tellRefused reports what was refused in this pass.
func (f *folderRun) tellRefused() {
	for _, uid := range sortedKeys(f.rec.Refused) {
		if r := f.rec.Refused[uid]; r.fresh {
			r.fresh = false
			f.p.problem(f.refusedProblem(uid, r))
		}
	}
}

func (f *folderRun) refusedProblem(uid uint32, r *refusal) Problem {
	if r.Wrapped {
		return Problem{Folder: f.src.Name, UID: uid, Class: ClassWrapped, Text: fmt.Sprintf("it is in %q as an attachment: %s", f.p.attic.name(), r.Text)}
	}
	return Problem{Folder: f.src.Name, UID: uid, Class: ClassRefused, Text: r.Text}
}
