package main

import (
	"fmt"
	"io"
	"strings"
)

// progress shows how far long work has come: a bar on a terminal that is drawn
// over, and plain lines anywhere else.
type progress struct {
	w             io.Writer
	width, height int // of the terminal; 0: none
	drawn         int // lines
}

func newProgress(w io.Writer) progress {
	p := progress{w: w}
	p.width, p.height = terminal(w)
	return p
}

// line prints a step. On a terminal the bar says enough.
func (p *progress) line(text string) {
	if p.width == 0 {
		fmt.Fprintln(p.w, clean(text))
	}
}

// bar draws one line; elsewhere it does nothing.
func (p *progress) bar(text string) { p.block([]string{text}) }

// block draws lines over those before, in one write, so that nothing flickers.
// The cursor stays behind the last one.
func (p *progress) block(lines []string) {
	if p.width == 0 {
		return
	}
	var b strings.Builder
	b.WriteString(p.up())
	for i, text := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("\x1b[K" + clip(clean(text), p.width-1))
	}
	if p.drawn > len(lines) {
		b.WriteString("\x1b[J") // there were more lines before
	}
	fmt.Fprint(p.w, b.String())
	p.drawn = len(lines)
}

// up moves to the beginning of the first line that is drawn.
func (p *progress) up() string {
	if p.drawn > 1 {
		return fmt.Sprintf("\r\x1b[%dA", p.drawn-1)
	}
	return "\r"
}

// clear takes the lines away, so that others can be printed.
func (p *progress) clear() {
	switch {
	case p.drawn == 1:
		fmt.Fprint(p.w, "\r\x1b[K")
	case p.drawn > 1:
		fmt.Fprint(p.w, p.up()+"\x1b[J")
	}
	p.drawn = 0
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
