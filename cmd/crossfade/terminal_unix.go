//go:build unix

package main

import (
	"cmp"
	"os"

	"golang.org/x/sys/unix"
)

// terminalSize gives the columns and lines of a terminal, and 0 for anything
// else.
func terminalSize(f *os.File) (width, height int) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return cmp.Or(int(ws.Col), 80), cmp.Or(int(ws.Row), 24)
}
