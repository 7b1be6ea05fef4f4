package main

import (
	"fmt"
	"io"
	"strings"
)

// progress shows how far long work has come: a bar on a terminal that is drawn
// over, and plain lines anywhere else.
type progress struct {
	w     io.Writer
	width int // of the terminal; 0: none
	drawn bool
}

func newProgress(w io.Writer) progress { return progress{w: w, width: terminal(w)} }

// line prints a step. On a terminal the bar says enough.
func (p *progress) line(text string) {
	if p.width == 0 {
		fmt.Fprintln(p.w, clean(text))
	}
}

// bar draws the bar; elsewhere it does nothing.
func (p *progress) bar(text string) {
	if p.width == 0 {
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", clip(clean(text), p.width-1))
	p.drawn = true
}

// clear takes the bar away, so that a line can be printed.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) end() { p.clear() }

// barText draws done of all, the part of the next one from its messages.
func barText(done, all, messagesDone, messages int) string {
	const width = 24
	part := 0.0
	if messages > 0 && done < all {
		part = min(1, float64(messagesDone)/float64(messages)) * float64(all-done)
	}
	full := 0
	if all > 0 {
		full = int((float64(done) + part*0.99) / float64(all) * width)
	}
	full = max(0, min(width, full))
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "]"
}
