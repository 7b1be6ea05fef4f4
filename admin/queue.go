package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"crossfade/mail"
	"crossfade/queue"
)

const tagQueue = "queue"

// queueStates are the states a recipient of a queued message can have.
var queueStates = []queue.State{queue.Queued, queue.Held, queue.Leased, queue.Sending, queue.Parked}

// QueuePage is a page of the queue, in the order of ids: oldest first.
type QueuePage struct {
	Messages []queue.Entry `json:"messages"`
	Next     string        `json:"next,omitempty" doc:"Cursor of the next page; empty at the end. A page may be empty and not the last."`
}

// QueueFilter selects recipients of queued messages. Empty fields select all.
type QueueFilter struct {
	IDs    []mail.ID   `json:"ids,omitempty" query:"id" maxItems:"10000" doc:"Ids of messages; as a parameter, parted by commas."`
	State  queue.State `json:"state,omitempty" query:"state" enum:"queued,held,leased,sending,parked"`
	Route  mail.Route  `json:"route,omitempty" query:"route" enum:"old,new,out" doc:"Where it would go now."`
	User   string      `json:"user,omitempty" query:"user" maxLength:"1000" doc:"Address of the user."`
	Rcpt   string      `json:"rcpt,omitempty" query:"rcpt" maxLength:"1000" doc:"Part of the recipient's address."`
	From   string      `json:"from,omitempty" query:"from" maxLength:"1000" doc:"Part of the reverse-path; <> is the null reverse-path."`
	Before time.Time   `json:"before,omitzero" query:"before" doc:"Received before."`
	Reason string      `json:"reason,omitempty" query:"reason" maxLength:"1000" doc:"Part of the last reply."`
}

// Empty tells whether the filter selects all that is queued.
func (f QueueFilter) Empty() bool {
	return len(f.IDs) == 0 && f.State == "" && f.Route == "" && f.User == "" && f.Rcpt == "" && f.From == "" && f.Before.IsZero() && f.Reason == ""
}

// filter gives the store's filter; where names the place for errors.
func (f QueueFilter) filter(where string) (queue.Filter, error) {
	for _, id := range f.IDs {
		if !id.Valid() {
			return queue.Filter{}, invalid(where+".ids", "%q is no id of a message", id)
		}
	}
	q := queue.Filter{IDs: f.IDs, State: f.State, Route: f.Route, Rcpt: f.Rcpt, From: f.From, Before: f.Before, Reason: f.Reason}
	if f.User != "" {
		addr, err := addressOf(where+".user", f.User)
		if err != nil {
			return q, err
		}
		q.User = addr.Key()
	}
	return q, nil
}

// QueueAction is what to do to one message, and why.
type QueueAction struct {
	Route  mail.Route `json:"route,omitempty" enum:"old,new" doc:"With reroute: where it goes until the user's state changes."`
	Reason string     `json:"reason,omitempty" maxLength:"1000"`
}

// QueueApply is what to do to all recipients that match.
type QueueApply struct {
	Filter QueueFilter `json:"filter"`
	Action queue.Verb  `json:"action" enum:"retry,hold,release,park,reroute,delete"`
	QueueAction
	All bool `json:"all,omitempty" doc:"Needed when the filter is empty: all that is queued."`
}

type queueQuery struct {
	QueueFilter
	PageQuery
}

// MessagePath names a queued message in a path.
type MessagePath struct {
	ID mail.ID `path:"id" doc:"Id of the message."`
}

type actInput struct {
	MessagePath
	Body *QueueAction
}

func (s *Server) registerQueue() {
	register(s, op{method: http.MethodGet, path: "/v1/queue", id: "list-queue", tag: tagQueue, role: RoleRead,
		summary: "List messages that have a recipient that matches"}, s.listQueue)
	register(s, op{method: http.MethodGet, path: "/v1/queue/{id}", id: "get-message", tag: tagQueue, role: RoleRead,
		summary: "One queued message: envelope, recipients, last replies"}, s.getMessage)
	register(s, op{method: http.MethodGet, path: "/v1/queue/{id}/message", id: "export-message", tag: tagQueue, role: RoleAdmin,
		summary: "The message itself", detail: "As it was accepted, with our trace header. The connection is cut when the stored message is damaged."}, s.exportMessage)
	register(s, op{method: http.MethodDelete, path: "/v1/queue/{id}", id: "delete-message", tag: tagQueue, role: RoleAdmin,
		summary: "Remove a message for good, without a bounce"}, s.deleteMessage)
	verbs := []struct {
		verb    queue.Verb
		summary string
	}{
		{queue.DoRetry, "Try a message again now"},
		{queue.DoHold, "Keep a message until it is released"},
		{queue.DoRelease, "Let a message held by an operator go on (retry does it for a parked one)"},
		{queue.DoPark, "Put a message aside"},
		{queue.DoReroute, "Send a message to the side given, until the user's state changes"},
	}
	for _, v := range verbs {
		register(s, op{method: http.MethodPost, path: "/v1/queue/{id}/" + string(v.verb), id: string(v.verb) + "-message", tag: tagQueue, role: RoleOperate,
			summary: v.summary}, func(ctx context.Context, in *actInput) (*body[queue.Applied], error) {
			a := queue.Action{Verb: v.verb}
			if in.Body != nil {
				a.Route, a.Reason = in.Body.Route, in.Body.Reason
			}
			return s.actOnMessage(ctx, in.ID, a)
		})
	}
}

func (s *Server) registerApply() {
	register(s, op{method: http.MethodPost, path: "/v1/queue:apply", id: "apply-queue", tag: tagQueue, role: RoleOperate, long: true,
		summary: "Do something to every recipient that matches", detail: "delete needs the role admin."}, s.applyQueue)
}

func (s *Server) listQueue(ctx context.Context, in *queueQuery) (*body[QueuePage], error) {
	f, err := in.filter("query")
	if err != nil {
		return nil, err
	}
	entries, next, err := s.cfg.Queue.List(ctx, f, in.Cursor, in.Limit)
	if err != nil {
		return nil, fmt.Errorf("listing the queue: %w", err)
	}
	if entries == nil {
		entries = []queue.Entry{}
	}
	return &body[QueuePage]{QueuePage{Messages: entries, Next: next}}, nil
}

// entry reads a message; an id that is none names no message either.
func (s *Server) entry(ctx context.Context, id mail.ID) (queue.Entry, error) {
	if !id.Valid() {
		return queue.Entry{}, fmt.Errorf("reading the message %q: %w", id, queue.ErrNotFound)
	}
	e, err := s.cfg.Queue.Get(ctx, id)
	if err != nil {
		return e, fmt.Errorf("reading the message %s: %w", id, err)
	}
	return e, nil
}

func (s *Server) getMessage(ctx context.Context, in *MessagePath) (*body[queue.Entry], error) {
	e, err := s.entry(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &body[queue.Entry]{e}, nil
}

func (s *Server) actOnMessage(ctx context.Context, id mail.ID, a queue.Action) (*body[queue.Applied], error) {
	if err := checkAction(a); err != nil {
		return nil, err
	}
	if _, err := s.entry(ctx, id); err != nil {
		return nil, err
	}
	a.By = callerOf(ctx).name
	var done queue.Applied
	rec := Record{Action: string(a.Verb) + "-message", Object: string(id), Reason: a.Reason}
	err := s.change(ctx, rec, func(ctx context.Context, r *Record) (err error) {
		done, err = s.cfg.Queue.Apply(ctx, queue.Filter{IDs: []mail.ID{id}}, a)
		noteApplied(r, a, done)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", a.Verb, id, err)
	}
	return &body[queue.Applied]{done}, nil
}

func checkAction(a queue.Action) error {
	switch {
	case a.Verb == queue.DoReroute && a.Route == "":
		return invalid("body.route", "reroute needs a route: old or new")
	case a.Verb != queue.DoReroute && a.Route != "":
		return invalid("body.route", "only reroute has a route")
	}
	return nil
}

func noteApplied(r *Record, a queue.Action, done queue.Applied) {
	r.Detail["changed"], r.Detail["busy"] = done.Changed, done.Busy
	if a.Route != "" {
		r.Detail["route"] = a.Route
	}
}

type deleteMessageInput struct {
	MessagePath
	Reason string `query:"reason" maxLength:"1000"`
}

func (s *Server) deleteMessage(ctx context.Context, in *deleteMessageInput) (*body[queue.Applied], error) {
	return s.actOnMessage(ctx, in.ID, queue.Action{Verb: queue.DoDelete, Reason: in.Reason})
}

func (s *Server) applyQueue(ctx context.Context, in *body[QueueApply]) (*body[queue.Applied], error) {
	b := in.Body
	a := queue.Action{Verb: b.Action, Route: b.Route, Reason: b.Reason, By: callerOf(ctx).name}
	if err := checkAction(a); err != nil {
		return nil, err
	}
	if b.Filter.Empty() && !b.All {
		return nil, invalid("body.filter", "it is empty: all that is queued would be changed; say so with all")
	}
	if c := callerOf(ctx); a.Verb == queue.DoDelete && !c.role.May(RoleAdmin) {
		return nil, s.forbidden(c, RoleAdmin, "apply-queue", string(a.Verb))
	}
	f, err := b.Filter.filter("body.filter")
	if err != nil {
		return nil, err
	}
	var done queue.Applied
	rec := Record{Action: "apply-queue", Object: string(a.Verb), Reason: a.Reason, Detail: map[string]any{"filter": b.Filter}}
	err = s.change(ctx, rec, func(ctx context.Context, r *Record) (err error) {
		done, err = s.cfg.Queue.Apply(ctx, f, a)
		noteApplied(r, a, done)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s of queued mail, after %d recipients: %w", a.Verb, done.Changed, err)
	}
	return &body[queue.Applied]{done}, nil
}

// stallTime is how long a client may take none of an exported message.
const stallTime = time.Minute

func (s *Server) exportMessage(ctx context.Context, in *MessagePath) (*huma.StreamResponse, error) {
	entry, err := s.entry(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	rec := Record{Action: "export-message", Object: string(in.ID)}
	var from io.ReadCloser
	err = s.change(ctx, rec, func(_ context.Context, _ *Record) (err error) {
		from, err = s.cfg.Bodies.Open(ctx, in.ID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the message %s: %w", in.ID, err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) { s.stream(hc, entry.Envelope, from) }}, nil
}

// stream copies a body to the client. It has no Content-Length, so that a body
// that turns out to be damaged at its end is seen as cut short.
func (s *Server) stream(hc huma.Context, env *mail.Envelope, from io.ReadCloser) {
	defer from.Close()
	id := env.ID
	_, w := humago.Unwrap(hc)
	w.Header().Set("Content-Type", "message/rfc822")
	w.Header().Set("Content-Disposition", `attachment; filename="`+string(id)+`.eml"`)
	_, err := io.Copy(&stallWriter{w: w, rc: http.NewResponseController(w)}, env.Whole(from))
	if err == nil {
		return
	}
	if errors.Is(err, queue.ErrCorrupt) {
		s.log.Error("an exported message is damaged", "id", id, "error", err)
	} else {
		s.log.Info("the export of a message was cut off", "id", id, "error", err)
	}
	// The way of net/http to cut a connection: what was sent must not look whole.
	panic(http.ErrAbortHandler)
}

// stallWriter moves the deadline with each write.
type stallWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func (s *stallWriter) Write(p []byte) (int, error) {
	if err := s.rc.SetWriteDeadline(time.Now().Add(stallTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return s.w.Write(p)
}

// Verbs lists what can be done to queued mail.
func Verbs() []queue.Verb {
	return slices.Clone([]queue.Verb{queue.DoRetry, queue.DoHold, queue.DoRelease, queue.DoPark, queue.DoReroute, queue.DoDelete})
}
