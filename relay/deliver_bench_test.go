package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
)

// benchQueue hands out n messages and takes any outcome.
type benchQueue struct {
	env     *mail.Envelope
	body    string
	left    atomic.Int64
	settled atomic.Int64
	n       int64
	done    chan struct{}
}

func (q *benchQueue) Claim(ctx context.Context, _ mail.Route, _ int) (*queue.Lease, error) {
	if q.left.Add(-1) < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &queue.Lease{Envelope: q.env, Until: time.Now().Add(time.Hour), Items: []queue.Item{{Since: time.Now()}}}, nil
}

func (q *benchQueue) Renew(context.Context, *queue.Lease, bool) error { return nil }

func (q *benchQueue) Settle(_ context.Context, _ *queue.Lease, outcomes []queue.Outcome, _ ...queue.NewMessage) error {
	if outcomes[0].Kind != queue.Done {
		return fmt.Errorf("%w: %s", queue.ErrClosed, outcomes[0].Reply)
	}
	if q.settled.Add(1) == q.n {
		close(q.done)
	}
	return nil
}

func (q *benchQueue) Open(context.Context, mail.ID) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(q.body)), nil
}

// BenchmarkDeliver sends 4 KiB messages to a sink in the same process, whose
// work is part of the figure.
func BenchmarkDeliver(b *testing.B) {
	sink, err := mailtest.NewSink(mailtest.SinkConfig{DiscardBody: true, Extensions: []string{"PIPELINING", "8BITMIME"}})
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	backend, err := NewBackend(BackendConfig{Name: mail.Old, Target: outTarget(sink)})
	if err != nil {
		b.Fatal(err)
	}
	body := "Subject: one\r\n\r\n" + strings.Repeat("a line of text that is about as long as lines of text are in mails\r\n", 60)
	q := &benchQueue{body: body, n: int64(b.N), done: make(chan struct{}), env: &mail.Envelope{ID: mail.NewID(), From: outAddr("a@far.test"),
		Size: int64(len(body)), Recipients: []mail.Recipient{{Addr: outAddr("b@b.test")}}}}
	q.left.Store(int64(b.N))
	d, err := NewDeliverer(DelivererConfig{Queue: q, Backends: map[mail.Route]*Backend{mail.Old: backend}, Hostname: "h.test"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	b.ReportAllocs()
	b.ResetTimer()
	go func() { ran <- d.Run(ctx) }()
	<-q.done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	stop()
	if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
		b.Error(err)
	}
}
