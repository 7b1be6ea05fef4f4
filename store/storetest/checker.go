package storetest

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Checker keeps account of what a client was promised and what backends saw,
// in the style of Jepsen's total-queue test. It is safe for concurrent use.
type Checker struct {
	mu      sync.Mutex
	offered map[mail.ID]int       // recipients
	acked   map[mail.ID]bool      //
	dots    map[rcptKey]int       // final dots
	settled map[rcptKey]bool      // done was acknowledged
	doubts  map[rcptKey]int       // faults between a dot and its record
	bounces map[rcptKey][]mail.ID // of failures that were handed to Settle
	parent  map[mail.ID][]rcptKey // the other way round
}

type rcptKey struct {
	id mail.ID
	n  int
}

// NewChecker makes an empty account.
func NewChecker() *Checker {
	return &Checker{
		offered: map[mail.ID]int{}, acked: map[mail.ID]bool{}, dots: map[rcptKey]int{}, settled: map[rcptKey]bool{},
		doubts: map[rcptKey]int{}, bounces: map[rcptKey][]mail.ID{}, parent: map[mail.ID][]rcptKey{},
	}
}

// Note takes one event: "offer ID RECIPIENTS" before a Put, "ack ID" after it,
// "dot ID N" at a final dot, "settled ID N" when its record was acknowledged,
// "fail ID N BOUNCE" before a Settle that fails a recipient, "doubt ID N" for
// a fault between the permission for the dot and its record.
func (c *Checker) Note(event string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var what string
	var id, bounce mail.ID
	n := 0
	f := strings.Fields(event)
	if len(f) < 2 {
		return fmt.Errorf("event %q", event)
	}
	what, id = f[0], mail.ID(f[1])
	if len(f) > 2 {
		if _, err := fmt.Sscan(f[2], &n); err != nil {
			return fmt.Errorf("event %q: %w", event, err)
		}
	}
	if len(f) > 3 {
		bounce = mail.ID(f[3])
	}
	k := rcptKey{id, n}
	switch what {
	case "offer":
		c.offered[id] = n
	case "ack":
		c.acked[id] = true
	case "dot":
		c.dots[k]++
	case "settled":
		c.settled[k] = true
	case "doubt":
		c.doubts[k]++
	case "fail":
		c.offered[bounce] = 1
		c.bounces[k] = append(c.bounces[k], bounce)
		c.parent[bounce] = append(c.parent[bounce], k)
	default:
		return fmt.Errorf("event %q", event)
	}
	return nil
}

// Report is what does not add up.
type Report struct {
	Acked, Dots int
	Lost        []string // acknowledged, and neither delivered, bounced nor queued
	Unexpected  []string // delivered or queued although it cannot be
	Duplicates  []string // more dots than one and the faults that explain more
}

// Clean tells whether all adds up.
func (r Report) Clean() bool { return len(r.Lost)+len(r.Unexpected)+len(r.Duplicates) == 0 }

// Check compares the account with what is left in the queue.
func (c *Checker) Check(left []queue.Entry) Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Report{Acked: len(c.acked)}
	queued := map[rcptKey]bool{}
	there := map[mail.ID]bool{}
	for _, e := range left {
		there[e.Envelope.ID] = true
		for _, rc := range e.Rcpts {
			queued[rcptKey{e.Envelope.ID, rc.N}] = true
		}
	}
	for k, n := range c.dots {
		r.Dots += n
		there[k.id] = there[k.id] || k.n == 0
		if c.offered[k.id] <= k.n {
			r.Unexpected = append(r.Unexpected, fmt.Sprintf("%s/%d was delivered and never offered", k.id, k.n))
		}
		if n > 1+c.doubts[k] {
			r.Duplicates = append(r.Duplicates, fmt.Sprintf("%s/%d: %d dots, %d doubts", k.id, k.n, n, c.doubts[k]))
		}
	}
	for k := range queued {
		switch {
		case c.offered[k.id] <= k.n:
			r.Unexpected = append(r.Unexpected, fmt.Sprintf("%s/%d is queued and was never offered", k.id, k.n))
		case c.settled[k]:
			r.Unexpected = append(r.Unexpected, fmt.Sprintf("%s/%d is queued and was settled", k.id, k.n))
		case c.bounced(k, there):
			r.Unexpected = append(r.Unexpected, fmt.Sprintf("%s/%d is queued and its bounce too", k.id, k.n))
		}
	}
	for id := range c.acked {
		for n := range c.offered[id] {
			k := rcptKey{id, n}
			if c.dots[k] == 0 && !queued[k] && !c.bounced(k, there) {
				r.Lost = append(r.Lost, fmt.Sprintf("%s/%d", id, n))
			}
		}
	}
	sort.Strings(r.Lost)
	return r
}

// bounced tells whether a bounce for the recipient is queued or delivered.
func (c *Checker) bounced(k rcptKey, there map[mail.ID]bool) bool {
	for _, b := range c.bounces[k] {
		if there[b] {
			return true
		}
	}
	return false
}

// Left lists the whole queue.
func Left(ctx context.Context, s queue.Inspector) (all []queue.Entry, err error) {
	for cursor := ""; ; {
		page, next, err := s.List(ctx, queue.Filter{}, cursor, 500)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if cursor = next; next == "" {
			return all, nil
		}
	}
}

// FlipCheck flips a user with waiting mail and gives an error when a delivery
// is still allowed to go to the side that he has left (I3).
func FlipCheck(ctx context.Context, s Store) error {
	key := "flip@example.org"
	saved, _, err := s.SetUser(ctx, mailbox(key, router.StateOld), router.Change{By: "check"})
	if err != nil {
		return err
	}
	for range 3 {
		if err := s.Put(ctx, envelope(key), bodyOf("x")); err != nil {
			return err
		}
	}
	l, err := s.Claim(ctx, mail.Old, 1)
	if err != nil {
		return err
	}
	saved.State = router.StateCutover
	if saved, _, err = s.SetUser(ctx, saved, router.Change{By: "check"}); err != nil {
		return err
	}
	if s.Renew(ctx, l, true) == nil {
		return fmt.Errorf("a dot was allowed for %s after he was held", key)
	}
	saved.State = router.StateNew
	if _, _, err = s.SetUser(ctx, saved, router.Change{By: "check"}); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if l, err := s.Claim(short, mail.Old, 1); err == nil {
		return fmt.Errorf("%s was claimed for old after the flip to new", l.Envelope.ID)
	}
	return nil
}
