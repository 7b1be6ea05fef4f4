package main

import (
	"fmt"
	"strings"
	"time"

	"crossfade/backfill"
	"crossfade/cutover"
)

func (a *app) printMoves(moves []cutover.Status) error {
	t := newTable(a.stdout, "USER", "STATE", "PHASE", "PROGRESS", "RATE", "LEFT", "COPIED", "THROTTLED", "LAG", "HELD", "TRIES", "NEXT", "PROBLEM")
	for _, s := range moves {
		problem := s.Err
		if s.Limit != "" {
			problem = s.Limit
		}
		if s.Paused != "" {
			problem = "paused: " + s.Paused
		}
		if problem == "" {
			problem = problemText(s)
		}
		if text := sweepText(s); text != "" && s.Err == "" && s.Limit == "" && s.Paused == "" {
			problem = text
		}
		rate, left := paceText(s)
		t.row(s.User, string(s.State), string(s.Phase), progressText(s), rate, left, fmt.Sprintf("%d (%s)", s.Copied, size(s.Bytes)),
			brief(s.Throttled), lagText(s, time.Now()), brief(s.HoldTime), fmt.Sprint(s.Attempts), moment(s.Next), clip(problem, 100))
	}
	return t.flush()
}

// printReasons prints what the table has no room for.
func (a *app) printReasons(moves []cutover.Status) {
	for _, s := range moves {
		lines := sweepLines(s)
		if s.Err == "" && len(s.Problems) == 0 && len(lines) == 0 {
			continue
		}
		fmt.Fprintf(a.stdout, "%s:\n", clean(s.User))
		if s.Err != "" {
			fmt.Fprintf(a.stdout, "  %s\n", clean(s.Err))
		}
		for _, line := range lines {
			fmt.Fprintf(a.stdout, "  %s\n", clean(line))
		}
		printProblems(a.stdout, s.Problems)
	}
}

// totalText is the line below a table of moves: all users who are not in sync
// yet, or those of a wave; empty when there is none.
func totalText(name string, t cutover.Total, now time.Time) string {
	if t.Users == 0 {
		return ""
	}
	text := fmt.Sprintf("%s: %s not in sync", name, count(t.Users, "user", "users"))
	for _, part := range []struct {
		n    int
		what string
	}{{t.AtWork, "at work"}, {t.Limited, "waiting for a daily limit"}, {t.Paused, "paused"}, {t.Failed, "failed and tried again"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	if t.Messages > 0 {
		text += fmt.Sprintf("; %d/%d messages, %s/%s", t.MessagesDone, t.Messages, size(t.BytesDone), size(t.Bytes))
	}
	if t.MessagesPerSecond > 0 {
		text += fmt.Sprintf(", %.0f/s, %s/s", t.MessagesPerSecond, size(int64(t.BytesPerSecond)))
	}
	if !t.ETA.IsZero() {
		text += fmt.Sprintf("; through in %s, at %s", lengthOf(max(t.ETA.Sub(now), 0)), t.ETA.UTC().Format("2006-01-02 15:04 MST"))
	}
	if t.Unknown > 0 {
		text += fmt.Sprintf("; size not known yet: %s", strings.Join(t.UnknownUsers, ", "))
		if more := t.Unknown - len(t.UnknownUsers); more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	return text
}

// totalLines are those of all users, and of each wave.
func totalLines(all cutover.Total, waves []cutover.Total, now time.Time) (lines []string) {
	if text := totalText("all", all, now); text != "" {
		lines = append(lines, text)
	}
	for _, t := range waves {
		name := "wave " + t.Wave
		if t.Wave == "" {
			name = "without a wave"
		}
		lines = append(lines, totalText(name, t, now))
	}
	return lines
}

// brief prints a length of time, and nothing for none.
func brief(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return d.Round(10 * time.Millisecond).String()
}

// progressText says how far the present pass has come.
func progressText(s cutover.Status) string {
	p := s.Progress
	if p.Messages == 0 || !s.Active() {
		return ""
	}
	return fmt.Sprintf("%d/%d", p.MessagesDone, p.Messages)
}

// paceText says how fast the present pass is, and how long it takes yet.
func paceText(s cutover.Status) (rate, left string) {
	if s.Phase == cutover.PhaseLimit && !s.ETA.IsZero() {
		return "", lengthOf(max(time.Until(s.ETA), 0))
	}
	if !s.Active() || s.Phase == cutover.PhaseWaiting || s.Progress.MessagesPerSecond <= 0 {
		return "", ""
	}
	if d, ok := s.Progress.Left(); ok {
		left = lengthOf(d)
	}
	return fmt.Sprintf("%.0f/s", s.Progress.MessagesPerSecond), left
}

// lagText says how far new may be behind old for a user who is kept in sync: the
// age of the last pass that went through.
func lagText(s cutover.Status, now time.Time) string {
	if s.Phase != cutover.PhaseReady && s.Phase != cutover.PhaseFailed || s.Synced.IsZero() {
		return ""
	}
	return lengthOf(max(now.Sub(s.Synced), 0))
}

// problemText counts problems by class. Of statuses that an older relay wrote
// the classes are not known.
func problemText(s cutover.Status) string {
	classes := s.Classes
	if len(classes) == 0 {
		classes = map[string]int{}
		for _, p := range s.Problems {
			classes[p.Class] += max(p.Count, 1)
		}
	}
	if text := classText(classes); text != "" {
		return text
	}
	if n := len(s.Problems); n > 0 {
		return count(n, "problem", "problems")
	}
	return ""
}

// classText counts problems by class, in the order of the classes.
func classText(classes map[string]int) string {
	text := ""
	for _, class := range backfill.Classes() {
		if n := classes[class]; n > 0 {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%d %s", n, class)
		}
	}
	return text
}
