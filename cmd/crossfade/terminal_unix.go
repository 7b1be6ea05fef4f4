//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// terminalWidth gives the columns of a terminal, and 0 for anything else.
func terminalWidth(f *os.File) int {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if ws.Col == 0 {
		return 80
	}
	return int(ws.Col)
}
