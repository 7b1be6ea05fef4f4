package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// notices makes the notifications that the verdicts ask for: at most one of a
// kind for a lease. A failure whose bounce cannot be made is not a failure
// yet: it becomes a retry, or is parked when the sender cannot be reached.
func (w *deliverWorker) notices(work context.Context, lease *queue.Lease, verdicts []deliverVerdict) []queue.NewMessage {
	var msgs []queue.NewMessage
	for _, kind := range [...]mail.Notify{mail.NotifyFailure, mail.NotifyDelay, mail.NotifySuccess} {
		if !wantsNotice(verdicts, kind) {
			continue
		}
		msg, err := w.notice(work, lease, verdicts, kind)
		if err != nil {
			w.withoutNotice(lease, verdicts, kind, err)
			continue
		}
		msgs = append(msgs, msg)
		for i := range verdicts {
			if verdicts[i].notice == kind {
				verdicts[i].Notice = msg.Envelope.ID
			}
		}
	}
	return msgs
}

func wantsNotice(verdicts []deliverVerdict, kind mail.Notify) bool {
	for i := range verdicts {
		if verdicts[i].notice == kind {
			return true
		}
	}
	return false
}

// withoutNotice changes the verdicts that came with a notification which could
// not be made.
func (w *deliverWorker) withoutNotice(lease *queue.Lease, verdicts []deliverVerdict, kind mail.Notify, err error) {
	var r *mail.Reply
	nowhere := errors.As(err, &r) && r.Permanent()
	w.log.Warn("a notification could not be made", "id", string(lease.Envelope.ID), "error", err)
	for i := range verdicts {
		v := &verdicts[i]
		if v.notice != kind {
			continue
		}
		v.notice, v.Noticed = 0, false
		switch {
		case kind != mail.NotifyFailure:
		case nowhere:
			v.Kind, v.Reply = queue.Park, v.Reply+"; its sender cannot be told: "+err.Error()
		default:
			v.Kind, v.Reply = queue.Retry, v.Reply+"; the bounce could not be made yet: "+err.Error()
			v.At = w.d.cfg.Now().Add(w.d.cfg.Schedule.Next(lease.Items[i].Attempts+1, w.d.cfg.Jitter()))
		}
	}
}

// notice makes one notification.
func (w *deliverWorker) notice(work context.Context, lease *queue.Lease, verdicts []deliverVerdict, kind mail.Notify) (queue.NewMessage, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(work), settleTime)
	defer cancel()
	env := lease.Envelope
	rcpts, err := w.d.cfg.Resolve(ctx, env.From)
	if err != nil {
		return queue.NewMessage{}, fmt.Errorf("find the way to the sender <%s>: %w", env.From, err)
	}
	if len(rcpts) == 0 {
		return queue.NewMessage{}, fmt.Errorf("find the way to the sender <%s>: it leads to nobody", env.From)
	}
	original, full, err := w.original(ctx, env, kind)
	if err != nil {
		return queue.NewMessage{}, err
	}
	now := w.d.cfg.Now()
	report := dsnReport{
		id: mail.NewID(), hostname: w.d.cfg.Hostname, kind: kind, env: env, now: now,
		remote: w.b.currentTarget().Address, original: original, full: full,
	}
	w.fill(&report, lease, verdicts)
	body, utf8, eight := report.build()
	out := &mail.Envelope{ID: report.id, Recipients: rcpts, Received: now, Size: int64(len(body)), UTF8: utf8,
		RequireTLS: env.RequireTLS, // RFC 8689, 5: a report is to be protected as its message
		MessageID:  "<" + string(report.id) + "@" + w.d.cfg.Hostname + ">"}
	if eight {
		out.Body = mail.Body8BitMIME
	}
	return queue.NewMessage{Envelope: out, Body: body}, nil
}

// fill puts the recipients of its kind into a report.
func (w *deliverWorker) fill(report *dsnReport, lease *queue.Lease, verdicts []deliverVerdict) {
	for i := range verdicts {
		v := &verdicts[i]
		if v.notice != report.kind {
			continue
		}
		r := dsnRcpt{rcpt: lease.Envelope.Recipients[v.N], status: v.status, reply: v.reply, reason: v.reason}
		switch report.kind {
		case mail.NotifyDelay:
			r.action = "delayed"
			if expire := w.d.cfg.Schedule.Expire; expire > 0 {
				report.retryTo = later(report.retryTo, lease.Items[i].Since.Add(expire))
			}
		case mail.NotifySuccess:
			r.action = "relayed"
			if w.b.currentTarget().LMTP {
				r.action = "delivered"
			}
		default:
			r.action = "failed"
		}
		report.rcpts = append(report.rcpts, r)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// original reads what a notification returns of its message. A damaged message
// is reported with nothing of it.
func (w *deliverWorker) original(ctx context.Context, env *mail.Envelope, kind mail.Notify) ([]byte, bool, error) {
	rc, err := w.d.cfg.Queue.Open(ctx, env.ID)
	if err == nil {
		defer rc.Close()
		var original []byte
		var full bool
		if original, full, err = dsnOriginal(env.Whole(rc), dsnReturnsFull(kind, env)); err == nil {
			return original, full, nil
		}
	}
	if errors.Is(err, queue.ErrCorrupt) {
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("read the message that a notification is about: %w", err)
}
