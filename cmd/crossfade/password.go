package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"crossfade/relay/submission"
)

// passwordCmd makes a line of smtp.users_file.
type passwordCmd struct {
	Name string `arg:"" help:"Name that the client will log in with."`

	in *os.File // nil: standard input
}

// Run reads the password from standard input, without showing it on a terminal.
func (c *passwordCmd) Run(a *app) error {
	in := c.in
	if in == nil {
		in = os.Stdin
	}
	password, err := readPassword(a.stderr, in)
	if err != nil {
		return fmt.Errorf("read the password from standard input: %w", err)
	}
	line, err := submission.Hash(c.Name, password)
	if err != nil {
		return usageError(err, "")
	}
	_, err = fmt.Fprintln(a.stdout, line)
	return err
}

func readPassword(prompt io.Writer, in *os.File) (string, error) {
	if width, _ := terminalSize(in); width > 0 {
		fmt.Fprint(prompt, "Password: ")
		defer fmt.Fprintln(prompt)
		restore, err := hideInput(in)
		if err != nil {
			return "", err
		}
		defer restore()
	}
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !(errors.Is(err, io.EOF) && line != "") {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}
