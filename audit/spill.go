package audit

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"crossfade/journal"
	"crossfade/mail"
)

// fact is what the journal or the queue says of one recipient.
type fact struct {
	user string
	id   mail.ID
	n    int
	kind journal.Kind
	copy bool
	// at and route are those of a delivery.
	at    time.Time
	route mail.Route
	text  string
}

// What the queue says, beside the kinds of the journal.
const (
	factQueued journal.Kind = "queued"
	factParked journal.Kind = "in-park"
)

// buckets is over how many files the facts are spread, so that one of them at a
// time fits into memory.
const buckets = 64

// spill keeps facts in files of a temporary directory, by user.
type spill struct {
	dir   string
	files [buckets]*os.File
	w     [buckets]*bufio.Writer
}

func newSpill(temp string) (*spill, error) {
	dir, err := os.MkdirTemp(temp, "crossfade-audit-")
	if err != nil {
		return nil, fmt.Errorf("audit: %w (it needs room in the temporary directory)", err)
	}
	s := &spill{dir: dir}
	for i := range s.files {
		if s.files[i], err = os.CreateTemp(dir, "part-"); err != nil {
			return nil, errors.Join(fmt.Errorf("audit: %w", err), s.close())
		}
		s.w[i] = bufio.NewWriterSize(s.files[i], 16<<10)
	}
	return s, nil
}

func (s *spill) close() error {
	for _, f := range s.files {
		if f != nil {
			_ = f.Close() // it is removed
		}
	}
	return os.RemoveAll(s.dir)
}

// put writes a fact. The fields hold no control characters but the text, of which
// they are taken away.
func (s *spill) put(f fact) error {
	h := fnv.New32a()
	h.Write([]byte(f.user))
	w := s.w[h.Sum32()%buckets]
	text := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, f.text)
	_, err := fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%t\t%d\t%s\t%s\n", f.user, f.id, f.n, f.kind, f.copy, f.at.UnixMilli(), f.route, text)
	if err != nil {
		return fmt.Errorf("audit: keep what was read: %w", err)
	}
	return nil
}

// ledgers reads one of the files, users in the order of their addresses.
func (s *spill) ledgers(i int) ([]*ledger, error) {
	if err := s.w[i].Flush(); err != nil {
		return nil, fmt.Errorf("audit: keep what was read: %w", err)
	}
	if _, err := s.files[i].Seek(0, 0); err != nil {
		return nil, fmt.Errorf("audit: read what was kept: %w", err)
	}
	byUser := map[string]*ledger{}
	sc := bufio.NewScanner(s.files[i])
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		f, err := parseFact(sc.Text())
		if err != nil {
			return nil, fmt.Errorf("audit: read what was kept: %w", err)
		}
		l := byUser[f.user]
		if l == nil {
			l = &ledger{user: f.user, items: map[itemKey]*item{}}
			byUser[f.user] = l
		}
		l.take(f)
	}
	list := make([]*ledger, 0, len(byUser))
	for _, l := range byUser {
		list = append(list, l)
	}
	slices.SortFunc(list, func(x, y *ledger) int { return strings.Compare(x.user, y.user) })
	return list, sc.Err()
}

// parseFact reads what put wrote.
func parseFact(line string) (fact, error) {
	f := strings.SplitN(line, "\t", 8)
	if len(f) != 8 {
		return fact{}, fmt.Errorf("%q has %d fields", line, len(f))
	}
	n, err := strconv.Atoi(f[2])
	at, err2 := strconv.ParseInt(f[5], 10, 64)
	return fact{user: f[0], id: mail.ID(f[1]), n: n, kind: journal.Kind(f[3]), copy: f[4] == "true",
		at: time.UnixMilli(at), route: mail.Route(f[6]), text: f[7]}, errors.Join(err, err2)
}
