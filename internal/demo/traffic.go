package demo

import (
	"context"
	"fmt"
	"net/smtp"
	"sync"
	"sync/atomic"
	"time"
)

// traffic sends mail through the relay without pause until it is told to stop.
type traffic struct {
	addr      string
	users     []string
	templates [][]byte
	book      *book
	n         atomic.Int64
	refused   atomic.Int64
}

// senders is how many clients send at once.
const senders = 3

// run sends until ctx ends. What got a 250 is in the book then; its error says
// that a client could not go on.
func (t *traffic) run(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make(chan error, senders)
	for range senders {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := t.one(ctx); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// one sends a message to one user, and now and then to two.
func (t *traffic) one(ctx context.Context) error {
	n := int(t.n.Add(1))
	to := []string{t.users[n%len(t.users)]}
	if n%10 == 0 {
		to = append(to, t.users[(n/10+3)%len(t.users)])
		if to[0] == to[1] {
			to = to[:1]
		}
	}
	token := fmt.Sprintf("sent-%06d", n)
	body := render(t.templates[n%len(t.templates)], to[0], token)
	if err := smtp.SendMail(t.addr, nil, "sender@outside.example", to, body); err != nil {
		t.refused.Add(1)
		return fmt.Errorf("sending %s to %v: %w", token, to, err)
	}
	for _, user := range to {
		t.book.expect(user, token, body, t.book.sent)
	}
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond):
	}
	return nil
}
