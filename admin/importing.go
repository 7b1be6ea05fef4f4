package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"crossfade/router"
)

// Imported is what became of an import.
type Imported struct {
	Created int          `json:"created"`
	Updated int          `json:"updated"`
	Skipped int          `json:"skipped" doc:"Lines and users that were wrong; see errors. Only with keep_going."`
	Errors  []FieldError `json:"errors,omitempty"`
	DryRun  bool         `json:"dry_run,omitempty" doc:"Nothing was written; created and updated are 0."`
	Checked int          `json:"checked" doc:"Users in the file that are right."`
}

// importInput takes its body from Resolve, so that huma does not read it whole
// into memory.
type importInput struct {
	KeepGoing bool   `query:"keep_going" doc:"Import what is right, although something is wrong."`
	DryRun    bool   `query:"dry_run" doc:"Check the file and write nothing."`
	Reason    string `query:"reason" maxLength:"1000"`

	csv io.Reader
}

// Resolve takes the body.
func (in *importInput) Resolve(ctx huma.Context) []error {
	ct, _, err := mime.ParseMediaType(ctx.Header("Content-Type"))
	if ct != "" && ct != "text/csv" || err != nil && ctx.Header("Content-Type") != "" {
		return []error{huma.Error415UnsupportedMediaType("an import is text/csv, not " + ctx.Header("Content-Type"))}
	}
	in.csv = ctx.BodyReader()
	return nil
}

const maxImportErrors = 1000

func (s *Server) registerImport() {
	register(s, op{method: http.MethodPost, path: "/v1/users:import", id: "import-users", tag: tagUsers, role: RoleAdmin, long: true,
		summary: "Import users from CSV",
		detail: "The body is text/csv with a header line: address is required, then any of state, wave, not_before, deliver, kind, target, old_login, new_login. " +
			"A user who exists keeps state and epoch. Nothing is imported unless every line is right, or keep_going is given."}, s.importUsers)
	s.describeBody("/v1/users:import", "text/csv")
}

// describeBody adds a body to the description of an operation that reads it by
// itself.
func (s *Server) describeBody(path, contentType string) {
	s.api.OpenAPI().Paths[path].Post.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		contentType: {Schema: &huma.Schema{Type: huma.TypeString}},
	}}
}

func (s *Server) importUsers(ctx context.Context, in *importInput) (*body[Imported], error) {
	limited := &countedReader{r: in.csv, left: maxImport}
	users, wrong := router.ParseCSV(limited, router.CSVOptions{MaxBytes: maxImport + 1, MaxErrors: maxImportErrors, Domains: s.cfg.Router.Domains()})
	if limited.err != nil {
		return nil, limited.err
	}
	out := Imported{}
	for _, e := range wrong {
		out.Errors = append(out.Errors, FieldError{Line: e.Line, Where: e.Column, Message: lineMessage(e)})
	}
	if len(wrong) == 0 || in.KeepGoing {
		var err error
		if users, err = s.checkAliases(ctx, users, in.KeepGoing, &out); err != nil {
			return nil, err
		}
		if users, err = s.checkWaves(ctx, users, in.KeepGoing, &out); err != nil {
			return nil, err
		}
	}
	out.Skipped, out.Checked, out.DryRun = len(out.Errors), len(users), in.DryRun
	if len(out.Errors) > 0 && !in.KeepGoing {
		return nil, &Problem{Type: ProblemBadCSV, Title: "the file has errors", Status: http.StatusUnprocessableEntity,
			Detail: fmt.Sprintf("errors: %d; nothing was imported", len(out.Errors)), Errors: out.Errors,
			Hint: "correct the lines, or import the rest of the file (--keep-going, keep_going=true)"}
	}
	if in.DryRun || len(users) == 0 {
		return &body[Imported]{out}, nil
	}
	rec := Record{Action: "import-users", Reason: in.Reason}
	err := s.change(ctx, rec, func(ctx context.Context, r *Record) (err error) {
		c := router.Change{By: callerOf(ctx).name, Reason: in.Reason}
		out.Created, out.Updated, err = s.cfg.Users.ImportUsers(ctx, users, c)
		r.Detail["created"], r.Detail["updated"], r.Detail["skipped"] = out.Created, out.Updated, out.Skipped
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("importing %d users: %w", len(users), err)
	}
	s.events.Publish(EventUser, map[string]any{"imported": out.Created + out.Updated, "by": callerOf(ctx).name})
	return &body[Imported]{out}, nil
}

func lineMessage(e router.LineError) string {
	if e.Column == "" {
		return e.Text
	}
	return e.Column + ": " + e.Text
}

// aliasRounds bounds how often the rest is checked again after wrong users
// were taken out: one that is gone can make others wrong.
const aliasRounds = 100

// checkAliases gives the users that can be written. What is wrong is added to
// out.Errors, and taken out when keepGoing is set.
func (s *Server) checkAliases(ctx context.Context, users []router.User, keepGoing bool, out *Imported) ([]router.User, error) {
	for range aliasRounds {
		err := s.cfg.Router.CheckAliases(ctx, users)
		if err == nil {
			return users, nil
		}
		bad := map[string]bool{}
		for _, e := range unjoin(err) {
			text := e.Error()
			out.Errors = append(out.Errors, FieldError{Message: text})
			address, _, _ := strings.Cut(text, ": ")
			bad[address] = true
		}
		if !keepGoing {
			return users, nil
		}
		before := len(users)
		users = slices.DeleteFunc(users, func(u router.User) bool { return bad[u.Address] })
		if len(users) == before {
			return nil, fmt.Errorf("checking aliases: %w", err)
		}
	}
	return nil, &Problem{Type: ProblemBadCSV, Title: "the file has errors", Status: http.StatusUnprocessableEntity,
		Detail: "too many aliases and groups are wrong; nothing was imported", Errors: out.Errors, Hint: "correct them and import again"}
}

// unjoin gives the errors that errors.Join put together.
func unjoin(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	return []error{err}
}

// countedReader bounds an import and keeps the error that ended it, as a
// Problem: a file that was cut short is never imported as if it were whole.
type countedReader struct {
	r    io.Reader
	left int64
	err  error
}

func (c *countedReader) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	switch {
	case c.left < 0:
		c.err = &Problem{Type: ProblemTooLarge, Title: "the file is too large", Status: http.StatusRequestEntityTooLarge,
			Detail: fmt.Sprintf("an import may have %d octets; nothing was imported", int64(maxImport)), Hint: "split the file"}
		return 0, c.err
	case err != nil && err != io.EOF:
		c.err = &Problem{Type: ProblemBadRequest, Title: "the file did not arrive whole", Status: http.StatusBadRequest,
			Detail: err.Error() + "; nothing was imported", Hint: "send it again"}
		return 0, c.err
	}
	return n, err
}
