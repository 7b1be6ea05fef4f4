package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"crossfade/audit"
	"crossfade/audit/seal"
)

const tagAudits = "audits"

// ErrNoAudit tells that no audit was made, or none of that user.
var ErrNoAudit = errors.New("no such audit")

// ErrNothingToSettle tells that the last audit found no mailbox of a user that was made
// anew.
var ErrNothingToSettle = errors.New("there is nothing to settle")

// ErrAuditing tells that an audit is under way.
var ErrAuditing = errors.New("an audit is under way")

// AuditsAPI is what the API asks of the audits.
type AuditsAPI interface {
	// Start begins one, with a name of its own; ErrAuditing when one is under way on
	// this node.
	Start(ctx context.Context, req audit.Request) (AuditRun, error)
	Status() AuditRun
	// Last gives the last one, of all nodes; ErrNoAudit.
	Last(ctx context.Context) (*audit.Document, error)
	// Of gives what the last one says of one user, signed by itself; ErrNoAudit.
	Of(ctx context.Context, user string) (*audit.Document, error)
	// Each gives what the audit with this name says of each user whose address is
	// behind after, signed one by one, and where to go on; ErrNoAudit when another one
	// is the last by now.
	Each(ctx context.Context, run, after string, limit int) (docs []*audit.Document, next string, err error)
	// Settle takes an operator's word that a user's mailbox, which the last audit found
	// to be made anew, is well as it is; ErrNoAudit, ErrNothingToSettle.
	Settle(ctx context.Context, user, by, reason string) (audit.Settled, error)
	SealsAPI
}

// SealsAPI is the key of the installation.
type SealsAPI interface {
	// PublicKey checks what was signed.
	PublicKey(ctx context.Context) (string, error)
	// Sign signs members of a document.
	Sign(ctx context.Context, document any, members ...string) (*seal.Signature, error)
}

// LivesAPI tells what became of messages, and whether all is at its end.
type LivesAPI interface {
	Why(ctx context.Context, id string, look bool) ([]audit.Life, error)
	Finish(ctx context.Context) audit.Finish
}

// AuditRun says how the last audit that was begun on this node goes.
type AuditRun struct {
	ID       string         `json:"id" doc:"Names this audit; its document has it as run."`
	Running  bool           `json:"running"`
	Began    time.Time      `json:"began,omitzero"`
	Ended    time.Time      `json:"ended,omitzero"`
	Progress audit.Progress `json:"progress"`
	Clean    bool           `json:"clean" doc:"Of the one that ended."`
	Error    string         `json:"error,omitempty" doc:"Why it did not come to its end."`
}

// AuditKey is the public key of the installation.
type AuditKey struct {
	Alg string `json:"alg"`
	Key string `json:"key" doc:"32 octets in base64."`
}

// Lives are the messages that were asked for.
type Lives struct {
	Messages []audit.Life `json:"messages"`
}

type settleInput struct {
	UserPath
	Body SettleMailbox
}

// SettleMailbox says why a mailbox that was made anew is well as it is.
type SettleMailbox struct {
	Reason string `json:"reason" minLength:"1" maxLength:"1000"`
}

// UserAudits are what an audit says of users, one by one.
type UserAudits struct {
	Documents []*audit.Document `json:"documents"`
	Next      string            `json:"next,omitempty" doc:"Cursor of the next page; absent: there is none."`
}

type eachInput struct {
	Run    string `query:"run" required:"true" maxLength:"100" doc:"Which audit: run of the document that GET /v1/audits/last gives. 404 when another one is the last by now."`
	Cursor string `query:"cursor" maxLength:"4096" doc:"next of the page before."`
	Limit  int    `query:"limit" default:"200" minimum:"1" maximum:"1000"`
}

type whyInput struct {
	ID     string `query:"id" required:"true" maxLength:"1000" doc:"Queue id, or Message-ID with or without its angle brackets."`
	NoLook bool   `query:"no_look" doc:"Do not look into the mailboxes."`
}

func (s *Server) registerAudits() {
	register(s, op{method: http.MethodPost, path: "/v1/audits", id: "start-audit", tag: tagAudits, role: RoleOperate, status: http.StatusAccepted,
		summary: "Begin an audit: what was accepted, and where it is", detail: "GET /v1/audits/status shows how far it is, GET /v1/audits/last has the result."}, s.startAudit)
	register(s, op{method: http.MethodGet, path: "/v1/audits/status", id: "audit-status", tag: tagAudits, role: RoleRead,
		summary: "How the audit on this node goes"}, s.auditStatus)
	register(s, op{method: http.MethodGet, path: "/v1/audits/last", id: "last-audit", tag: tagAudits, role: RoleRead, long: true,
		summary: "The last audit: a signed document"}, s.lastAudit)
	register(s, op{method: http.MethodGet, path: "/v1/audits/last/users", id: "user-audits", tag: tagAudits, role: RoleRead, long: true,
		summary: "What the last audit says of each user, signed one by one"}, s.userAudits)
	register(s, op{method: http.MethodGet, path: "/v1/audits/last/{address}", id: "user-audit", tag: tagAudits, role: RoleRead, long: true,
		summary: "What the last audit says of one user, signed by itself"}, s.userAudit)
	register(s, op{method: http.MethodPost, path: "/v1/audits/settled/{address}", id: "settle-mailbox", tag: tagAudits, role: RoleOperate,
		summary: "Say that a user's mailbox that was made anew is well as it is",
		detail:  "What the last audit names as missing because the mailbox, or a folder of it, was made anew since it was delivered counts as gone from the next audit on. Who said so, and why, is in every audit."}, s.settleMailbox)
	register(s, op{method: http.MethodGet, path: "/v1/audits/key", id: "audit-key", tag: tagAudits, role: RoleRead,
		summary: "The public key of what this installation signs"}, s.auditKey)
	register(s, op{method: http.MethodGet, path: "/v1/why", id: "why", tag: tagAudits, role: RoleRead, long: true,
		summary: "One message's whole life", detail: "Accepted, routed, each attempt with its reply, and where it lies now. Looking reads the Received fields of both mailboxes of each recipient."}, s.why)
	register(s, op{method: http.MethodGet, path: "/v1/finish", id: "finish", tag: tagAudits, role: RoleRead, long: true,
		summary: "What must be true before the old system may be switched off, with evidence"}, s.finish)
}

func (s *Server) audits() (AuditsAPI, error) {
	if s.cfg.Audits == nil {
		return nil, refused(ProblemRefused, "this relay keeps no journal", "")
	}
	return s.cfg.Audits, nil
}

func auditError(err error) error {
	switch {
	case errors.Is(err, ErrNoAudit):
		return &Problem{Type: ProblemNoAudit, Title: "no such audit", Status: http.StatusNotFound, Detail: err.Error(), Hint: "POST /v1/audits (crossfade audit) makes one"}
	case errors.Is(err, audit.ErrUnknown):
		return &Problem{Type: ProblemNoMessage, Title: "no such message", Status: http.StatusNotFound, Detail: err.Error(),
			Hint: "a queue id is in our answer to the sender (queued as), in our Received field, in the log and in crossfade queue list, a Message-ID in the message's header; " +
				"the journal begins when this version was first started, and audit.keep may have removed what is older"}
	case errors.Is(err, ErrNothingToSettle):
		return refused(ProblemRefused, err.Error(), "crossfade audit ADDRESS looks anew")
	case errors.Is(err, ErrAuditing):
		return refused(ProblemRefused, err.Error(), "GET /v1/audits/status shows how far it is")
	}
	return err
}

func (s *Server) startAudit(ctx context.Context, in *body[audit.Request]) (*body[AuditRun], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	req := in.Body
	for i, user := range req.Users {
		if req.Users[i], err = mailboxKey(user); err != nil {
			return nil, err
		}
	}
	rec := Record{Action: "start-audit", Detail: map[string]any{"users": len(req.Users), "mailboxes": req.Mailboxes}}
	var run AuditRun
	err = s.change(ctx, rec, func(ctx context.Context, _ *Record) (err error) {
		run, err = a.Start(ctx, req)
		return auditError(err)
	})
	if err != nil {
		return nil, err
	}
	return &body[AuditRun]{run}, nil
}

func (s *Server) auditStatus(context.Context, *struct{}) (*body[AuditRun], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	return &body[AuditRun]{a.Status()}, nil
}

func (s *Server) lastAudit(ctx context.Context, _ *struct{}) (*body[*audit.Document], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	d, err := a.Last(ctx)
	if err != nil {
		return nil, auditError(err)
	}
	return &body[*audit.Document]{d}, nil
}

func (s *Server) userAudit(ctx context.Context, in *UserPath) (*body[*audit.Document], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	d, err := a.Of(ctx, key)
	if err != nil {
		return nil, auditError(err)
	}
	return &body[*audit.Document]{d}, nil
}

func (s *Server) userAudits(ctx context.Context, in *eachInput) (*body[UserAudits], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	docs, next, err := a.Each(ctx, in.Run, in.Cursor, in.Limit)
	if err != nil {
		return nil, auditError(err)
	}
	return &body[UserAudits]{UserAudits{Documents: docs, Next: next}}, nil
}

func (s *Server) settleMailbox(ctx context.Context, in *settleInput) (*body[audit.Settled], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	var out audit.Settled
	rec := Record{Action: "settle-mailbox", Object: key, Reason: in.Body.Reason}
	err = s.change(ctx, rec, func(ctx context.Context, r *Record) (err error) {
		out, err = a.Settle(ctx, key, callerOf(ctx).name, in.Body.Reason)
		return auditError(err)
	})
	return &body[audit.Settled]{out}, err
}

func (s *Server) auditKey(ctx context.Context, _ *struct{}) (*body[AuditKey], error) {
	a, err := s.audits()
	if err != nil {
		return nil, err
	}
	key, err := a.PublicKey(ctx)
	return &body[AuditKey]{AuditKey{Alg: "Ed25519", Key: key}}, err
}

func (s *Server) why(ctx context.Context, in *whyInput) (*body[Lives], error) {
	if s.cfg.Lives == nil {
		return nil, refused(ProblemRefused, "this relay keeps no journal", "")
	}
	lives, err := s.cfg.Lives.Why(ctx, in.ID, !in.NoLook)
	if err != nil {
		return nil, auditError(err)
	}
	return &body[Lives]{Lives{lives}}, nil
}

func (s *Server) finish(ctx context.Context, _ *struct{}) (*body[audit.Finish], error) {
	if s.cfg.Lives == nil {
		return nil, refused(ProblemRefused, "this relay keeps no journal", "")
	}
	return &body[audit.Finish]{s.cfg.Lives.Finish(ctx)}, nil
}

// StartAudit begins an audit.
func (c *Client) StartAudit(ctx context.Context, req audit.Request) (AuditRun, error) {
	var out AuditRun
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/audits"}, req, &out)
	return out, err
}

// AuditStatus says how it goes.
func (c *Client) AuditStatus(ctx context.Context) (AuditRun, error) {
	var out AuditRun
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audits/status"}, nil, &out)
	return out, err
}

// LastAudit gives the last one; of one user when address is not empty.
func (c *Client) LastAudit(ctx context.Context, address string) (*audit.Document, error) {
	path := "/v1/audits/last"
	if address != "" {
		path += "/" + part(address)
	}
	var out audit.Document
	err := c.do(ctx, call{method: http.MethodGet, path: path}, nil, &out)
	return &out, err
}

// EachAudit gives what an audit says of each user, signed one by one, to f, a page of
// them at a time in memory. The audit is named by its document's run; ErrNoAudit in
// the answer means that another one is the last by now.
func (c *Client) EachAudit(ctx context.Context, run string, f func(*audit.Document) error) error {
	for q := (url.Values{"run": {run}}); ; {
		var page UserAudits
		if err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audits/last/users", query: q}, nil, &page); err != nil {
			return err
		}
		for _, d := range page.Documents {
			if err := f(d); err != nil {
				return err
			}
		}
		if page.Next == "" {
			return nil
		}
		q.Set("cursor", page.Next)
	}
}

// SettleMailbox says that a user's mailbox that was made anew is well as it is.
func (c *Client) SettleMailbox(ctx context.Context, address, reason string) (audit.Settled, error) {
	var out audit.Settled
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/audits/settled/" + part(address)}, SettleMailbox{Reason: reason}, &out)
	return out, err
}

// AuditKey gives the public key of the installation.
func (c *Client) AuditKey(ctx context.Context) (string, error) {
	var out AuditKey
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audits/key"}, nil, &out)
	return out.Key, err
}

// Why tells what became of a message, by queue id or Message-ID.
func (c *Client) Why(ctx context.Context, id string, look bool) ([]audit.Life, error) {
	q := url.Values{}
	q.Set("id", id)
	if !look {
		q.Set("no_look", "true")
	}
	var out Lives
	if err := c.do(ctx, call{method: http.MethodGet, path: "/v1/why", query: q}, nil, &out); err != nil {
		return nil, fmt.Errorf("asking for %s: %w", id, err)
	}
	return out.Messages, nil
}

// Finish asks whether the old system may be switched off.
func (c *Client) Finish(ctx context.Context) (audit.Finish, error) {
	var out audit.Finish
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/finish"}, nil, &out)
	return out, err
}
