package token

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// UserMark stands for the login name in a path and in a command's arguments.
const UserMark = "{user}"

// File reads the token from a file at each login, so that whoever renews the
// file needs not tell us. It holds the bare token, or JSON with access_token and
// optionally expires_in (from the file's time of change), expires_at or expiry.
type File struct {
	Path string // {user} in it is the login name; without it one token opens all mailboxes
}

// PerUser implements Provider.
func (f File) PerUser() bool { return strings.Contains(f.Path, UserMark) }

// Fetch implements Provider.
func (f File) Fetch(_ context.Context, user string) (Token, error) {
	fail := func(err error) (Token, error) {
		return Token{}, &Error{From: "token file " + f.Path, User: user, Text: err.Error(), Hint: "the file holds the access token, or JSON with access_token"}
	}
	path := f.Path
	if f.PerUser() {
		if user == "" || user == "." || user == ".." || strings.ContainsAny(user, "/\\\x00") || strings.ContainsRune(user, filepath.Separator) {
			return fail(errors.New("the login name cannot be part of a file name"))
		}
		path = strings.ReplaceAll(path, UserMark, user)
	}
	file, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fail(err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxToken+1))
	if err != nil {
		return fail(err)
	}
	if len(data) > maxToken {
		return fail(errors.New("it is too large for a token"))
	}
	t, err := parse(data, info.ModTime())
	if err != nil {
		return fail(err)
	}
	if !t.Expires.IsZero() && !time.Now().Before(t.Expires) {
		return fail(fmt.Errorf("the token in it ended at %s: whoever renews it has stopped", t.Expires.UTC().Format(time.RFC3339)))
	}
	t.Expires = time.Time{} // looked at again each time
	return t, nil
}

// commandTime is the longest that a command may take.
const commandTime = 30 * time.Second

// Command runs a program that prints the token, bare or as JSON (see [File]). A
// token without a time is kept for five minutes. There is no shell.
type Command struct {
	Args []string // program and arguments; {user} in an argument is the login name
}

// PerUser implements Provider.
func (c Command) PerUser() bool {
	return slices.ContainsFunc(c.Args, func(a string) bool { return strings.Contains(a, UserMark) })
}

// Fetch implements Provider.
func (c Command) Fetch(ctx context.Context, user string) (Token, error) {
	if len(c.Args) == 0 {
		return Token{}, errors.New("token command: none is set")
	}
	fail := func(err error) (Token, error) {
		return Token{}, &Error{From: "token command " + c.Args[0], User: user, Text: err.Error(), Hint: "run it by hand as the user who runs crossfade"}
	}
	if strings.HasPrefix(user, "-") {
		return fail(errors.New("a login name that begins with - would be taken for an option"))
	}
	args := slices.Clone(c.Args[1:])
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], UserMark, user)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var out, complaint capped
	cmd := exec.CommandContext(ctx, c.Args[0], args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = 2 * time.Second // a child of it may hold the pipes
	made := time.Now()
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it did not end in time (%w)", context.Cause(ctx))
		}
		if words := complaint.lastLine(); words != "" {
			err = fmt.Errorf("%w: it says: %s", err, words)
		}
		return fail(err)
	}
	if out.over {
		return fail(errors.New("it printed too much for a token"))
	}
	t, err := parse(out.buf.Bytes(), made)
	if err != nil {
		return fail(err)
	}
	if t.Expires.IsZero() {
		t.Expires = made.Add(unsaid)
	}
	return t, nil
}

// capped keeps the first octets that are written to it.
type capped struct {
	buf  bytes.Buffer
	over bool
}

func (c *capped) Write(p []byte) (int, error) {
	if room := maxToken - c.buf.Len(); len(p) > room {
		c.buf.Write(p[:room])
		c.over = true
		return len(p), nil
	}
	return c.buf.Write(p)
}

// lastLine gives what a program complained of last, without what may be a secret.
func (c *capped) lastLine() string {
	text := strings.TrimSpace(c.buf.String())
	return printable(cutLong(text[strings.LastIndexByte(text, '\n')+1:]))
}
