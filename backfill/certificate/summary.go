package certificate

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crossfade/backfill"
)

// Summary is the certificates of one run.
type Summary struct {
	Format        int       `json:"format"`
	Issued        time.Time `json:"issued"`
	Complete      bool      `json:"complete"` // all of them
	Tool          string    `json:"tool"`
	Relay         string    `json:"relay"`
	Users         int       `json:"users"`
	Verified      int       `json:"verified"` // the others have an error
	CompleteUsers int       `json:"complete_users"`
	Messages      int       `json:"messages"` // on old
	Matched       int       `json:"matched"`
	Missing       int       `json:"missing"`
	List          []Line    `json:"list"`
	Sum           string    `json:"sha256,omitempty"` // as in Certificate
}

// Line is one user of a run.
type Line struct {
	User       string `json:"user"`
	Complete   bool   `json:"complete"`
	Error      string `json:"error,omitempty"` // he could not be compared
	Messages   int    `json:"messages"`
	Matched    int    `json:"matched"`
	Exceptions int    `json:"exceptions"` // messages with a problem, missing ones among them
	Missing    int    `json:"missing"`
	File       string `json:"file,omitempty"` // names in the same directory
	Page       string `json:"page,omitempty"`
	Sum        string `json:"certificate_sha256,omitempty"`
}

// Run writes the files of one run.
type Run struct {
	Dir     string
	By      Maker
	summary Summary
}

// Add writes a user's certificate and its page, and gives the names of both.
func (r *Run) Add(v backfill.Verification, state string) (file, page string, err error) {
	by := r.By
	by.State = state
	c, err := New(v, by)
	if err != nil {
		return "", "", err
	}
	base := FileName(v.User)
	line := Line{User: v.User, Complete: c.Complete, Missing: v.Missing, File: base + ".json", Page: base + ".html", Sum: c.Sum}
	for _, f := range v.Folders {
		line.Messages += f.OnSource
		line.Matched += f.Matched
	}
	for _, p := range v.Problems {
		line.Exceptions += max(p.Count, 1)
	}
	data, err := c.Encode()
	if err != nil {
		return "", "", err
	}
	html, err := c.Page(line.File)
	if err != nil {
		return "", "", err
	}
	if err := r.write(line.File, data); err != nil {
		return "", "", err
	}
	if err := r.write(line.Page, html); err != nil {
		return "", "", err
	}
	r.summary.Verified++
	if line.Complete {
		r.summary.CompleteUsers++
	}
	r.summary.Messages += line.Messages
	r.summary.Matched += line.Matched
	r.summary.Missing += line.Missing
	r.summary.List = append(r.summary.List, line)
	return filepath.Join(r.Dir, line.File), filepath.Join(r.Dir, line.Page), nil
}

// Fail notes a user who could not be compared.
func (r *Run) Fail(user string, err error) {
	r.summary.List = append(r.summary.List, Line{User: user, Error: err.Error()})
}

// Finish writes summary.json and index.html.
func (r *Run) Finish() (Summary, error) {
	s := &r.summary
	s.Format, s.Issued, s.Tool, s.Relay = Format, r.By.Now.UTC().Truncate(time.Second), r.By.Tool, r.By.Relay
	s.Users = len(s.List)
	s.Complete = s.CompleteUsers == s.Users && s.Users > 0
	if s.List == nil {
		s.List = []Line{}
	}
	var err error
	if s.Sum, err = sumOf(*s); err != nil {
		return *s, err
	}
	data, err := indent(*s)
	if err != nil {
		return *s, err
	}
	html, err := render("summary", summaryText, struct {
		S     Summary
		Style template.CSS
	}{*s, template.CSS(styleText)})
	if err != nil {
		return *s, err
	}
	return *s, errors.Join(r.write("summary.json", data), r.write("index.html", html))
}

// write puts a file into the directory, whole or not at all. Certificates name
// people and folders: others than the owner and his group do not read them.
func (r *Run) write(name string, data []byte) error {
	if err := os.MkdirAll(r.Dir, 0o750); err != nil {
		return fmt.Errorf("writing certificates: %w", err)
	}
	f, err := os.CreateTemp(r.Dir, ".certificate-*")
	if err != nil {
		return fmt.Errorf("writing certificates: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o640), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(r.Dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // gone already after the rename
		return fmt.Errorf("writing the certificate %s: %w", name, err)
	}
	return nil
}

// longestName keeps names of files below what file systems take.
const longestName = 150

// FileName makes the name of a file out of an address. Addresses that differ
// have names that differ, on file systems that ignore case too: they are in
// lower case as the relay keeps them.
func FileName(address string) string {
	var b strings.Builder
	for i, c := range []byte(address) {
		plain := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '@' || c == '-' || c == '_' || c == '+' || c == '.' && i > 0
		if plain {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	name := b.String()
	if len(name) <= longestName {
		return name
	}
	sum := sha256.Sum256([]byte(address))
	return name[:longestName] + "-" + hex.EncodeToString(sum[:8])
}
