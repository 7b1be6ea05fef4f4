package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"crossfade/admin"
)

// The exit codes; scripts rely on them.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong usage or configuration
	exitPartly = 3
)

// commandError is an error with an exit code and a hint of what to do.
type commandError struct {
	code int
	err  error
	hint string
}

func (e *commandError) Error() string { return e.err.Error() }
func (e *commandError) Unwrap() error { return e.err }

// usageError marks err as a wrong use of the program, or a wrong configuration.
func usageError(err error, hint string) error {
	return &commandError{code: exitUsage, err: err, hint: hint}
}

// partly says that some of the work was done and some was not.
func partly(format string, args ...any) error {
	return &commandError{code: exitPartly, err: fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	var ce *commandError
	if errors.As(err, &ce) {
		return ce.code
	}
	return exitFailed
}

// report tells a person what went wrong: the error, then what to do.
func (a *app) report(err error) {
	if errors.Is(err, context.Canceled) && a.ctx.Err() != nil {
		fmt.Fprintln(a.stderr, "crossfade: interrupted")
		return
	}
	lines := strings.Split(err.Error(), "\n") // an excerpt of a file has several
	for i, line := range lines {
		lines[i] = clean(line)
	}
	fmt.Fprintf(a.stderr, "crossfade: %s\n", strings.Join(lines, "\n"))
	var p *admin.Problem
	if errors.As(err, &p) {
		for _, f := range p.Errors {
			if strings.Contains(err.Error(), f.Message) {
				continue // the detail says it already
			}
			fmt.Fprintf(a.stderr, "  %s\n", clean(f.String()))
		}
	}
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(a.stderr, "  hint: %s\n", clean(hint))
	}
}

func hintOf(err error) string {
	var ce *commandError
	if errors.As(err, &ce) && ce.hint != "" {
		return ce.hint
	}
	var p *admin.Problem
	if errors.As(err, &p) {
		return p.Hint
	}
	return ""
}
