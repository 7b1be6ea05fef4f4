package window

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// mark is the header field by which the test knows its messages.
const mark = "X-Window"

// way is how a message comes.
type way string

const (
	past    way = "past"    // it lay on old before
	outside way = "outside" // to the relay, which the MX names
	stale   way = "stale"   // straight to old: a cached MX, or a colleague on old
	within  way = "within"  // straight to new: a colleague on new
)

// book is what the test knows of each message.
type book struct {
	mu      sync.Mutex
	next    int
	entries map[string]*entry // by mark
}

type entry struct {
	to    *person
	way   way
	maybe bool // its reply was lost: it may be there or not
	gone  bool // its user deleted it
	// touched: it was filed away in the mailbox that its user did not read. When he deletes it in the other one, nothing says
	// that the two are the same, and it comes back: rather that than a message too few.
	touched bool
}

func newBook() *book { return &book{entries: map[string]*entry{}} }

func (b *book) add(to *person, w way) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	id := fmt.Sprintf("m%06d", b.next)
	b.entries[id] = &entry{to: to, way: w}
	return id
}

func (b *book) change(id string, f func(*entry)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[id]; e != nil {
		f(e)
	}
}

func (b *book) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.entries, id)
}

// totals counts what is to be there, by its way.
func (b *book) totals() (ways map[way]int, deleted, maybe int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ways = map[way]int{}
	for _, e := range b.entries {
		ways[e.way]++
		if e.gone {
			deleted++
		}
		if e.maybe {
			maybe++
		}
	}
	return ways, deleted, maybe
}

func message(id, to string, size int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: sender@outside.test\r\nTo: %s\r\nSubject: %s\r\nMessage-ID: <%[2]s@outside.test>\r\nDate: Fri, 20 Nov 2026 10:00:00 +0000\r\n%s: %[2]s\r\n\r\n", to, id, mark)
	for n := 0; b.Len() < size; n++ {
		fmt.Fprintf(&b, "line %d of message %s\r\n", n, id)
	}
	return b.Bytes()
}

// send brings a message to somebody on one of the ways. A message that was refused for now is sent again; one whose reply was
// lost may have been taken, and is noted as that.
func (c *company) send(ctx context.Context, to *person, w way, size int) error {
	addr := map[way]string{outside: c.relay.smtp, stale: c.oldMX.Addr, within: c.newMX.Addr}[w]
	id := c.book.add(to, w)
	for ctx.Err() == nil {
		doubt, err := submit(addr, to.addr, message(id, to.addr, size))
		var reply *smtp.SMTPError
		switch {
		case err == nil:
			return nil
		case doubt:
			c.book.change(id, func(e *entry) { e.maybe = true })
			return nil
		case errors.As(err, &reply) && reply.Code >= 500:
			c.book.forget(id)
			return fmt.Errorf("%s to %s was refused for good: %w", w, to.addr, err)
		}
		sleep(ctx, 100*time.Millisecond)
	}
	c.book.forget(id)
	return nil
}

// submit sends one message; doubt tells that it may have been taken although there is an error.
func submit(addr, to string, body []byte) (doubt bool, err error) {
	c, err := smtp.Dial(addr)
	if err != nil {
		return false, err
	}
	defer c.Close()
	if err := c.Mail("sender@outside.test", nil); err != nil {
		return false, err
	}
	if err := c.Rcpt(to, nil); err != nil {
		return false, err
	}
	w, err := c.Data()
	if err != nil {
		return false, err
	}
	if _, err := w.Write(body); err != nil {
		return false, err // without its end it cannot be taken
	}
	var reply *smtp.SMTPError
	err = w.Close()
	return err != nil && !errors.As(err, &reply), err
}

// stream sends mail until ctx is over: half of it from outside, the rest past the relay.
func (c *company) stream(ctx context.Context, seed uint64, every time.Duration) error {
	rnd := rand.New(rand.NewPCG(seed, 7))
	for ctx.Err() == nil {
		w := []way{outside, outside, stale, within}[rnd.IntN(4)]
		if err := c.send(ctx, c.people[rnd.IntN(len(c.people))], w, 500+rnd.IntN(6000)); err != nil {
			return err
		}
		sleep(ctx, every)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// ready asks whether the relay takes mail.
func ready(api string) error {
	resp, err := http.Get("http://" + api + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.ToLower(resp.Status))
	}
	return nil
}
