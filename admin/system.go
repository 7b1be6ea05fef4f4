package admin

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

const tagSystem = "system"

var problemType = reflect.TypeFor[Problem]()

// Stats is the state of the relay in figures.
type Stats struct {
	Version  string               `json:"version"`
	Started  time.Time            `json:"started"`
	Queue    queue.Stats          `json:"queue"`
	Users    map[router.State]int `json:"users" doc:"Mailboxes by state."`
	Moving   int                  `json:"moving" doc:"Users that the conductor works on."`
	Backends []BackendStatus      `json:"backends"`
	Alarms   []StatsAlarm         `json:"alarms,omitempty" doc:"What waits for an operator."`
}

// StatsAlarm is something that stands still until an operator acts.
type StatsAlarm struct {
	Kind   string    `json:"kind" doc:"wave-stopped: a wave stopped by itself; see POST /v1/cutover:resume"`
	Object string    `json:"object"`
	Text   string    `json:"text"`
	Since  time.Time `json:"since"`
}

// Readiness says whether mail can be accepted now.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty" doc:"Why not."`
	// Warnings do not make the relay unready.
	Warnings []string `json:"warnings,omitempty" doc:"What will need an operator though mail is accepted, such as a certificate that ends soon."`
}

// Health says whether the process works.
type Health struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
}

// Reloaded is the result of a reload.
type Reloaded struct {
	Notices []string `json:"notices" doc:"Settings that changed and need a restart."`
}

// AuditPage is a page of the audit log, newest first.
type AuditPage struct {
	Records []Record `json:"records"`
	Next    string   `json:"next,omitempty" doc:"Cursor of the next page, which may be empty of records; empty at the end."`
	// Head is what to note in another place.
	Head AuditHead `json:"head" doc:"The last line of the log: crossfade audit --log with --head checks that it is there still."`
}

// BackendList lists the routes.
type BackendList struct {
	Backends []BackendStatus `json:"backends"`
}

// PauseRequest says why deliveries are paused or resumed.
type PauseRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"1000"`
}

type statusBody[T any] struct {
	Status int
	Body   T
}

type auditQuery struct {
	By     string `query:"by" doc:"Name of the token." maxLength:"256"`
	Action string `query:"action" maxLength:"256"`
	Object string `query:"object" maxLength:"1000"`
	PageQuery
}

type routeQuery struct {
	Rcpt string `query:"rcpt" required:"true" doc:"Address of a recipient." maxLength:"1000"`
}

type backendInput struct {
	Route mail.Route `path:"route" enum:"old,new,out"`
	Body  *PauseRequest
}

func (s *Server) registerSystem() {
	register(s, op{method: http.MethodGet, path: "/v1/route", id: "explain-route", tag: tagSystem, role: RoleRead,
		summary: "What becomes of mail for an address, step by step"}, s.explain)
	register(s, op{method: http.MethodGet, path: "/v1/stats", id: "get-stats", tag: tagSystem, role: RoleRead, summary: "Figures of queue, users and backends"}, s.stats)
	register(s, op{method: http.MethodPost, path: "/v1/reload", id: "reload", tag: tagSystem, role: RoleAdmin,
		summary: "Read the configuration again", detail: "On an error the running configuration stays."}, s.reload)
	register(s, op{method: http.MethodGet, path: "/v1/audit", id: "list-audit", tag: tagSystem, role: RoleRead, summary: "The audit log, newest first"}, s.listAudit)
	register(s, op{method: http.MethodGet, path: "/v1/backends", id: "list-backends", tag: tagSystem, role: RoleRead, summary: "How deliveries over each route go"}, s.listBackends)
	register(s, op{method: http.MethodPost, path: "/v1/backends/{route}/pause", id: "pause-backend", tag: tagSystem, role: RoleOperate,
		summary: "Deliver nothing over a route until it is resumed"}, s.pauseBackend)
	register(s, op{method: http.MethodPost, path: "/v1/backends/{route}/resume", id: "resume-backend", tag: tagSystem, role: RoleOperate,
		summary: "Deliver over a route again"}, s.resumeBackend)
	register(s, op{method: http.MethodGet, path: "/healthz", id: "healthz", tag: tagSystem, summary: "Is the process alive"}, s.healthz)
	register(s, op{method: http.MethodGet, path: "/readyz", id: "readyz", tag: tagSystem, summary: "Can mail be accepted now; says why not"}, s.readyz)
}

// describeMetrics adds to the description what does not go through huma.
func (s *Server) describeMetrics() {
	doc := s.api.OpenAPI()
	doc.AddOperation(&huma.Operation{OperationID: "metrics", Method: http.MethodGet, Path: "/metrics", Summary: "Figures for Prometheus", Tags: []string{tagSystem},
		Description: "Open to requests from this machine; others need a token, unless the configuration opens it.",
		Security:    []map[string][]string{{"token": {}}, {}},
		Responses: map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{
			"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}}}})
	doc.AddOperation(&huma.Operation{OperationID: "openapi", Method: http.MethodGet, Path: "/openapi.json", Summary: "This description", Tags: []string{tagSystem},
		Responses: map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{
			"application/json": {Schema: &huma.Schema{Type: huma.TypeObject}}}}}})
	delete(doc.Components.Schemas.Map(), "ErrorModel")
	delete(doc.Components.Schemas.Map(), "ErrorDetail")
}

func (s *Server) explain(ctx context.Context, in *routeQuery) (*body[router.Explanation], error) {
	addr, err := addressOf("query.rcpt", in.Rcpt)
	if err != nil {
		return nil, err
	}
	e, err := s.cfg.Router.Explain(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &body[router.Explanation]{e}, nil
}

func (s *Server) stats(ctx context.Context, _ *struct{}) (*body[Stats], error) {
	out := Stats{Version: s.cfg.Version, Started: s.started, Backends: []BackendStatus{}}
	var err error
	if out.Queue, err = s.cfg.Queue.Stats(ctx); err != nil {
		return nil, fmt.Errorf("counting the queue: %w", err)
	}
	if out.Users, err = s.cfg.Users.CountUsers(ctx); err != nil {
		return nil, fmt.Errorf("counting the users: %w", err)
	}
	if s.cfg.Conductor != nil {
		for _, m := range s.cfg.Conductor.Status() {
			if m.Active() {
				out.Moving++
			}
		}
		for _, p := range s.cfg.Conductor.Pauses() {
			if p.By == cutover.Itself {
				out.Alarms = append(out.Alarms, StatsAlarm{Kind: "wave-stopped", Object: p.Wave, Text: p.Reason, Since: p.Since})
			}
		}
	}
	if s.cfg.Backends != nil {
		out.Backends = append(out.Backends, s.cfg.Backends.Status()...)
	}
	return &body[Stats]{out}, nil
}

func (s *Server) reload(ctx context.Context, _ *struct{}) (*body[Reloaded], error) {
	if s.cfg.Reload == nil {
		return nil, refused(ProblemRefused, "this relay was started without a configuration file", "restart it with another configuration")
	}
	out := Reloaded{Notices: []string{}}
	err := s.change(ctx, Record{Action: "reload"}, func(ctx context.Context, r *Record) error {
		notices, err := s.cfg.Reload(ctx)
		out.Notices = append(out.Notices, notices...)
		if len(notices) > 0 {
			r.Detail["notices"] = notices
		}
		if err != nil {
			return &Problem{Type: ProblemConfig, Title: "the configuration has errors", Status: http.StatusUnprocessableEntity,
				Detail: err.Error(), Hint: "the running configuration stays; correct the file and reload again"}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &body[Reloaded]{out}, nil
}

func (s *Server) listAudit(_ context.Context, in *auditQuery) (*body[AuditPage], error) {
	before := int64(0)
	if in.Cursor != "" {
		var err error
		if before, err = strconv.ParseInt(in.Cursor, 10, 64); err != nil || before <= 0 {
			return nil, invalid("query.cursor", "%q is no cursor of this list", in.Cursor)
		}
	}
	records, next, err := s.cfg.Audit.Read(AuditFilter{By: in.By, Action: in.Action, Object: in.Object}, before, in.Limit)
	if err != nil {
		return nil, err
	}
	out := AuditPage{Records: append([]Record{}, records...), Head: s.cfg.Audit.Head()}
	if next > 0 {
		out.Next = strconv.FormatInt(next, 10)
	}
	return &body[AuditPage]{out}, nil
}

func (s *Server) listBackends(context.Context, *struct{}) (*body[BackendList], error) {
	out := BackendList{Backends: []BackendStatus{}}
	if s.cfg.Backends != nil {
		out.Backends = append(out.Backends, s.cfg.Backends.Status()...)
	}
	return &body[BackendList]{out}, nil
}

func (s *Server) pauseBackend(ctx context.Context, in *backendInput) (*body[BackendList], error) {
	return s.switchBackend(ctx, in, "pause-backend", func(ctx context.Context, b BackendsAPI, reason string) error {
		return b.Pause(ctx, in.Route, callerOf(ctx).name, reason)
	})
}

func (s *Server) resumeBackend(ctx context.Context, in *backendInput) (*body[BackendList], error) {
	return s.switchBackend(ctx, in, "resume-backend", func(ctx context.Context, b BackendsAPI, _ string) error {
		return b.Resume(ctx, in.Route, callerOf(ctx).name)
	})
}

func (s *Server) switchBackend(ctx context.Context, in *backendInput, action string, do func(context.Context, BackendsAPI, string) error) (*body[BackendList], error) {
	if s.cfg.Backends == nil {
		return nil, refused(ProblemRefused, "this relay has no switch for its backends", "hold the mail instead: POST /v1/queue:apply")
	}
	reason := ""
	if in.Body != nil {
		reason = in.Body.Reason
	}
	rec := Record{Action: action, Object: string(in.Route), Reason: reason}
	err := s.change(ctx, rec, func(ctx context.Context, _ *Record) error { return do(ctx, s.cfg.Backends, reason) })
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", action, in.Route, err)
	}
	out := BackendList{Backends: append([]BackendStatus{}, s.cfg.Backends.Status()...)}
	for _, b := range out.Backends {
		if b.Route == in.Route {
			s.events.Publish(EventBackend, b)
		}
	}
	return &body[BackendList]{out}, nil
}

func (s *Server) healthz(ctx context.Context, _ *struct{}) (*statusBody[Health], error) {
	if s.cfg.Health != nil {
		if err := s.cfg.Health(ctx); err != nil {
			return &statusBody[Health]{Status: http.StatusServiceUnavailable, Body: Health{Reason: err.Error()}}, nil
		}
	}
	return &statusBody[Health]{Status: http.StatusOK, Body: Health{OK: true}}, nil
}

func (s *Server) readyz(ctx context.Context, _ *struct{}) (*statusBody[Readiness], error) {
	var warnings []string
	if s.cfg.Warn != nil {
		warnings = s.cfg.Warn()
	}
	if s.cfg.Ready != nil {
		if reasons := s.cfg.Ready(ctx); len(reasons) > 0 {
			return &statusBody[Readiness]{Status: http.StatusServiceUnavailable, Body: Readiness{Reasons: reasons, Warnings: warnings}}, nil
		}
	}
	return &statusBody[Readiness]{Status: http.StatusOK, Body: Readiness{Ready: true, Warnings: warnings}}, nil
}
