package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

func TestOutcome(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	answer := func(step smtpclient.Step, code int, e mail.Enhanced, text string) deliverResult {
		return deliverResult{answer: smtpclient.Answer{Step: step, Reply: mail.Reply{Code: code, Enhanced: e, Text: text}}}
	}
	broken := func(sent smtpclient.Sent, err error) deliverResult {
		return deliverResult{err: &smtpclient.Error{Step: smtpclient.StepDot, Sent: sent, Target: "smtp://old:25", Err: err}}
	}
	const (
		rcpt, dot, from = smtpclient.StepRcpt, smtpclient.StepDot, smtpclient.StepMail
		failure         = mail.NotifyFailure
		hours           = time.Hour
	)
	tried := queue.Item{Attempts: 100}
	unknown := answer(rcpt, 550, mail.Enhanced{5, 1, 1}, "no such user")
	type in struct {
		route  mail.Route
		item   queue.Item
		age    time.Duration
		notify mail.Notify
		null   bool
		dsn    bool
		res    deliverResult
	}
	tests := []struct {
		name   string
		in     in
		kind   queue.Kind
		notice mail.Notify
		alarm  bool
		says   string
	}{
		{"done", in{res: answer(dot, 250, mail.Enhanced{2, 0, 0}, "ok")}, queue.Done, 0, false, "250 2.0.0 ok (old, in reply to end of data)"},
		{"done, success wanted", in{notify: mail.NotifySuccess, res: answer(dot, 250, mail.Enhanced{}, "ok")}, queue.Done, mail.NotifySuccess, false, ""},
		{"done, success passed on", in{notify: mail.NotifySuccess, dsn: true, res: answer(dot, 250, mail.Enhanced{}, "ok")}, queue.Done, 0, false, ""},
		{"done, success wanted by nobody", in{notify: mail.NotifySuccess, null: true, res: answer(dot, 250, mail.Enhanced{}, "ok")}, queue.Done, 0, false, ""},
		{"copy done, success wanted", in{notify: mail.NotifySuccess, item: queue.Item{Copy: true}, res: answer(dot, 250, mail.Enhanced{}, "ok")}, queue.Done, 0, false, ""},

		{"4xx", in{res: answer(rcpt, 450, mail.Enhanced{4, 2, 1}, "later")}, queue.Retry, 0, false, "450 4.2.1 later"},
		{"3xx is no answer", in{res: answer(rcpt, 354, mail.Enhanced{}, "?")}, queue.Retry, 0, false, ""},
		{"4xx, delay due", in{age: 5 * hours, res: answer(rcpt, 450, mail.Enhanced{}, "later")}, queue.Retry, mail.NotifyDelay, false, ""},
		{"4xx, delay told", in{age: 5 * hours, item: queue.Item{Noticed: true}, res: answer(rcpt, 450, mail.Enhanced{}, "later")}, queue.Retry, 0, false, ""},
		{"4xx, delay unwanted", in{age: 5 * hours, notify: failure, res: answer(rcpt, 450, mail.Enhanced{}, "later")}, queue.Retry, 0, false, ""},
		{"4xx, delay for nobody", in{age: 5 * hours, null: true, res: answer(rcpt, 450, mail.Enhanced{}, "later")}, queue.Retry, 0, false, ""},
		{"4xx, first attempt after a long hold", in{age: 500 * hours, res: answer(rcpt, 450, mail.Enhanced{}, "greylisted")}, queue.Retry, mail.NotifyDelay, false, ""},
		{"4xx, expired", in{age: 121 * hours, item: tried, res: answer(rcpt, 450, mail.Enhanced{}, "later")}, queue.Fail, failure, false, "given up after 121h"},
		{"4xx, expired, for nobody", in{age: 121 * hours, item: tried, null: true, res: answer(rcpt, 450, mail.Enhanced{}, "later")}, queue.Park, 0, false, "no bounce"},

		{"user unknown on old", in{res: unknown}, queue.Reroute, 0, true, "asking"},
		{"user unknown on new", in{route: mail.New, res: unknown}, queue.Reroute, 0, true, ""},
		{"user unknown to the dot of LMTP", in{res: answer(dot, 550, mail.Enhanced{5, 1, 1}, "no")}, queue.Reroute, 0, true, ""},
		{"user unknown in words", in{res: answer(rcpt, 550, mail.Enhanced{}, "User unknown")}, queue.Reroute, 0, true, ""},
		{"user unknown on both", in{item: queue.Item{Unknown: []mail.Route{mail.New}, LastReply: "550 new says no"}, res: unknown}, queue.Park, 0, true, "550 new says no"},
		{"user unknown outside", in{route: mail.Out, res: unknown}, queue.Fail, failure, false, ""},
		{"bounce to an unknown user outside", in{route: mail.Out, null: true, res: unknown}, queue.Park, 0, false, ""},
		{"copy for an unknown user", in{item: queue.Item{Copy: true}, res: unknown}, queue.Fail, 0, true, ""},
		{"sender unknown", in{res: answer(from, 550, mail.Enhanced{5, 1, 1}, "sender unknown")}, queue.Fail, failure, false, ""},

		{"5xx", in{res: answer(rcpt, 552, mail.Enhanced{5, 2, 2}, "full")}, queue.Fail, failure, false, "552 5.2.2 full"},
		{"5xx, for nobody", in{null: true, res: answer(dot, 554, mail.Enhanced{}, "no")}, queue.Park, 0, false, "without a sender"},
		{"5xx, no bounce wanted", in{notify: mail.NotifyNever, res: answer(dot, 554, mail.Enhanced{}, "no")}, queue.Park, 0, false, "NOTIFY"},
		{"5xx, only success wanted", in{notify: mail.NotifySuccess, res: answer(dot, 554, mail.Enhanced{}, "no")}, queue.Park, 0, false, "NOTIFY"},
		{"copy 5xx", in{item: queue.Item{Copy: true}, res: answer(dot, 554, mail.Enhanced{}, "no")}, queue.Fail, 0, true, ""},
		{"copy 5xx, for nobody", in{null: true, item: queue.Item{Copy: true}, res: answer(dot, 554, mail.Enhanced{}, "no")}, queue.Fail, 0, true, ""},

		{"relay denied", in{res: answer(rcpt, 554, mail.Enhanced{5, 7, 1}, "Relay access denied")}, queue.Retry, 0, true, ""},
		{"client rejected", in{res: answer(rcpt, 554, mail.Enhanced{5, 7, 1}, "<h>: Client host rejected: Access denied")}, queue.Retry, 0, true, ""},
		{"login demanded", in{res: answer(from, 530, mail.Enhanced{5, 7, 0}, "log in")}, queue.Retry, 0, true, ""},
		{"relay denied, expired", in{age: 121 * hours, item: tried, res: answer(rcpt, 554, mail.Enhanced{5, 7, 1}, "Relay access denied")}, queue.Park, 0, true, "given up"},
		{"user unknown, as qmail has it", in{res: answer(rcpt, 511, mail.Enhanced{}, "sorry, no mailbox here by that name")}, queue.Reroute, 0, true, ""},
		{"out of step at MAIL", in{res: answer(from, 503, mail.Enhanced{5, 5, 1}, "nested MAIL command")}, queue.Retry, 0, false, "nested"},
		{"out of step at RCPT", in{res: answer(rcpt, 503, mail.Enhanced{5, 5, 1}, "need MAIL")}, queue.Retry, 0, false, ""},
		{"out of step, expired", in{age: 121 * hours, item: queue.Item{Attempts: 9}, res: answer(from, 503, mail.Enhanced{5, 5, 1}, "bad sequence")}, queue.Park, 0, true, "given up"},
		{"no command of theirs", in{res: answer(smtpclient.StepData, 502, mail.Enhanced{5, 5, 1}, "not implemented")}, queue.Retry, 0, false, ""},
		{"no word of theirs", in{res: answer(from, 500, mail.Enhanced{}, "what?")}, queue.Retry, 0, false, ""},
		{"500 about the message", in{res: answer(dot, 500, mail.Enhanced{}, "line too long")}, queue.Fail, failure, false, ""},

		{"SPF, of which we can know nothing", in{res: answer(from, 550, mail.Enhanced{5, 7, 23}, "SPF validation failed")}, queue.Retry, 0, true, ""},
		{"SPF in words", in{route: mail.New, res: answer(dot, 554, mail.Enhanced{5, 7, 1}, "Message rejected: failed SPF check")}, queue.Retry, 0, true, ""},
		{"no reverse DNS", in{res: answer(rcpt, 550, mail.Enhanced{5, 7, 25}, "no PTR")}, queue.Retry, 0, true, ""},
		{"SPF, expired", in{age: 121 * hours, item: tried, res: answer(from, 550, mail.Enhanced{5, 7, 23}, "SPF")}, queue.Park, 0, true, "given up"},
		{"SPF outside", in{route: mail.Out, res: answer(from, 550, mail.Enhanced{5, 7, 23}, "SPF validation failed")}, queue.Fail, failure, false, ""},
		{"spfoo is no SPF", in{res: answer(rcpt, 550, mail.Enhanced{5, 7, 1}, "<spfoo@b.test>: rejected")}, queue.Fail, failure, false, ""},
		{"policy for the recipient", in{res: answer(rcpt, 550, mail.Enhanced{5, 7, 1}, "you may not write here")}, queue.Fail, failure, false, ""},

		{"no connection", in{res: broken(smtpclient.SentNothing, errors.New("refused"))}, queue.Retry, 0, false, "refused"},
		{"no connection, expired", in{age: 121 * hours, item: tried, res: broken(smtpclient.SentNothing, errors.New("refused"))}, queue.Fail, failure, false, "refused"},
		{"session refused for good", in{res: broken(smtpclient.SentNothing, &mail.Reply{Code: 554, Text: "no"})}, queue.Retry, 0, false, "554 no"},
		{"421", in{res: broken(smtpclient.SentAll, &mail.Reply{Code: 421, Text: "bye"})}, queue.Retry, 0, false, "421 bye"},
		{"in doubt", in{res: broken(smtpclient.SentAll, io.ErrUnexpectedEOF)}, queue.Retry, 0, false, "may have accepted"},
		{"unknown error", in{res: deliverResult{err: errors.New("what?")}}, queue.Retry, 0, false, "what?"},
		{"withheld", in{res: broken(smtpclient.SentPart, fmt.Errorf("%w: %w", smtpclient.ErrWithheld, context.Canceled))}, queue.Release, 0, false, ""},
		{"damaged", in{res: broken(smtpclient.SentPart, fmt.Errorf("%w: %w", smtpclient.ErrSource, queue.ErrCorrupt))}, queue.Park, 0, true, "damaged"},
		{"wrong length", in{res: broken(smtpclient.SentPart, fmt.Errorf("%w: %w", smtpclient.ErrSource, smtpclient.ErrLength))}, queue.Park, 0, true, "damaged"},
		{"unreadable, never given up", in{age: 1000 * hours, res: broken(smtpclient.SentNothing, fmt.Errorf("%w: disk", smtpclient.ErrSource))}, queue.Retry, 0, false, "disk"},
		{"missing", in{res: broken(smtpclient.SentNothing, fmt.Errorf("%w: %w", smtpclient.ErrSource, queue.ErrNotFound))}, queue.Park, 0, true, "missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.route == "" {
				tt.in.route = mail.Old
			}
			tt.in.item.N, tt.in.item.Since = 3, now.Add(-tt.in.age)
			rules := deliverRules{schedule: queue.DefaultSchedule(), route: tt.in.route, null: tt.in.null, passedOn: tt.in.dsn, now: now, jitter: 0.5}
			v := rules.outcome(tt.in.item, mail.Recipient{Addr: outAddr("a@b.test"), Notify: tt.in.notify}, tt.in.res)
			if v.Kind != tt.kind || v.notice != tt.notice || (v.alarm != "") != tt.alarm || v.N != 3 {
				t.Errorf("%s, notice %d, alarm %q; want %s, %d, %v", v.Kind, v.notice, v.alarm, tt.kind, tt.notice, tt.alarm)
			}
			if !strings.Contains(v.Reply+v.alarm, tt.says) {
				t.Errorf("%q does not say %q", v.Reply, tt.says)
			}
			if v.Kind == queue.Retry && !v.At.Equal(now.Add(time.Minute)) {
				t.Errorf("again at %s", v.At)
			}
			if v.Kind == queue.Reroute && v.To != tt.in.route.Other() {
				t.Errorf("rerouted to %s", v.To)
			}
			if v.Noticed != (v.notice == mail.NotifyDelay) {
				t.Errorf("noticed %v", v.Noticed)
			}
			if class := v.status[0]; v.notice == failure && class != 5 && v.status != (mail.Enhanced{4, 4, 7}) || v.notice == mail.NotifyDelay && class != 4 {
				t.Errorf("status %s", v.status)
			}
		})
	}
}

func TestOutcomeTooManyRecipients(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rules := deliverRules{schedule: queue.DefaultSchedule(), route: mail.Old, now: now, jitter: 0.5}
	for _, r := range []mail.Reply{{Code: 452, Enhanced: mail.Enhanced{4, 5, 3}}, {Code: 452, Text: "Too many recipients"}, {Code: 552, Text: "too many recipients"}} {
		res := deliverResult{answer: smtpclient.Answer{Step: smtpclient.StepRcpt, Reply: r}, others: true}
		if v := rules.outcome(queue.Item{Since: now}, mail.Recipient{}, res); v.Kind != queue.Retry || !v.At.Equal(now) {
			t.Errorf("%v: %+v", r, v)
		}
		res.others = false
		if v := rules.outcome(queue.Item{Since: now}, mail.Recipient{}, res); v.At.Equal(now) {
			t.Errorf("%v: at once although nobody was taken", r)
		}
	}
}
