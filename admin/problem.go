package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// The types of a [Problem]. They are relative URI references, and they stay as
// they are: people script against them.
const (
	ProblemBadRequest   = "/problems/bad-request"        // 400: not JSON, or the body is missing
	ProblemUnauthorized = "/problems/unauthorized"       // 401: no token, or a wrong one
	ProblemForbidden    = "/problems/forbidden"          // 403: the token's role does not allow it
	ProblemWebPage      = "/problems/web-page"           // 403: a page in a browser sent it
	ProblemNotFound     = "/problems/not-found"          // 404: no such path
	ProblemNoUser       = "/problems/no-such-user"       // 404
	ProblemNoMessage    = "/problems/no-such-message"    // 404
	ProblemNoMove       = "/problems/no-such-move"       // 404: the conductor does not know the user
	ProblemNoAudit      = "/problems/no-such-audit"      // 404
	ProblemNoNode       = "/problems/no-such-node"       // 404
	ProblemNoToken      = "/problems/no-such-token"      // 404
	ProblemMethod       = "/problems/method-not-allowed" // 405
	ProblemTimeout      = "/problems/timeout"            // 408, 504
	ProblemWrongEpoch   = "/problems/wrong-epoch"        // 409: somebody else changed the user in between
	ProblemTransition   = "/problems/no-transition"      // 409: the table of states has no such way
	ProblemRefused      = "/problems/refused"            // 409: it cannot be done to this user or message
	ProblemNoBackfill   = "/problems/no-backfill"        // 409: the relay knows no mailboxes
	ProblemTokenName    = "/problems/token-exists"       // 409: a token has that name
	ProblemNeedsForce   = "/problems/needs-force"        // 409: only with force
	ProblemTooLarge     = "/problems/too-large"          // 413
	ProblemMediaType    = "/problems/media-type"         // 415
	ProblemWrongHost    = "/problems/wrong-host"         // 421: the name in Host is not ours
	ProblemInvalid      = "/problems/invalid"            // 422: a field, parameter or address is wrong; see errors
	ProblemBadCSV       = "/problems/bad-csv"            // 422: lines of an import are wrong; see errors
	ProblemConfig       = "/problems/bad-configuration"  // 422: a reload found the file wrong
	ProblemSlowDown     = "/problems/slow-down"          // 429: too many wrong tokens
	ProblemInternal     = "/problems/internal"           // 500: see detail and the log
	ProblemAudit        = "/problems/audit-failed"       // 500, 503: the audit log cannot be written
	ProblemBusy         = "/problems/busy"               // 503: too many event streams
	ProblemClosed       = "/problems/store-closed"       // 503: the relay is stopping, or its store failed
)

// Problem is every error of the API, in the form of RFC 9457.
type Problem struct {
	Type   string       `json:"type" doc:"What kind of problem; stable, for programs."`
	Title  string       `json:"title" doc:"The kind of problem in words."`
	Status int          `json:"status" doc:"The HTTP status code."`
	Detail string       `json:"detail,omitempty" doc:"What was attempted and what went wrong."`
	Hint   string       `json:"hint,omitempty" doc:"What to do about it."`
	Errors []FieldError `json:"errors,omitempty" doc:"What is wrong, place by place."`
	// Epoch and Allowed help a program to decide again.
	Epoch   uint64         `json:"epoch,omitempty" doc:"With wrong-epoch: the user's present epoch."`
	Allowed []router.State `json:"allowed,omitempty" doc:"With no-transition: the states that may follow."`

	wait time.Duration // with slow-down: for Retry-After
}

// FieldError is one thing that is wrong with a request.
type FieldError struct {
	Where   string `json:"where,omitempty" doc:"Such as body.state or query.limit."`
	Line    int    `json:"line,omitempty" doc:"Of an imported file, from 1."`
	Message string `json:"message"`
}

// String gives the place and the message on one line.
func (f FieldError) String() string {
	switch {
	case f.Line > 0:
		return fmt.Sprintf("line %d: %s", f.Line, f.Message)
	case f.Where != "":
		return f.Where + ": " + f.Message
	}
	return f.Message
}

// Error gives title and detail.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Title + ": " + p.Detail
}

// GetStatus is the HTTP status code; huma asks for it.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes the answer application/problem+json; huma asks for it.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// invalid is a 422 about one place of a request.
func invalid(where, format string, args ...any) *Problem {
	e := FieldError{Where: where, Message: fmt.Sprintf(format, args...)}
	return &Problem{
		Type: ProblemInvalid, Title: "the request is not valid", Status: http.StatusUnprocessableEntity,
		Errors: []FieldError{e}, Detail: e.String(),
		Hint: "GET /openapi.json describes every request; nothing was changed",
	}
}

// refused is a 409: the request is right and cannot be done.
func refused(kind, detail, hint string) *Problem {
	return &Problem{Type: kind, Title: "it cannot be done", Status: http.StatusConflict, Detail: detail, Hint: hint}
}

// problemOf turns any error into a Problem. What is not known is a 500 with
// the error's text: whoever holds a token may read it.
func problemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	if p := problemOfRouter(err); p != nil {
		return p
	}
	detail := err.Error()
	switch {
	case errors.Is(err, queue.ErrNotFound):
		return &Problem{Type: ProblemNoMessage, Title: "no such message", Status: http.StatusNotFound, Detail: detail,
			Hint: "it may be delivered already; the log has its id"}
	case errors.Is(err, queue.ErrClosed):
		return &Problem{Type: ProblemClosed, Title: "the store is closed", Status: http.StatusServiceUnavailable, Detail: detail,
			Hint: "the relay is stopping, or a write failed and it stopped itself: see its log"}
	case errors.Is(err, context.DeadlineExceeded):
		return &Problem{Type: ProblemTimeout, Title: "it took too long", Status: http.StatusGatewayTimeout, Detail: detail,
			Hint: "look at the present state, then repeat the request"}
	}
	return &Problem{Type: ProblemInternal, Title: "internal error", Status: http.StatusInternalServerError, Detail: detail,
		Hint: "the log of the relay has more; look at the present state before you repeat the request"}
}

func problemOfRouter(err error) *Problem {
	var epoch *router.EpochError
	var way *router.TransitionError
	switch {
	case errors.Is(err, router.ErrNoUser):
		return &Problem{Type: ProblemNoUser, Title: "no such user", Status: http.StatusNotFound, Detail: err.Error(),
			Hint: "GET /v1/route?rcpt= explains what becomes of mail for an address; POST /v1/users:import adds users"}
	case errors.As(err, &epoch):
		p := refused(ProblemWrongEpoch, err.Error(), "read the user again, decide again, and send the epoch that you saw")
		p.Title, p.Epoch = "somebody else changed the user", epoch.Have
		return p
	case errors.Is(err, router.ErrEpoch):
		p := refused(ProblemWrongEpoch, err.Error(), "read the user again, decide again, and send the epoch that you saw")
		p.Title = "somebody else changed the user"
		return p
	case errors.As(err, &way):
		p := refused(ProblemTransition, err.Error(), "start a cutover to move a user with his mail")
		p.Title, p.Allowed = "no way between these states", way.Allowed
		if way.ForceHelps {
			p.Hint = "start a cutover to move a user with his mail; force sets the state at once and copies nothing"
		}
		return p
	case errors.Is(err, router.ErrNoState):
		return refused(ProblemRefused, err.Error(), "set the state of the mailbox that it leads to; GET /v1/route?rcpt= shows which")
	case errors.Is(err, router.ErrNotOurs):
		return refused(ProblemRefused, err.Error(), "check the spelling, and domains in the configuration file")
	}
	return nil
}

// transform makes Problems of the errors that huma itself finds.
func transform(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := &Problem{Title: "the request is not valid", Status: m.Status, Detail: m.Detail, Hint: "GET /openapi.json describes every request; nothing was changed"}
	switch m.Status {
	case http.StatusBadRequest:
		p.Type = ProblemBadRequest
	case http.StatusRequestTimeout:
		p.Type, p.Hint = ProblemTimeout, "send the body faster"
	case http.StatusRequestEntityTooLarge:
		p.Type, p.Hint = ProblemTooLarge, "a request may have 1 MiB, an import 64 MiB: split it"
	case http.StatusUnsupportedMediaType:
		p.Type, p.Hint = ProblemMediaType, "send application/json; an import is text/csv"
	case http.StatusUnprocessableEntity:
		p.Type = ProblemInvalid
	default:
		p.Type, p.Title = ProblemInternal, "internal error"
	}
	var places []string
	for _, e := range m.Errors {
		p.Errors = append(p.Errors, FieldError{Where: e.Location, Message: e.Message})
		places = append(places, FieldError{Where: e.Location, Message: e.Message}.String())
	}
	if len(places) > 0 {
		p.Detail = strings.Join(places, "; ")
	}
	return p, nil
}

// keyOf reads an address of a path or a body: the key of a user, or of a
// domain alias ("@example.org").
func keyOf(where, address string) (string, error) {
	if domain, ok := strings.CutPrefix(address, "@"); ok {
		d, err := mail.NormalDomain(domain)
		if err != nil {
			return "", invalid(where, "%v", err)
		}
		return "@" + d, nil
	}
	a, err := addressOf(where, address)
	return a.Key(), err
}

func addressOf(where, address string) (mail.Address, error) {
	a, err := mail.ParseAddress(address)
	if err != nil {
		return a, invalid(where, "%v", err)
	}
	if a.IsNull() {
		return a, invalid(where, "the address is empty")
	}
	return a, nil
}
