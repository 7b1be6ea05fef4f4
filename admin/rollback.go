package admin

import (
	"context"
	"fmt"
	"net/http"

	"crossfade/cutover"
	"crossfade/router"
)

// WindowAPI is what the API asks of the conductor about users who have flipped.
// Rollback returns when the request is durable.
type WindowAPI interface {
	Rollback(ctx context.Context, req cutover.Request) error
	// MayBeDone says what is missing before a user may be set done.
	MayBeDone(ctx context.Context, user string) error
}

// RollbackRequest says why users are taken back to old.
type RollbackRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"1000"`
}

type rollbackInput struct {
	UserPath
	Body *RollbackRequest
}

type rollbackWaveInput struct {
	Name string `path:"name" maxLength:"256"`
	Body *RollbackRequest
}

type rollbackAllInput struct {
	Body *RollbackRequest
}

func (s *Server) registerRollback() {
	register(s, op{method: http.MethodPost, path: "/v1/users/{address}/rollback", id: "start-rollback", tag: tagMoves, role: RoleOperate, status: http.StatusAccepted,
		summary: "Take a user who is new or done back to old, with what arrived or changed on new",
		detail:  "Answers when the request is durable; GET /v1/users/{address}/cutover shows how it goes, DELETE there takes it back."}, s.startRollback)
	register(s, op{method: http.MethodPost, path: "/v1/waves/{name}/rollback", id: "rollback-wave", tag: tagMoves, role: RoleOperate, status: http.StatusAccepted, long: true,
		summary: "Take all users of a wave who are new or done back to old"}, s.rollbackWave)
	register(s, op{method: http.MethodPost, path: "/v1/users:rollback", id: "rollback-all", tag: tagMoves, role: RoleOperate, status: http.StatusAccepted, long: true,
		summary: "Take everybody who is new or done back to old"}, s.rollbackAll)
}

func reasonOf(b *RollbackRequest) string {
	if b == nil {
		return ""
	}
	return b.Reason
}

func (s *Server) startRollback(ctx context.Context, in *rollbackInput) (*body[cutover.Status], error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	if err := s.rollBack(ctx, key, reasonOf(in.Body)); err != nil {
		return nil, err
	}
	return &body[cutover.Status]{s.statusOf(key)}, nil
}

// rollBack passes a request to the conductor, under the eyes of the audit log.
func (s *Server) rollBack(ctx context.Context, key, reason string) error {
	c, err := s.conductor()
	if err != nil {
		return err
	}
	req := cutover.Request{User: key, By: callerOf(ctx).name, Reason: reason}
	return s.change(ctx, Record{Action: "start-rollback", Object: key, Reason: reason}, func(ctx context.Context, _ *Record) error {
		return conductorError(c.Rollback(ctx, req))
	})
}

func (s *Server) rollbackWave(ctx context.Context, in *rollbackWaveInput) (*body[WaveStarted], error) {
	out, found, err := s.rollBackThose(ctx, router.Filter{Wave: in.Name}, reasonOf(in.Body))
	if err == nil && !found {
		err = &Problem{Type: ProblemNoUser, Title: "no such wave", Status: http.StatusNotFound,
			Detail: fmt.Sprintf("no user has the wave %q", in.Name), Hint: "GET /v1/users shows the waves; PATCH and import set them"}
	}
	if err != nil {
		return nil, err
	}
	return &body[WaveStarted]{out}, nil
}

func (s *Server) rollbackAll(ctx context.Context, in *rollbackAllInput) (*body[WaveStarted], error) {
	out, _, err := s.rollBackThose(ctx, router.Filter{}, reasonOf(in.Body))
	if err != nil {
		return nil, err
	}
	return &body[WaveStarted]{out}, nil
}

// rollBackThose asks for all users of a filter who read new; found tells whether
// it has any users at all.
func (s *Server) rollBackThose(ctx context.Context, f router.Filter, reason string) (out WaveStarted, found bool, err error) {
	out.Started = []string{}
	if _, err := s.conductor(); err != nil {
		return out, false, err
	}
	cursor := ""
	for {
		users, next, err := s.cfg.Users.Users(ctx, f, cursor, 500)
		if err != nil {
			return out, found, fmt.Errorf("listing the users to roll back: %w", err)
		}
		for _, u := range users {
			found = true
			s.rollBackMember(ctx, u, reason, &out)
		}
		if cursor = next; cursor == "" {
			return out, found, nil
		}
	}
}

func (s *Server) rollBackMember(ctx context.Context, u router.User, reason string, out *WaveStarted) {
	switch u.State {
	case router.StateNew, router.StateDone, router.StateRollback:
	default:
		out.Skipped = append(out.Skipped, u.Address)
		return
	}
	if err := s.rollBack(ctx, u.Address, reason); err != nil {
		out.Failed = append(out.Failed, FieldError{Where: u.Address, Message: problemOf(err).Detail})
		return
	}
	out.Started = append(out.Started, u.Address)
}

// mayBeDone refuses to set a user done whose window is not to be closed yet.
func (s *Server) mayBeDone(ctx context.Context, key string) error {
	refuse := func(detail string) error {
		return &Problem{Type: ProblemNeedsForce, Title: "only with force", Status: http.StatusConflict, Detail: detail,
			Hint: "wait: the relay sets the user done by itself when nothing is missing any more; force ends the sweeps of old at once"}
	}
	if s.cfg.Conductor == nil {
		return refuse("without mailboxes in the configuration nobody can look whether mail still reaches old")
	}
	if err := s.cfg.Conductor.MayBeDone(ctx, key); err != nil {
		return refuse(fmt.Sprintf("the window of %s cannot be closed yet: %v", key, err))
	}
	return nil
}

// StartRollback asks for a user to be taken back to old.
func (c *Client) StartRollback(ctx context.Context, address, reason string) (cutover.Status, error) {
	var out cutover.Status
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/users/" + part(address) + "/rollback"}, RollbackRequest{Reason: reason}, &out)
	return out, err
}

// RollbackWave asks for all users of a wave who read new to be taken back to old.
func (c *Client) RollbackWave(ctx context.Context, wave, reason string) (WaveStarted, error) {
	var out WaveStarted
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/waves/" + part(wave) + "/rollback"}, RollbackRequest{Reason: reason}, &out)
	return out, err
}

// RollbackAll asks for everybody who reads new to be taken back to old.
func (c *Client) RollbackAll(ctx context.Context, reason string) (WaveStarted, error) {
	var out WaveStarted
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/users:rollback"}, RollbackRequest{Reason: reason}, &out)
	return out, err
}
