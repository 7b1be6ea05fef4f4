package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// op describes an endpoint.
type op struct {
	method, path string
	id           string // operation id, and the action in the audit log
	summary      string
	detail       string
	tag          string
	role         Role // needed; empty: open to all
	status       int  // of success; 0: 200
	long         bool // it may take more than answerTime
}

func (o op) operation() huma.Operation {
	h := huma.Operation{
		OperationID: o.id, Method: o.method, Path: o.path, Summary: o.summary, Description: o.detail,
		Tags: []string{o.tag}, DefaultStatus: o.status,
		MaxBodyBytes:    maxBody + 1, // huma refuses a body that has exactly the limit
		BodyReadTimeout: -1,          // idleBody has the deadline
		Metadata:        map[string]any{"role": o.role, "long": o.long},
	}
	if o.role != "" {
		h.Security = []map[string][]string{{"token": {}}}
		h.Extensions = map[string]any{"x-role": string(o.role)}
		h.Description = "Needs the role " + string(o.role) + ". " + o.detail
	}
	return h
}

// register adds an endpoint whose errors are turned into Problems.
func register[I, O any](s *Server, o op, handle func(context.Context, *I) (*O, error)) {
	h := o.operation()
	s.describeErrors(&h)
	if o.long {
		h.Middlewares = append(h.Middlewares, longAnswer)
	}
	huma.Register(s.api, h, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err == nil {
			return out, nil
		}
		p := problemOf(err)
		if p.Status >= http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
			s.log.Error("a request to the admin API failed", "operation", o.id, "error", err)
		}
		return nil, p
	})
}

// describeErrors puts Problem where huma would describe its own error.
func (s *Server) describeErrors(h *huma.Operation) {
	schema := huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, problemType)
	h.Responses = map[string]*huma.Response{
		"default": {Description: "Problem", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schema}}},
	}
}

// longAnswer gives an operation more time to be answered.
func longAnswer(ctx huma.Context, next func(huma.Context)) {
	setWriteDeadline(ctx, time.Now().Add(longAnswerTime))
	next(ctx)
}

// setWriteDeadline moves the deadline of an answer. Where the connection has
// none, as in a test without a socket, there is nothing to move.
func setWriteDeadline(ctx huma.Context, t time.Time) {
	_, w := humago.Unwrap(ctx)
	http.NewResponseController(w).SetWriteDeadline(t)
}

// change makes a change under the eyes of the audit log: it is not made when
// it could not be recorded, and it is recorded before it is answered. do
// may add to r.Detail. The context it gets does not end with the request, so
// that what is recorded is what happened.
func (s *Server) change(ctx context.Context, r Record, do func(ctx context.Context, r *Record) error) error {
	c := callerOf(ctx)
	r.Time, r.By, r.Role, r.Remote, r.Result = time.Now(), c.name, c.role, c.remote, ResultOK
	if r.Detail == nil {
		r.Detail = map[string]any{}
	}
	if err := s.cfg.Audit.Ready(); err != nil {
		return &Problem{Type: ProblemAudit, Title: "the audit log cannot be written", Status: http.StatusServiceUnavailable,
			Detail: err.Error(), Hint: "nothing was changed; make room or mend the file, then repeat the request"}
	}
	err := do(context.WithoutCancel(ctx), &r)
	if err != nil {
		r.Result, r.Error = ResultFailed, err.Error()
	}
	if len(r.Detail) == 0 {
		r.Detail = nil
	}
	auditErr := s.cfg.Audit.Record(r)
	if auditErr == nil {
		return err
	}
	s.log.Error("a change was not recorded in the audit log", "by", r.By, "action", r.Action, "object", r.Object, "result", r.Result, "error", auditErr)
	if err != nil {
		return err
	}
	return &Problem{Type: ProblemAudit, Title: "the audit log could not be written", Status: http.StatusInternalServerError,
		Detail: "the change was made and is not in the audit log: " + auditErr.Error(), Hint: "the log of the relay has it; changes are refused until the audit log can be written again"}
}

func (s *Server) registerAll() {
	s.registerUsers()
	s.registerState()
	s.registerImport()
	s.registerMoves()
	s.registerWaves()
	s.registerQueue()
	s.registerApply()
	s.registerSystem()
	s.registerTLS()
	s.registerNodes()
	s.registerAudits()
	s.registerDNS()
	s.registerEvents()
	s.registerTokens()
}
