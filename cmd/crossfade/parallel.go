package main

import (
	"context"
	"fmt"
	"sync"
)

// asking is a question that is asked about many users, some at once.
type asking[T any] struct {
	app    *app
	doing  string // for the progress, as in "compared"
	atOnce int
	ask    func(ctx context.Context, address string) (T, error)
	// each gets the answers in the order of the addresses. Its error ends it all.
	each func(address string, answer T, err error) error
}

// ahead is how many answers wait for one that comes before them, for each that is
// asked for at once: an answer may be large, and there are many users.
const ahead = 4

// answer is what is known of one user.
type answer[T any] struct {
	value T
	err   error
	done  chan struct{}
}

// run asks about all addresses, and returns when no question is open.
func (q *asking[T]) run(addresses []string) error {
	ctx, cancel := context.WithCancel(q.app.ctx)
	answers, next := make([]answer[T], len(addresses)), make(chan int)
	for i := range answers {
		answers[i].done = make(chan struct{})
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	bar := newProgress(q.app.stderr)
	defer bar.end()
	finished := make(chan struct{}, len(addresses))
	workers := max(1, min(q.atOnce, len(addresses)))
	open := make(chan struct{}, workers*ahead) // asked, and not given to each
	for range workers {
		wg.Go(func() {
			for i := range next {
				answers[i].value, answers[i].err = q.ask(ctx, addresses[i])
				close(answers[i].done)
				finished <- struct{}{}
			}
		})
	}
	wg.Go(func() {
		defer close(next)
		for i := range addresses {
			select {
			case open <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	n := 0
	show := func() {
		bar.bar(barText(n, len(addresses), 0, 0) + fmt.Sprintf(" %d/%d users %s", n, len(addresses), q.doing))
	}
	for i, address := range addresses {
		for waiting := true; waiting; {
			show()
			select {
			case <-answers[i].done:
				waiting = false
			case <-finished:
				n++
			case <-ctx.Done():
				return q.app.ctx.Err()
			}
		}
		bar.clear()
		if err := q.each(address, answers[i].value, answers[i].err); err != nil {
			return err
		}
		answers[i] = answer[T]{} // one may be large
		<-open
	}
	return nil
}
