//go:build !unix

package main

import "os"

// terminalSize treats everything as a file: progress is printed as lines.
func terminalSize(*os.File) (width, height int) { return 0, 0 }

// hideInput cannot turn off the echo here.
func hideInput(*os.File) (restore func(), err error) { return func() {}, nil }
