package resolver

import (
	"container/list"
	"time"

	"github.com/miekg/dns"
)

// How long answers are kept.
const (
	minTTL      = 5 * time.Second // of anything: one message asks for the same several times
	maxTTL      = time.Hour
	maxNegative = 5 * time.Minute  // that there is nothing (RFC 2308, 5, allows more)
	noSOA       = 30 * time.Second // the same, when the server does not say for how long
	failureTTL  = 15 * time.Second // that nobody could tell (RFC 2308, 7)
)

// entry is an answer in the cache. It does not change.
type entry struct {
	name      string // canonical, at the end of the CNAMEs
	records   []dns.RR
	authentic bool
	err       error // ErrNoName, ErrPermanent, or ErrTemporary for a while
	until     time.Time
}

// size is about how many octets an entry takes.
func (e *entry) size(q question) int {
	n := 200 + len(q.name) + len(e.name)
	for _, rr := range e.records {
		n += 100 + dns.Len(rr)
	}
	return n
}

// cache keeps answers, those used last the longest. It is guarded by its Resolver's lock.
type cache struct {
	maxEntries, maxOctets int
	octets                int
	places                map[question]*list.Element
	order                 *list.List // of *kept, the latest used in front
}

type kept struct {
	q    question
	e    *entry
	size int
}

func newCache(entries, octets int) cache {
	return cache{maxEntries: entries, maxOctets: octets, places: map[question]*list.Element{}, order: list.New()}
}

// get gives an answer that is not over yet, or nil.
func (c *cache) get(q question, now time.Time) *entry {
	el := c.places[q]
	if el == nil {
		return nil
	}
	k := el.Value.(*kept)
	if !now.Before(k.e.until) {
		c.drop(el)
		return nil
	}
	c.order.MoveToFront(el)
	return k.e
}

func (c *cache) put(q question, e *entry) {
	if el := c.places[q]; el != nil {
		c.drop(el)
	}
	k := &kept{q: q, e: e, size: e.size(q)}
	c.places[q] = c.order.PushFront(k)
	c.octets += k.size
	for c.order.Len() > c.maxEntries || c.octets > c.maxOctets {
		c.drop(c.order.Back())
	}
}

func (c *cache) drop(el *list.Element) {
	k := el.Value.(*kept)
	c.order.Remove(el)
	delete(c.places, k.q)
	c.octets -= k.size
}
