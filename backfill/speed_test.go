package backfill

import (
	"testing"
	"time"
)

func TestSpeed(t *testing.T) {
	var s speed
	began := time.Unix(1000, 0)
	var g Progress
	g.Messages = 10_000
	at := func(sec float64, messages int, bytes int64) {
		g.MessagesDone, g.BytesDone = messages, bytes
		s.note(began.Add(time.Duration(sec*float64(time.Second))), &g)
	}
	at(0, 0, 0)
	if _, ok := g.Left(); ok || g.MessagesPerSecond != 0 {
		t.Errorf("a rate out of nothing: %+v", g)
	}
	for sec := range 20 {
		at(float64(sec+1), (sec+1)*100, int64(sec+1)*1000)
	}
	if left, ok := g.Left(); !ok || left != 80*time.Second || g.BytesPerSecond != 1000 {
		t.Errorf("%v %v, %+v", left, ok, g)
	}
	// The server slows down: what was long ago does not count.
	for sec := 21; sec <= 40; sec++ {
		at(float64(sec), 2000+(sec-20)*10, 20_000)
	}
	if g.MessagesPerSecond != 10 || g.BytesPerSecond != 0 || len(s.seen) > 15 {
		t.Errorf("%+v, %d points", g, len(s.seen))
	}
	g.MessagesDone = g.Messages
	if _, ok := g.Left(); ok {
		t.Error("all is done, and time is left")
	}
}
