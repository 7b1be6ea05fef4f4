package backfill

import (
	"errors"
	"fmt"
	"time"

	"crossfade/backfill/imapconn"
)

const (
	// dropsAlone is how often a message may end the connection when it is offered
	// alone, until it counts as refused.
	dropsAlone = 2
	// mostDrops in a row without any message being taken mean that it is not the
	// messages: finding one among 100 takes 8.
	mostDrops = 20
)

// bring appends a batch. A server may end the connection instead of refusing a
// message, and would do so in every pass: so the batch is halved then too, after
// a look for what the server took before it closed.
func (f *folderRun) bring(j *journal, msgs []*incoming) error {
	err := f.send(msgs)
	if err == nil {
		f.drops = 0
	}
	if err == nil || f.lane.dst.Alive() || f.p.ctx.Err() != nil || f.p.halted.Load() {
		return err
	}
	if limit := exhausted(SideDest, err); limit != nil {
		return limit // it has nothing to do with the messages
	}
	if f.drops++; f.drops > mostDrops {
		return fmt.Errorf("%w (the connection ended %d times in a row, so it is not one message)", err, f.drops)
	}
	f.p.log.Warn("the destination ended the connection inside a batch", "user", f.p.job.User, "folder", f.src.Name, "messages", len(msgs), "error", err)
	left, rerr := f.reconnect(j, msgs)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	switch {
	case len(left) == 0:
		return nil
	case len(left) == 1 && len(msgs) == 1:
		m := left[0]
		if m.drops++; m.drops >= dropsAlone {
			f.refuse(m, "the server ends the connection when it is offered: "+err.Error())
			return nil
		}
	}
	half := (len(left) + 1) / 2
	if err := f.bring(j, left[:half]); err != nil || half == len(left) {
		return err
	}
	return f.bring(j, left[half:])
}

// send offers a batch in the way that is fastest on this server.
func (f *folderRun) send(msgs []*incoming) error {
	if f.lane.dst.Has("MULTIAPPEND") {
		return f.appendAll(msgs)
	}
	return f.appendEach(msgs)
}

// selectDest opens the folder, over a new connection when the server ends the old
// one meanwhile: Dovecot 2.3 crashes when several connections are the first to
// open folders that it makes by itself.
func (f *folderRun) selectDest() (imapconn.Selected, error) {
	sel, err := f.lane.dst.Select(f.wire)
	// Dovecot makes folders of its configuration when they are opened, and says so to
	// who opens one while another connection does.
	var e *imapconn.Error
	if errors.As(err, &e) && e.Code == "ALREADYEXISTS" {
		sel, err = f.lane.dst.Select(f.wire)
	}
	if err == nil || f.lane.dst.Alive() || f.p.ctx.Err() != nil {
		return sel, err
	}
	if _, slower := imapconn.Throttled(err); slower {
		return sel, err
	}
	f.p.log.Warn("the destination ended the connection when a folder was opened; connecting again", "user", f.p.job.User, "folder", f.src.Name, "error", err)
	dst, derr := f.p.c.Dialer.Open(f.p.ctx, f.p.job.Dest)
	if derr != nil {
		return sel, errors.Join(err, derr)
	}
	f.lane.dst.Close()
	f.lane.dst = dst
	return dst.Select(f.wire)
}

// reconnect opens a new connection to the destination and gives the messages
// that are not there. The journal is written again with the present time: the
// server may be writing what is offered next when we end, too.
func (f *folderRun) reconnect(j *journal, msgs []*incoming) (left []*incoming, err error) {
	dst, err := f.p.c.Dialer.Open(f.p.ctx, f.p.job.Dest)
	if err != nil {
		return nil, err
	}
	f.lane.dst.Close()
	f.lane.dst = dst
	sel, err := dst.Select(f.wire)
	if err != nil {
		return nil, err
	}
	if sel.UIDValidity != f.rec.DstValidity {
		return nil, fmt.Errorf("append: %w: from %d to %d", imapconn.ErrChanged, f.rec.DstValidity, sel.UIDValidity)
	}
	if _, err := f.find(j); err != nil {
		return nil, fmt.Errorf("look for what the server took: %w", err)
	}
	for _, m := range msgs {
		if m.done {
			continue
		}
		if _, there := f.rec.Pairs.dest(m.meta.UID); there {
			f.taken([]*incoming{m})
			continue
		}
		left = append(left, m)
	}
	if len(left) < len(msgs) {
		f.drops = 0
	}
	j.At = time.Now().UnixMilli()
	return left, f.save()
}
