package main

import (
	"fmt"
	"strings"
	"time"

	"crossfade/cutover"
	"crossfade/router"
)

// foundText counts the mail that was found in the mailbox that the user did not
// read.
func foundText(s cutover.Status) string {
	if s.Sweep == nil {
		return ""
	}
	var parts []string
	if n := s.Sweep.Old.Count; n > 0 {
		parts = append(parts, fmt.Sprintf("%d found on old", n))
	}
	if n := s.Sweep.New.Count; n > 0 {
		parts = append(parts, fmt.Sprintf("%d found on new", n))
	}
	return strings.Join(parts, ", ")
}

// sweepText says in short what there is to know of the mailbox that the user does
// not read: why it is not looked at, or what was found there.
func sweepText(s cutover.Status) string {
	switch {
	case s.Sweep == nil:
		return ""
	case s.Sweep.Err != "":
		return s.Sweep.Err
	case s.Sweep.Off != "" && s.State == router.StateNew:
		return s.Sweep.Off
	}
	return foundText(s)
}

// sweepLines is all that is known of the window of a user.
func sweepLines(s cutover.Status) (lines []string) {
	w := s.Sweep
	if w == nil {
		return nil
	}
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if s.State == router.StateNew || s.State == router.StateDone {
		if !w.Flipped.IsZero() {
			add("reads new since %s", momentOf(w.Flipped))
		}
		if w.Uncopied {
			add("set new by hand: nothing was copied before that; what was on old is carried by the sweep")
		}
	}
	if w.Old.Count > 0 {
		add("%s found on old since the flip, the last at %s%s", count(w.Old.Count, "message", "messages"), momentOf(w.Old.Last), fromText(w.Old))
	}
	if w.New.Count > 0 {
		add("%s found on new before the flip, the last at %s%s", count(w.New.Count, "message", "messages"), momentOf(w.New.Last), fromText(w.New))
	}
	for side, left := range map[string]cutover.Left{"old": w.OldLeft, "new": w.NewLeft} {
		if left.Count > 0 && (side == "old") == (s.State == router.StateNew || s.State == router.StateDone) {
			add("%s found on %s and not carried since %s: %s", count(left.Count, "message", "messages"), side, momentOf(left.Since), left.Text)
		}
	}
	if w.Mirror && s.State == router.StateNew {
		add("old is kept current with new, as of %s", momentOf(w.Mirrored))
	}
	switch {
	case w.Off != "":
		add("%s", w.Off)
	case w.Err != "":
		add("%s; tried again at %s", w.Err, moment(w.Next))
	case !w.Looked.IsZero():
		add("last look at all folders that went through: %s", momentOf(w.Looked))
	}
	if w.Waits != "" && w.Waits != w.Err {
		add("not done yet: %s", w.Waits)
	}
	return lines
}

// momentOf prints a time, and says so when there is none yet.
func momentOf(t time.Time) string {
	if t.IsZero() {
		return "no time yet"
	}
	return moment(t)
}

// fromText names the hosts that mail came from.
func fromText(f cutover.Found) string {
	if len(f.From) == 0 {
		return ""
	}
	var names []string
	for _, o := range f.From[:min(len(f.From), 5)] {
		names = append(names, fmt.Sprintf("%s (%d)", o.Host, o.Count))
	}
	if more := len(f.From) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return ", from " + strings.Join(names, ", ")
}
