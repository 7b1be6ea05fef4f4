package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

type eventsInput struct {
	LastID string `header:"Last-Event-ID" doc:"Id of the last event seen: what came after it and is still kept is sent first." maxLength:"20"`
}

// keepAlive is how often an idle event stream sends a comment, so that proxies
// keep it and a client that is gone is noticed.
const keepAlive = 20 * time.Second

func (s *Server) registerEvents() {
	register(s, op{method: http.MethodGet, path: "/v1/events", id: "events", tag: tagSystem, role: RoleRead,
		summary: "Server-sent events: changes of users, progress of moves",
		detail:  "The events are user, cutover, backend and reload; data is JSON. A client that is too slow is cut off and comes back with Last-Event-ID."}, s.streamEvents)
}

func (s *Server) streamEvents(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	since := uint64(0)
	if in.LastID != "" {
		var err error
		if since, err = strconv.ParseUint(in.LastID, 10, 64); err != nil {
			return nil, invalid("header.Last-Event-ID", "%q is no id of an event", in.LastID)
		}
	}
	who := callerOf(ctx)
	give, p := s.takeStream(who)
	if p != nil {
		return nil, p
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer give()
		r, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Accel-Buffering", "no")
		out := &eventWriter{w: w, rc: http.NewResponseController(w)}
		if err := s.sendEvents(r.Context(), out, since, who); err != nil {
			s.log.Debug("an event stream ended", "remote", r.RemoteAddr, "error", err)
		}
	}}, nil
}

// sendEvents sends events until the client, its token or the server goes.
func (s *Server) sendEvents(ctx context.Context, out *eventWriter, since uint64, who caller) error {
	l, missed := s.events.listen(since)
	defer s.events.leave(l)
	if err := out.comment("hello"); err != nil {
		return err
	}
	for _, e := range missed {
		if err := out.event(e); err != nil {
			return err
		}
	}
	idle, stop := s.every(keepAlive)
	defer stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closing:
			return nil
		case <-idle:
			if !s.tokens.all().valid(who.token, s.now()) {
				return fmt.Errorf("the token %s is not valid any more", who.name)
			}
			err = out.comment("idle")
		case e, ok := <-l.ch:
			if !ok {
				return fmt.Errorf("the client is too slow")
			}
			err = out.event(e)
		}
		if err != nil {
			return err
		}
	}
}

// eventWriter writes the format of server-sent events.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (e *eventWriter) event(ev Event) error {
	data, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	return e.write(fmt.Appendf(nil, "id: %d\nevent: %s\ndata: %s\n\n", ev.ID, ev.Kind, data))
}

func (e *eventWriter) comment(text string) error { return e.write([]byte(": " + text + "\n\n")) }

func (e *eventWriter) write(p []byte) error {
	if err := e.rc.SetWriteDeadline(time.Now().Add(stallTime)); err != nil {
		return err
	}
	if _, err := e.w.Write(p); err != nil {
		return err
	}
	return e.rc.Flush()
}
