package daemon

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// book is what the senders know, and what operators saw of the users.
type book struct {
	mu       sync.Mutex
	to       map[string][]string // token -> recipients it was offered for
	body     map[string][]byte
	accepted map[string]mail.ID // token -> id in the 250
	spells   []spell
}

// spell is a time in which a user was in one state for certain: from the end of
// the change to it, no delivery of before under way any more, to the beginning
// of the next change.
type spell struct {
	user     string
	state    router.State
	from, to time.Time
}

func newBook() *book {
	return &book{to: map[string][]string{}, body: map[string][]byte{}, accepted: map[string]mail.ID{}}
}

func (b *book) offer(token string, to []string, body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.to[token], b.body[token] = to, body
}

func (b *book) accept(token string, id mail.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accepted[token] = id
}

func (b *book) spell(s spell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spells = append(b.spells, s)
}

// dot is a message that a backend took for one recipient.
type dot struct {
	token, user string
	id          mail.ID // in our Received header
	n           int     // place among the recipients
	side        mail.Route
	at          time.Time
	replied     bool
}

var (
	tokenField = regexp.MustCompile(`\nX-Token: (\S+)\r\n`)
	idField    = regexp.MustCompile(`\sid\s+([0-9A-HJKMNP-TV-Z]{26})[\s;]`)
)

// verdict is what the checker found.
type verdict struct {
	accepted, delivered, queued            int // recipients
	lost, unexpected, altered, unexplained []string
	wrongSide                              []string
	inDoubt, noReply                       int // duplicates by their explanation
}

func (v *verdict) bad() []string {
	return slices.Concat(v.lost, v.unexpected, v.altered, v.unexplained, v.wrongSide)
}

// check compares what was accepted with what arrived and what is still there.
func (w *world) check(left []queue.Entry) *verdict {
	b := w.book
	b.mu.Lock()
	defer b.mu.Unlock()
	v := &verdict{}
	got := map[string][]dot{}
	for side, sink := range map[mail.Route]*mailtest.Sink{mail.Old: w.old, mail.New: w.new} {
		for _, m := range sink.Messages() {
			for _, d := range v.dots(b, side, &m) {
				got[d.token+" "+d.user] = append(got[d.token+" "+d.user], d)
			}
		}
	}
	still := map[string]bool{}
	for _, e := range left {
		token, _, _ := strings.Cut(strings.Trim(e.Envelope.MessageID, "<>"), "@")
		for _, r := range e.Rcpts {
			still[token+" "+r.Addr.Key()] = true
			v.queued++
		}
	}
	for token := range b.accepted {
		for _, user := range b.to[token] {
			v.accepted++
			if key := token + " " + user; len(got[key]) == 0 && !still[key] {
				v.lost = append(v.lost, "lost: "+key+" "+string(b.accepted[token]))
			}
		}
	}
	doubts := w.doubts()
	for _, key := range slices.Sorted(maps.Keys(got)) {
		v.delivered++
		v.explain(got[key], doubts)
	}
	v.sides(b.spells, got)
	return v
}

// dots reads what a backend recorded of one message.
func (v *verdict) dots(b *book, side mail.Route, m *mailtest.Message) (out []dot) {
	found := tokenField.FindSubmatch(m.Body)
	if found == nil {
		v.unexpected = append(v.unexpected, fmt.Sprintf("unexpected: on %s without a token: %.200q", side, m.Body))
		return nil
	}
	token := string(found[1])
	if !bytes.HasSuffix(m.Body, b.body[token]) {
		v.altered = append(v.altered, "altered: "+token)
	}
	var id mail.ID
	if found := idField.FindSubmatch(m.Body); found != nil {
		id = mail.ID(found[1])
	}
	for _, r := range m.Rcpts {
		n := slices.Index(b.to[token], r.Addr)
		if n < 0 {
			v.unexpected = append(v.unexpected, fmt.Sprintf("unexpected: %s for %s on %s was never offered", token, r.Addr, side))
			continue
		}
		out = append(out, dot{token: token, user: r.Addr, id: id, n: n, side: side, at: m.Time, replied: r.Replied})
	}
	return out
}

// explain accepts a second delivery when the backend's reply to the first was
// never sent, or when the relay was killed in between and the next one said,
// before it delivered again, that it was in doubt about exactly this delivery.
// Each doubt explains one. (When the first was sent says less: a backend may
// read a dot after its sender is dead.)
func (v *verdict) explain(dots []dot, doubts []doubtLine) {
	slices.SortFunc(dots, func(a, b dot) int { return a.at.Compare(b.at) })
	used := map[int]bool{}
	for i := 0; i+1 < len(dots); i++ {
		d, next := dots[i], dots[i+1]
		known := false
		for j, l := range doubts {
			if !used[j] && l.Sending && l.ID == d.id && l.N == d.n && l.Time.Before(next.at) {
				used[j], known = true, true
				break
			}
		}
		switch {
		case !d.replied:
			v.noReply++
		case known:
			v.inDoubt++
		default:
			v.unexplained = append(v.unexplained, fmt.Sprintf("twice: %s %s (%s) on %s at %s and on %s at %s", d.token, d.user, d.id,
				d.side, d.at.Format(time.StampMicro), next.side, next.at.Format(time.StampMicro)))
		}
	}
}

// sides finds final dots on a side that the user was not on (I3, I4).
func (v *verdict) sides(spells []spell, got map[string][]dot) {
	byUser := map[string][]spell{}
	for _, s := range spells {
		byUser[s.user] = append(byUser[s.user], s)
	}
	for _, s := range byUser {
		slices.SortFunc(s, func(a, b spell) int { return a.from.Compare(b.from) })
	}
	for _, dots := range got {
		for _, d := range dots {
			list := byUser[d.user]
			i, _ := slices.BinarySearchFunc(list, d.at, func(s spell, t time.Time) int { return cmp.Or(s.to.Compare(t), -1) })
			if i == len(list) || !d.at.After(list[i].from) || !d.at.Before(list[i].to) {
				continue
			}
			if route, held := list[i].state.Route(); held || route != d.side {
				v.wrongSide = append(v.wrongSide, fmt.Sprintf("wrong side: %s %s (%s) on %s at %s, %s after the user was %s", d.token, d.user, d.id,
					d.side, d.at.Format(time.StampMicro), d.at.Sub(list[i].from), list[i].state))
			}
		}
	}
}

// doubtLine is what a relay logs at its start about a delivery of the one
// before.
type doubtLine struct {
	Msg     string     `json:"msg"`
	ID      mail.ID    `json:"id"`
	N       int        `json:"recipient"`
	Route   mail.Route `json:"route"`
	Sending bool       `json:"sending"`
	Time    time.Time  `json:"time"`
}

func (w *world) doubts() (out []doubtLine) {
	for _, l := range w.lives {
		f, err := os.Open(l.log)
		if err != nil {
			continue // it died before it wrote one
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			var d doubtLine
			if json.Unmarshal(lines.Bytes(), &d) == nil && d.Msg == "a delivery was under way when the process was killed" {
				out = append(out, d)
			}
		}
		_ = f.Close()
	}
	return out
}

// summary is the one line that a run ends with.
func (v *verdict) summary(w *world) string {
	kills, named := 0, 0
	for _, l := range w.lives {
		if l.hit {
			named++
		}
		kills++
	}
	return fmt.Sprintf("total queue: %d kills (%d at named points), accepted %d, delivered %d, still queued %d, lost %d, unexpected %d, altered %d, "+
		"wrong side %d, duplicated %d (killed between dot and settle: %d, reply never sent: %d, unexplained: %d)",
		kills-1, named, v.accepted, v.delivered, v.queued, len(v.lost), len(v.unexpected), len(v.altered),
		len(v.wrongSide), v.inDoubt+v.noReply+len(v.unexplained), v.inDoubt, v.noReply, len(v.unexplained))
}
