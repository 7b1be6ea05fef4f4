package certificate

import (
	"fmt"
	"strings"
	"time"

	"crossfade/backfill"
)

// plot is the copy over time, as the page draws it.
type plot struct {
	Messages, Bytes string // points of two lines
	MostMessages    string
	MostBytes       string
	Begin, End      string
}

// The area of the lines inside the drawing, in its own units.
const (
	plotLeft, plotTop     = 10, 10
	plotWidth, plotHeight = 700, 180
)

// newPlot gives nil when there is nothing to draw.
func newPlot(points []backfill.Point) *plot {
	if len(points) < 2 {
		return nil
	}
	first, last := points[0].At, points[len(points)-1].At
	span := last.Sub(first)
	var messages int
	var octets int64
	for _, p := range points {
		messages, octets = max(messages, p.Messages), max(octets, p.Bytes)
	}
	if span <= 0 || messages == 0 {
		return nil
	}
	var m, b strings.Builder
	for _, p := range points {
		x := plotLeft + plotWidth*float64(p.At.Sub(first))/float64(span)
		at := func(part float64) float64 { return plotTop + plotHeight*(1-part) }
		fmt.Fprintf(&m, "%.1f,%.1f ", x, at(float64(p.Messages)/float64(messages)))
		fmt.Fprintf(&b, "%.1f,%.1f ", x, at(float64(p.Bytes)/float64(max(octets, 1))))
	}
	return &plot{
		Messages: strings.TrimSpace(m.String()), Bytes: strings.TrimSpace(b.String()),
		MostMessages: number(messages), MostBytes: size(octets), Begin: moment(first), End: moment(last),
	}
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// number writes a count with a thin space between thousands.
func number(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

func size(n int64) string {
	value, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
