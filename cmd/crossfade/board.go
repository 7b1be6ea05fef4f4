package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"crossfade/backfill"
	"crossfade/cutover"
)

// logEvery is how often a wait that draws no bars says how far it is.
const logEvery = 30 * time.Second

// board is what a wait shows: a line for each user at work, as many as the
// terminal has room for, and one for all.
func (w *wait) board() []string {
	var active []cutover.Status
	for u := range w.waiting {
		if s := w.last[u]; s.Active() && s.Phase != cutover.PhaseWaiting {
			active = append(active, s)
		}
	}
	// Whoever began first stays on top: lines must not jump about.
	slices.SortFunc(active, func(a, b cutover.Status) int {
		if d := a.Started.Compare(b.Started); d != 0 {
			return d
		}
		return strings.Compare(a.User, b.User)
	})
	room := max(w.shown.height-3, 0) // one for all, one for what is left out, one that stays free
	hidden := max(len(active)-room, 0)
	var lines []string
	active = active[:len(active)-hidden]
	name := 0
	for _, s := range active {
		name = min(max(name, utf8.RuneCountInString(s.User)), longestUser)
	}
	for _, s := range active {
		lines = append(lines, userLine(s, name))
	}
	if hidden > 0 && room > 0 {
		lines = append(lines, fmt.Sprintf("and %s at work", count(hidden, "more user", "more users")))
	}
	return append(lines, w.sum())
}

// longestUser is where addresses are cut off, so that something else fits too.
const longestUser = 32

// userLine is one user at work; width is that of the first column.
func userLine(s cutover.Status, width int) string {
	p := s.Progress
	name := clip(s.User, width)
	if s.Phase != cutover.PhaseCopy && s.Phase != cutover.PhaseFinal || p.Messages == 0 {
		return fmt.Sprintf("%-*s %s", width, name, phaseText(s))
	}
	text := fmt.Sprintf("%-*s %s %d/%d messages", width, name, barText(0, 1, p.MessagesDone, p.Messages), p.MessagesDone, p.Messages)
	if s.Phase == cutover.PhaseFinal {
		text += ", held"
	}
	return text + rateText(p)
}

// rateText says how fast, and how long yet.
func rateText(p backfill.Progress) string {
	text := ""
	if p.MessagesPerSecond > 0 {
		text = fmt.Sprintf(", %.0f/s, %s/s", p.MessagesPerSecond, size(int64(p.BytesPerSecond)))
	}
	if left, ok := p.Left(); ok {
		text += ", " + lengthOf(left) + " left"
	}
	return text
}

// lengthOf prints a time to come: the farther, the rougher.
func lengthOf(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()+0.5))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// together adds up the passes of all users at work.
func (w *wait) together() (all backfill.Progress) {
	for u := range w.waiting {
		s := w.last[u]
		if !s.Active() {
			continue
		}
		p := s.Progress
		all.Messages += p.Messages
		all.MessagesDone += p.MessagesDone
		all.Bytes += p.Bytes
		all.BytesDone += p.BytesDone
		all.LimitWaits = max(all.LimitWaits, p.LimitWaits)
		if p.MessagesDone < p.Messages && s.Phase != cutover.PhaseLimit { // what is done has no speed any more
			all.MessagesPerSecond += p.MessagesPerSecond
			all.BytesPerSecond += p.BytesPerSecond
		}
	}
	return all
}

// sum is the progress of all users together.
func (w *wait) sum() string {
	p := w.together()
	all := len(w.users)
	text := fmt.Sprintf("%d/%d users", all-len(w.waiting), all)
	if p.Messages > 0 {
		text += fmt.Sprintf(", this pass %d/%d messages, %s", p.MessagesDone, p.Messages, size(p.BytesDone)) + rateText(p)
	}
	return barText(all-len(w.waiting), all, p.MessagesDone, p.Messages) + " " + text
}

// show draws the board, or says now and then how far the work is.
func (w *wait) show(now time.Time) {
	if w.shown.width > 0 {
		w.shown.block(w.board())
		return
	}
	if w.logged.IsZero() {
		w.logged = now
	}
	if len(w.waiting) > 0 && now.Sub(w.logged) >= logEvery {
		w.logged = now
		w.shown.line(strings.TrimSpace(w.sum()))
	}
}
