package demo

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
)

//go:embed testdata/*.eml
var samples embed.FS

// templates reads the sample messages, by name.
func templates() ([][]byte, error) {
	names, err := fs.Glob(samples, "testdata/*.eml")
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, name := range names {
		b, err := samples.ReadFile(name)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// tokenField marks a message so that it can be counted wherever it turns up.
const tokenField = "X-Crossfade-Demo: "

// render makes the message with the given token for a user.
func render(template []byte, user, token string) []byte {
	b := bytes.ReplaceAll(template, []byte("{{user}}"), []byte(user))
	return append([]byte(tokenField+token+"\r\n"), b...)
}

// tokenOf finds the token of a message and the offset at which the message as
// it was sent begins: below what servers put on top.
func tokenOf(body []byte) (token string, at int, err error) {
	at = bytes.Index(body, []byte(tokenField))
	if at < 0 {
		return "", 0, fmt.Errorf("a message without a token: %.60q", body)
	}
	line, _, _ := bytes.Cut(body[at+len(tokenField):], []byte("\r\n"))
	return string(line), at, nil
}
