package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"crossfade/audit/seal"
	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/queue"
	"crossfade/router"
)

const tagMoves = "moves"

// MoveRequest asks for a user or a wave to be moved.
type MoveRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"1000"`
	Sync   bool   `json:"sync,omitempty" doc:"Stop at ready: copy, and do not flip."`
	Mirror bool   `json:"mirror,omitempty" doc:"Keep old current after the flip, so that a rollback takes seconds; cutover.mirror does it for everybody."`
}

// Moves lists the users that the conductor knows of.
type Moves struct {
	Moves  []cutover.Status `json:"moves"`
	Total  cutover.Total    `json:"total" doc:"All users who are not in sync yet, together."`
	Waves  []cutover.Total  `json:"waves,omitempty" doc:"The same by wave, in the order in which waves are copied."`
	Paused []cutover.Pause  `json:"paused,omitempty" doc:"What of the backfill an operator has paused."`
}

// WaveStarted says which users of a wave are on their way.
type WaveStarted struct {
	Started []string     `json:"started"`
	Skipped []string     `json:"skipped,omitempty" doc:"Users who are new or done already, aliases and groups."`
	Failed  []FieldError `json:"failed,omitempty" doc:"where is the address."`
}

type moveInput struct {
	UserPath
	Body *MoveRequest
}

type waveInput struct {
	Name string `path:"name" maxLength:"256"`
	Body *MoveRequest
}

// asked is the request in a body that may be left out.
func asked(b *MoveRequest) MoveRequest {
	if b == nil {
		return MoveRequest{}
	}
	return *b
}

func (s *Server) registerMoves() {
	s.registerPause()
	s.registerRollback()
	register(s, op{method: http.MethodPost, path: "/v1/users/{address}/cutover", id: "start-cutover", tag: tagMoves, role: RoleOperate, status: http.StatusAccepted,
		summary: "Move a user to new, with his mail", detail: "Answers when the request is durable; GET shows how it goes. A user in no table is made, as coming from old."}, s.startCutover)
	register(s, op{method: http.MethodGet, path: "/v1/users/{address}/cutover", id: "get-cutover", tag: tagMoves, role: RoleRead,
		summary: "How the move of a user goes"}, s.getCutover)
	register(s, op{method: http.MethodDelete, path: "/v1/users/{address}/cutover", id: "cancel-cutover", tag: tagMoves, role: RoleOperate, status: http.StatusNoContent,
		summary: "Take a user who has not flipped back to old, or take back the request to roll one back", detail: "What was copied stays where it is, and is not copied again later."}, s.cancelCutover)
	register(s, op{method: http.MethodPost, path: "/v1/waves/{name}/cutover", id: "start-wave", tag: tagMoves, role: RoleOperate, status: http.StatusAccepted, long: true,
		summary: "Move all users of a wave"}, s.startWave)
	register(s, op{method: http.MethodGet, path: "/v1/backfill", id: "list-moves", tag: tagMoves, role: RoleRead,
		summary: "How all moves and copies go, by address"}, s.listMoves)
	register(s, op{method: http.MethodPost, path: "/v1/backfill/{address}/run", id: "run-backfill", tag: tagMoves, role: RoleOperate, status: http.StatusAccepted,
		summary: "Copy a user's mail until it is in sync, and do not flip"}, s.runBackfill)
	register(s, op{method: http.MethodPost, path: "/v1/backfill/{address}/verify", id: "verify-backfill", tag: tagMoves, role: RoleOperate, long: true,
		summary: "Compare both mailboxes of a user, message by message", detail: "Answers at the end; a large mailbox takes minutes."}, s.verifyBackfill)
	register(s, op{method: http.MethodGet, path: "/v1/backfill/{address}/plan", id: "plan-backfill", tag: tagMoves, role: RoleOperate, long: true,
		summary: "What copying a user's mail would do: folders, messages, bytes, names, what is refused or left out", detail: "Changes nothing, and logs in to both servers."}, s.planBackfill)
	register(s, op{method: http.MethodPost, path: "/v1/backfill/{address}/inventory", id: "inventory-backfill", tag: tagMoves, role: RoleOperate, long: true,
		summary: "What a user's mailbox on new holds: content keys, folder by folder",
		detail:  "Reads every message on new and nothing on old. A certificate is compared with it. Answers at the end; a large mailbox takes minutes."}, s.inventoryBackfill)
}

func (s *Server) conductor() (ConductorAPI, error) {
	if s.cfg.Conductor != nil {
		return s.cfg.Conductor, nil
	}
	return nil, refused(ProblemNoBackfill, "this relay has no mailboxes in its configuration (backends.old.imap or .mailbox, and backends.new.imap), so it cannot copy mail",
		"configure them; or, when the mail is copied by other means, PUT /v1/users/{address}/state with state new and force (crossfade user set ADDRESS new --force)")
}

func (s *Server) startCutover(ctx context.Context, in *moveInput) (*body[cutover.Status], error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	req := asked(in.Body)
	err = s.start(ctx, "start-cutover", cutover.Request{User: key, Reason: req.Reason, Sync: req.Sync, Mirror: req.Mirror})
	if err != nil {
		return nil, err
	}
	return &body[cutover.Status]{s.statusOf(key)}, nil
}

// mailboxKey reads an address that can be moved: not a domain alias.
func mailboxKey(address string) (string, error) {
	a, err := addressOf("path.address", address)
	return a.Key(), err
}

// start passes a request to the conductor, under the eyes of the audit log.
func (s *Server) start(ctx context.Context, action string, req cutover.Request) error {
	c, err := s.conductor()
	if err != nil {
		return err
	}
	if err := s.oursToMove(ctx, req.User); err != nil {
		return err
	}
	req.By = callerOf(ctx).name
	rec := Record{Action: action, Object: req.User, Reason: req.Reason, Detail: map[string]any{"sync": req.Sync}}
	if req.AllowDeletions {
		rec.Detail["allow_deletions"] = true
	}
	if req.RetryRefused {
		rec.Detail["retry_refused"] = true
	}
	return s.change(ctx, rec, func(ctx context.Context, _ *Record) error {
		if action == "run-backfill" && !req.AllowDeletions && !req.RetryRefused {
			return conductorError(c.RunBackfill(ctx, req.User, req.By))
		}
		return conductorError(c.Start(ctx, req))
	})
}

// oursToMove keeps a misspelt address of a foreign domain out of the table.
func (s *Server) oursToMove(ctx context.Context, key string) error {
	addr, err := addressOf("path.address", key)
	if err != nil {
		return err
	}
	_, err = s.cfg.Users.User(ctx, key)
	if errors.Is(err, router.ErrNoUser) && !s.cfg.Router.Ours(addr.Domain) {
		return fmt.Errorf("moving %s: %w", key, router.ErrNotOurs)
	}
	if err != nil && !errors.Is(err, router.ErrNoUser) {
		return fmt.Errorf("moving %s: %w", key, err)
	}
	return nil
}

// conductorError makes a refusal of what the conductor says no to.
func conductorError(err error) error {
	if err == nil {
		return nil
	}
	known := problemOf(err).Type != ProblemInternal
	if known || errors.Is(err, context.Canceled) || errors.Is(err, queue.ErrClosed) {
		return err
	}
	return refused(ProblemRefused, err.Error(), "GET /v1/users/{address} shows the present state, GET /v1/backfill how moves go")
}

// statusOf is what the conductor says of a user; at least who he is.
func (s *Server) statusOf(key string) cutover.Status {
	st, ok := s.cfg.Conductor.StatusOf(key)
	if !ok {
		st = cutover.Status{User: key, Phase: cutover.PhaseWaiting}
	}
	return st
}

func (s *Server) getCutover(_ context.Context, in *UserPath) (*body[cutover.Status], error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	c, err := s.conductor()
	if err != nil {
		return nil, err
	}
	st, ok := c.StatusOf(key)
	if !ok {
		return nil, &Problem{Type: ProblemNoMove, Title: "nothing is known of a move", Status: http.StatusNotFound,
			Detail: fmt.Sprintf("the conductor has not worked on %s since the relay started", key), Hint: "GET /v1/users/{address} shows the user's state"}
	}
	return &body[cutover.Status]{st}, nil
}

func (s *Server) cancelCutover(ctx context.Context, in *UserPath) (*struct{}, error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	c, err := s.conductor()
	if err != nil {
		return nil, err
	}
	return nil, s.change(ctx, Record{Action: "cancel-cutover", Object: key}, func(ctx context.Context, _ *Record) error {
		return conductorError(c.Cancel(ctx, key, callerOf(ctx).name))
	})
}

func (s *Server) startWave(ctx context.Context, in *waveInput) (*body[WaveStarted], error) {
	if _, err := s.conductor(); err != nil {
		return nil, err
	}
	out := WaveStarted{Started: []string{}}
	req, found := asked(in.Body), false
	if w, err := s.waves(); err == nil && !req.Sync {
		// Whoever starts it all the way approves it, also for those who come later.
		rec := Record{Action: "approve-wave", Object: in.Name, Reason: req.Reason}
		if _, err := s.sayOfWave(ctx, rec, func(ctx context.Context, _ WavesAPI) (cutover.Wave, error) {
			return w.ApproveWave(ctx, in.Name, callerOf(ctx).name)
		}); err != nil {
			return nil, err
		}
	}
	err := s.eachOfWave(ctx, in.Name, func(u router.User) {
		found = true
		s.startMember(ctx, u, req, &out)
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, &Problem{Type: ProblemNoUser, Title: "no such wave", Status: http.StatusNotFound,
			Detail: fmt.Sprintf("no user has the wave %q", in.Name), Hint: "GET /v1/users shows the waves; PATCH and import set them"}
	}
	return &body[WaveStarted]{out}, nil
}

func (s *Server) startMember(ctx context.Context, u router.User, req MoveRequest, out *WaveStarted) {
	isMailbox := u.Kind == router.KindMailbox || u.Kind == ""
	if !isMailbox || u.State == router.StateNew || u.State == router.StateDone {
		out.Skipped = append(out.Skipped, u.Address)
		return
	}
	err := s.start(ctx, "start-cutover", cutover.Request{User: u.Address, Reason: req.Reason, Sync: req.Sync, Mirror: req.Mirror})
	if err != nil {
		out.Failed = append(out.Failed, FieldError{Where: u.Address, Message: problemOf(err).Detail})
		return
	}
	out.Started = append(out.Started, u.Address)
}

func (s *Server) listMoves(context.Context, *struct{}) (*body[Moves], error) {
	out := Moves{Moves: []cutover.Status{}}
	if s.cfg.Conductor != nil {
		out.Moves = append(out.Moves, s.cfg.Conductor.Status()...)
		out.Total, out.Waves = cutover.Totals(out.Moves, time.Now())
		out.Paused = s.cfg.Conductor.Pauses()
	}
	return &body[Moves]{out}, nil
}

type runInput struct {
	UserPath
	AllowDeletions bool `query:"allow_deletions" doc:"Lift the ceiling on deletions for one pass: somebody has looked at what was deleted on old."`
	RetryRefused   bool `query:"retry_refused" doc:"Offer the messages again, as they are, that new refused."`
}

func (s *Server) runBackfill(ctx context.Context, in *runInput) (*body[cutover.Status], error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, "run-backfill", cutover.Request{User: key, Sync: true, AllowDeletions: in.AllowDeletions, RetryRefused: in.RetryRefused}); err != nil {
		return nil, err
	}
	return &body[cutover.Status]{s.statusOf(key)}, nil
}

// Verified is a comparison, signed with the key of the installation.
type Verified struct {
	backfill.Verification
	Signature *seal.Signature `json:"signature,omitempty" doc:"Over an object with one member, verification, that is all of this but the signature: as it stands in a certificate."`
}

// verification is what is signed.
type verification struct {
	V backfill.Verification `json:"verification"`
}

func (s *Server) verifyBackfill(ctx context.Context, in *UserPath) (*body[Verified], error) {
	v, err := lookAt(ctx, s, in, LooksAPI.Verify)
	if err != nil {
		return nil, err
	}
	out := Verified{Verification: v.Body}
	if s.cfg.Audits != nil {
		if out.Signature, err = s.cfg.Audits.Sign(ctx, verification{v.Body}, "verification"); err != nil {
			return nil, fmt.Errorf("verifying %s: %w", in.Address, err)
		}
	}
	return &body[Verified]{out}, nil
}

func (s *Server) planBackfill(ctx context.Context, in *UserPath) (*body[backfill.Plan], error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	if err := s.oursToMove(ctx, key); err != nil {
		return nil, err
	}
	return lookAt(ctx, s, in, LooksAPI.Plan)
}

func (s *Server) inventoryBackfill(ctx context.Context, in *UserPath) (*body[backfill.Inventory], error) {
	return lookAt(ctx, s, in, LooksAPI.Inventory)
}

// lookAt asks the conductor for something that changes nothing.
func lookAt[T any](ctx context.Context, s *Server, in *UserPath, look func(LooksAPI, context.Context, string) (T, error)) (*body[T], error) {
	key, err := mailboxKey(in.Address)
	if err != nil {
		return nil, err
	}
	c, err := s.conductor()
	if err != nil {
		return nil, err
	}
	out, err := look(c, ctx, key)
	if err != nil {
		return nil, conductorError(err)
	}
	return &body[T]{out}, nil
}
