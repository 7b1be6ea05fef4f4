package relay

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

// deliverRules is what every outcome of one delivery depends on beside the
// recipient and the reply. Time and chance are handed in.
type deliverRules struct {
	schedule queue.Schedule
	route    mail.Route
	null     bool // the reverse-path is null: nobody to tell (RFC 5321, 4.5.5)
	passedOn bool // the backend has DSN: what the sender asked for is its duty now
	searched bool // mailboxes can be looked into
	now      time.Time
	jitter   float64
}

// deliverResult is how a recipient fared: an answer, or the error that ended
// the session before there was one.
type deliverResult struct {
	answer smtpclient.Answer
	err    error
	others bool // another recipient of the transaction was accepted
}

// deliverVerdict is what becomes of a recipient, and who is told.
type deliverVerdict struct {
	queue.Outcome
	notice mail.Notify   // the DSN that the sender gets: failure, delay, success or none (0)
	status mail.Enhanced // for the DSN
	reply  mail.Reply    // the backend's words; Code 0 when it said nothing
	reason string        // for the DSN when it said nothing
	alarm  string        // for operators; empty: none
	doubt  *DeliverDoubt // that ends with it; nil: none
}

// outcome decides about one recipient. It is the one place where replies turn
// into a message's fate:
//
//	2xx to the dot                       done
//	4xx, anything unknown                retry, fail when expired
//	connection or session failed         retry, fail when expired
//	no reply to the dot                  in doubt (deliverdoubt.go): looked up, then sent again; fail when expired
//	452 too many recipients              retry at once when others were taken
//	user unknown, on old or new (I8)     the other side; park when both refuse
//	relay denied, login demanded, SPF    retry with an alarm, park when expired: the backend is misconfigured
//	command unknown or out of step       retry, park when expired: it says nothing about the message
//	any other 5xx                        fail
//	stored message damaged or missing    park
//	TLS required of a server without     fail at the first attempt (RFC 8689), else retry
//	lease lost, cut before the dot       release
//
// What fails leaves with a bounce in the same step. Where no bounce may be
// sent (null reverse-path, NOTIFY without FAILURE) it is parked, because I2
// knows no other way out. A copy of `deliver: both` is only logged: the
// message itself went to the side that its user reads.
func (r deliverRules) outcome(item queue.Item, rcpt mail.Recipient, res deliverResult) deliverVerdict {
	v := deliverVerdict{Outcome: queue.Outcome{N: item.N}}
	if res.answer.Reply.Code == 0 {
		r.noAnswer(&v, item, rcpt, res.err)
		return v
	}
	a := res.answer
	v.reply, v.status = a.Reply, a.Reply.Enhanced
	v.Reply = fmt.Sprintf("%s (%s, in reply to %s)", a.Reply.String(), r.route, a.Step)
	switch {
	case a.Step == smtpclient.StepDot && a.Reply.Positive():
		r.done(&v, item, rcpt)
	case res.others && tooMany(a):
		v.Kind, v.At = queue.Retry, r.now
	case misconfigured(a), r.ours() && byOurAddress(a):
		v.alarm = fmt.Sprintf("%s refuses to take mail from this relay: allow it there", r.route)
		r.againOrPark(&v, item, rcpt)
	case !a.Reply.Permanent():
		r.again(&v, item, rcpt)
	case r.ours() && a.Step != smtpclient.StepMail && a.Reply.UnknownUser():
		r.unknownUser(&v, item)
	case outOfStep(a):
		r.againOrPark(&v, item, rcpt)
		if v.Kind == queue.Park {
			v.alarm = fmt.Sprintf("%s does not take the commands of mail: look at it, and let the message go on (queue retry)", r.route)
		}
	default:
		r.fail(&v, item, rcpt)
	}
	return v
}

// ours tells whether the route leads to one of the two mail systems.
func (r deliverRules) ours() bool { return r.route == mail.Old || r.route == mail.New }

func (r deliverRules) done(v *deliverVerdict, item queue.Item, rcpt mail.Recipient) {
	v.Kind = queue.Done
	if v.status == (mail.Enhanced{}) {
		v.status = mail.Enhanced{2, 0, 0}
	}
	if rcpt.Notify.Wants(mail.NotifySuccess) && !r.passedOn && !r.null && !item.Copy {
		v.notice = mail.NotifySuccess
	}
}

// noAnswer decides when the session ended before the backend answered for the
// recipient.
func (r deliverRules) noAnswer(v *deliverVerdict, item queue.Item, rcpt mail.Recipient, err error) {
	// The details of our network are no business of a sender.
	v.status, v.reason = mail.Enhanced{4, 4, 2}, "The receiving mail system could not be reached."
	var e *smtpclient.Error
	var reply *mail.Reply
	var bare *unprotectedError
	switch {
	case errors.As(err, &bare):
		r.unprotected(v, item, rcpt, bare)
	case errors.Is(err, smtpclient.ErrWithheld):
		v.Kind, v.Reply = queue.Release, "not sent: "+err.Error()
	case errors.Is(err, queue.ErrCorrupt), errors.Is(err, smtpclient.ErrLength):
		v.Kind, v.Reply = queue.Park, "the stored message is damaged and was not sent: "+err.Error()
		v.alarm = "a stored message is damaged: look at the disk, and export what is left of it"
	case errors.Is(err, queue.ErrNotFound):
		// When it was deleted meanwhile the lease is lost too, and the queue
		// ignores this. Otherwise its body is gone and trying again is no use.
		v.Kind, v.Reply = queue.Park, "the stored message is missing: "+err.Error()
		v.alarm = "a stored message is missing: look at the disk"
	case errors.Is(err, smtpclient.ErrSource):
		// Our own trouble is never a reason to give a message up.
		v.Kind, v.Reply = queue.Retry, err.Error()
		v.At = r.now.Add(r.schedule.Next(item.Attempts+1, r.jitter))
	case errors.As(err, &e) && e.InDoubt():
		v.reason = "The receiving mail system did not confirm that it took the message. It may have been delivered."
		v.Reply = err.Error() + "; the backend may have accepted the message"
		r.again(v, item, rcpt)
		v.Doubt = v.Kind == queue.Retry
		if v.Doubt && r.searched && r.ours() {
			v.At = r.now.Add(firstLook)
		}
	default:
		v.Reply = err.Error()
		if errors.As(err, &reply) {
			v.reply = *reply
			if !reply.Permanent() && reply.Enhanced != (mail.Enhanced{}) {
				v.status = reply.Enhanced
			}
		}
		r.again(v, item, rcpt)
	}
}

// again retries, until the schedule gives up.
func (r deliverRules) again(v *deliverVerdict, item queue.Item, rcpt mail.Recipient) {
	age, attempts := r.now.Sub(item.Since), item.Attempts+1
	if r.schedule.Expired(age, attempts) {
		v.Reply = fmt.Sprintf("given up after %s: %s", age.Round(time.Minute), v.Reply)
		if v.status = (mail.Enhanced{4, 4, 7}); v.reply.Permanent() {
			v.reply = mail.Reply{Code: 0} // a 5xx about the session says nothing about the message
		}
		r.fail(v, item, rcpt)
		return
	}
	v.Kind, v.At = queue.Retry, r.now.Add(r.schedule.Next(attempts, r.jitter))
	if r.schedule.NoticeDue(age, item.Noticed) && rcpt.Notify.Wants(mail.NotifyDelay) && !r.null && !item.Copy {
		v.notice, v.Noticed = mail.NotifyDelay, true
	}
	if v.status[0] != 4 {
		v.status = mail.Enhanced{4, 0, 0}
	}
}

// againOrPark is again for what is not the message's fault: it is never bounced.
func (r deliverRules) againOrPark(v *deliverVerdict, item queue.Item, rcpt mail.Recipient) {
	if r.again(v, item, rcpt); v.Kind == queue.Fail {
		v.Kind, v.notice = queue.Park, 0
	}
}

// fail gives the recipient up.
func (r deliverRules) fail(v *deliverVerdict, item queue.Item, rcpt mail.Recipient) {
	if v.status[0] != 5 && v.status != (mail.Enhanced{4, 4, 7}) {
		v.status = mail.Enhanced{5, 0, 0}
	}
	switch {
	case item.Copy:
		v.Kind, v.alarm = queue.Fail, "the copy for the other side was refused; the message itself is not affected"
	case r.null:
		v.Kind, v.Reply = queue.Park, v.Reply+"; no bounce is sent for a message without a sender"
	case !rcpt.Notify.Wants(mail.NotifyFailure):
		v.Kind, v.Reply = queue.Park, v.Reply+"; its sender asked for no bounce (NOTIFY)"
	default:
		v.Kind, v.notice = queue.Fail, mail.NotifyFailure
	}
}

// unknownUser is I8: during a migration one side's word that it does not know
// a user is a question to the other side, and both sides' word is one to the
// operators.
func (r deliverRules) unknownUser(v *deliverVerdict, item queue.Item) {
	other := r.route.Other()
	switch {
	case item.Copy:
		v.Kind, v.alarm = queue.Fail, fmt.Sprintf("%s does not know the user and got no copy; the message itself is not affected", r.route)
	case slices.Contains(item.Unknown, other):
		v.Kind = queue.Park
		v.alarm = "both sides say that they do not know the user: create the mailbox, or correct the user's table entry, and let the message go on (queue retry)"
		v.Reply += "; before that: " + item.LastReply
	default:
		v.Kind, v.To = queue.Reroute, other
		v.alarm = fmt.Sprintf("%s does not know the user, asking %s", r.route, other)
	}
}

// tooMany tells whether a recipient was refused only because of those before
// it (RFC 5321, 4.5.3.1.10, which asks to read 552 so too).
func tooMany(a smtpclient.Answer) bool {
	if a.Step != smtpclient.StepRcpt || a.Reply.Code != 452 && a.Reply.Code != 552 {
		return false
	}
	return a.Reply.Enhanced[1] == 5 && a.Reply.Enhanced[2] == 3 || strings.Contains(strings.ToLower(a.Reply.Text), "too many recipients")
}

// outOfStep tells whether the backend refused a command as such (500, 502) or its
// place in the dialogue (503): that is about the session.
func outOfStep(a smtpclient.Answer) bool {
	return a.Step != smtpclient.StepDot && (a.Reply.Code == 500 || a.Reply.Code == 502 || a.Reply.Code == 503)
}

// misconfigured tells whether a refusal is about us and not about the message:
// the backend wants a login or encryption (530, 538; RFC 4954, RFC 3207), or
// does not count us among those it relays for. Bouncing such mail would empty
// the queue into the senders' mailboxes on one wrong line in a configuration.
func misconfigured(a smtpclient.Answer) bool {
	if a.Step != smtpclient.StepMail && a.Step != smtpclient.StepRcpt || !a.Reply.Permanent() {
		return false
	}
	if a.Reply.Code == 530 || a.Reply.Code == 538 {
		return true
	}
	return says(a.Reply, "relay access denied", "relaying denied", "unable to relay", "not permitted to relay",
		"relay not permitted", "relaying not allowed", "relay denied", "authentication required",
		"client host rejected", "helo command rejected", "blocked using")
}

// byOurAddress tells whether the backend refused a message because of the address
// that it came from. That is ours: SPF (RFC 7208; 5.7.23 and 5.7.24 of RFC 7372)
// and reverse DNS (5.7.25) say nothing about the sender there.
func byOurAddress(a smtpclient.Answer) bool {
	if !a.Reply.Permanent() {
		return false
	}
	switch a.Reply.Enhanced {
	case mail.Enhanced{5, 7, 23}, mail.Enhanced{5, 7, 24}, mail.Enhanced{5, 7, 25}:
		return true
	}
	return says(a.Reply, "spf fail", "spf check", "spf validation", "spf record", "failed spf", "fails spf", "openspf.", "sender policy framework")
}

// says tells whether a reply holds one of some words.
func says(r mail.Reply, words ...string) bool {
	text := strings.ToLower(r.Text)
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}
