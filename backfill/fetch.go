package backfill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"crossfade/backfill/imapconn"
)

// incoming is a message of the source on its way.
type incoming struct {
	meta imapconn.Meta
	id   identity
	body *body
	keep []string // flags that the destination keeps
	done bool     // paired or refused
	// drops counts how often the connection ended when it was offered alone.
	drops int
}

// fetcher takes messages off a reader: their identity, and their bodies when
// keep says so.
type fetcher struct {
	host string
	dir  string
	keep bool
	room int64 // octets that may be kept in memory; what is beyond goes to files
	mem  arena

	h    *hasher
	open bool // a message has begun and not ended
	cur  *body
	uid  uint32
	msgs []*incoming
}

func (t *fetcher) Begin(uid uint32, size int64) (io.Writer, error) {
	t.cur.close() // of an attempt that broke off
	t.uid, t.cur, t.open = uid, nil, true
	if t.h == nil {
		t.h = newHasher(t.host)
	}
	t.h.reset()
	if !t.keep {
		return t.h, nil
	}
	var err error
	// What the server announced in the list may be a lie: what counts is here.
	file := size > spoolOver || size > t.room
	if t.cur, err = newBody(size, file, t.dir, &t.mem); err != nil {
		return nil, err
	}
	t.cur.room = min(t.cur.room, t.room)
	return io.MultiWriter(t.h, t.cur), nil
}

func (t *fetcher) End(m imapconn.Meta) error {
	if !t.open || m.UID != t.uid {
		return fmt.Errorf("message %d ends that never began", m.UID)
	}
	msg := &incoming{meta: m, id: t.h.end(), body: t.cur}
	if t.cur != nil {
		msg.meta.Size = t.cur.size
		if t.cur.file == nil {
			t.room -= t.cur.size
		}
	}
	t.msgs = append(t.msgs, msg)
	t.open, t.cur = false, nil
	return nil
}

func (t *fetcher) close() {
	t.cur.close()
	for _, m := range t.msgs {
		m.body.close()
	}
	t.mem.cut(0)
}

// fetched is a batch that was read from the source.
type fetched struct {
	metas    []imapconn.Meta // the messages that were asked for
	held     int64           // octets of the budget
	t        *fetcher
	failures []imapconn.Failure
	err      error
}

// copyAll copies messages batch by batch: while one is being appended, the next
// is being read, and behind the last one the lane's next folder.
func (f *folderRun) copyAll(todo []imapconn.Meta) error {
	batches, stop := make(chan *fetched), make(chan struct{})
	b := f.firstBatch(todo)
	go func() {
		defer close(batches)
		for len(todo) > 0 {
			if b == nil {
				b = f.fetch(todo[:f.batchSize(todo)])
			}
			todo = todo[len(b.metas):]
			select {
			case batches <- b:
			case <-stop:
				f.release(b)
				return
			}
			if b.err != nil {
				return
			}
			b = nil
		}
		f.lane.readAhead()
	}()
	var err error
	for b := range batches {
		if err == nil {
			if err = f.copyBatch(b); err != nil {
				// The reader is for one goroutine: wait until it is ours again.
				close(stop)
			}
		}
		f.release(b)
	}
	return err
}

// release gives up the memory of a batch.
func (f *folderRun) release(b *fetched) {
	b.t.close()
	f.p.c.together().memory.give(b.held)
}

// fetch reads a batch.
func (f *folderRun) fetch(metas []imapconn.Meta) *fetched {
	b := &fetched{metas: metas, t: &fetcher{host: f.p.job.Host, dir: f.p.c.TempDir, keep: true, mem: arena{from: &f.p.c.together().bodies}}}
	var octets, inMemory int64
	for _, m := range metas {
		octets += m.Size
		if m.Size <= spoolOver {
			inMemory += m.Size
		}
	}
	if b.err = f.p.takeSource(f.p.ctx, len(metas), octets); b.err != nil {
		return b
	}
	if b.held, b.err = f.p.c.together().memory.take(f.p.ctx, inMemory); b.err != nil {
		return b
	}
	b.t.room = b.held
	b.failures, b.err = f.lane.src.Fetch(uidsOf(metas), imapconn.Items{Flags: true, Date: true, Body: true}, b.t)
	slices.SortFunc(b.t.msgs, byUID)
	return b
}

func byUID(a, b *incoming) int { return cmp.Compare(a.meta.UID, b.meta.UID) }

// copyBatch pairs the messages of a batch that are on the destination already,
// and appends the others.
func (f *folderRun) copyBatch(b *fetched) error {
	if f.p.ctx.Err() != nil {
		return context.Cause(f.p.ctx)
	}
	if f.p.halted.Load() {
		return errStopped
	}
	if b.err != nil {
		return fmt.Errorf("source: %w", b.err)
	}
	f.noteFailures(b.failures)
	f.p.crash("after-fetch")
	for _, m := range b.t.msgs {
		m.done = f.p.attic.wraps(m.id)
	}
	if err := f.cand.adopt(b.t.msgs); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	f.p.crash("after-adopt")
	rest := slices.DeleteFunc(slices.Clone(b.t.msgs), func(m *incoming) bool { return m.done })
	if err := f.append(rest); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	f.p.tally(func(_ *Report, g *Progress) { g.MessagesDone += len(b.metas) })
	f.p.show(false)
	f.p.mark(false)
	return nil
}

// phantomAfter is the number of passes after which a message that is listed,
// but that the server answers OK for without handing it out, counts as none.
const phantomAfter = 3

func (f *folderRun) noteFailures(failures []imapconn.Failure) {
	for _, x := range failures {
		pr := Problem{Folder: f.src.Name, UID: x.UID, Class: ClassUnreadable, Text: x.Err.Error()}
		switch {
		case x.Gone:
			pr.Class, pr.Text = ClassVanished, "it was listed and is gone from the source"
		default:
			if f.rec.Unread == nil {
				f.rec.Unread = map[uint32]int{}
			}
			f.rec.Unread[x.UID]++
			if errors.Is(x.Err, imapconn.ErrOmitted) && f.rec.Unread[x.UID] > phantomAfter {
				pr.Class = ClassVanished
				pr.Text = fmt.Sprintf("it is listed, but in %d passes the source never had a message for it", f.rec.Unread[x.UID])
			}
			f.failed = true
		}
		f.p.problem(pr)
	}
}
