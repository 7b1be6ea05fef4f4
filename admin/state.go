package admin

import (
	"context"
	"fmt"
	"net/http"

	"crossfade/router"
)

// StateChange sets a user's state by hand.
type StateChange struct {
	State  router.State `json:"state" enum:"old,syncing,ready,cutover,new,done,rollback"`
	Reason string       `json:"reason,omitempty" maxLength:"1000"`
	Epoch  *uint64      `json:"epoch,omitempty" doc:"The epoch that you saw; 409 when it is another by now. Left out: whatever it is."`
	Force  bool         `json:"force,omitempty" doc:"Allows what the conductor alone may do, and to skip the copy."`
}

// StateChanged is a user after the change.
type StateChanged struct {
	User router.User `json:"user"`
	Busy int         `json:"busy" doc:"Deliveries that may still reach a mailbox as the state was before; the change is complete when it is 0."`
}

type stateInput struct {
	UserPath
	Body StateChange
}

type historyInput struct {
	UserPath
	Limit int `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

// UserHistory lists the changes of a user, newest first.
type UserHistory struct {
	Changes []router.Change `json:"changes"`
}

func (s *Server) registerState() {
	register(s, op{method: http.MethodPut, path: "/v1/users/{address}/state", id: "set-state", tag: tagUsers, role: RoleOperate,
		summary: "Set a user's state by hand",
		detail:  "Nothing is copied: to move a user with his mail, start a cutover. 409 on a wrong epoch and where the table of states has no such way; force allows more."}, s.setState)
	register(s, op{method: http.MethodGet, path: "/v1/users/{address}/history", id: "get-history", tag: tagUsers, role: RoleRead,
		summary: "The changes of a user, newest first"}, s.history)
}

func (s *Server) setState(ctx context.Context, in *stateInput) (*body[StateChanged], error) {
	addr, err := addressOf("path.address", in.Address)
	if err != nil {
		return nil, err
	}
	b := in.Body
	if b.State.Held() && !b.Force {
		return nil, &Problem{Type: ProblemNeedsForce, Title: "only with force", Status: http.StatusConflict,
			Detail: fmt.Sprintf("%s holds the user's mail until somebody ends it: the conductor sets it when it moves a user", b.State),
			Hint:   "start a cutover to move a user with his mail; force holds the mail until you set another state"}
	}
	var out StateChanged
	rec := Record{Action: "set-state", Object: addr.Key(), Reason: b.Reason, Detail: map[string]any{"state": b.State, "force": b.Force}}
	from := router.State("")
	if u, err := s.cfg.Users.User(ctx, addr.Key()); err == nil {
		from = u.State
	}
	if from == router.StateNew && b.State == router.StateDone && !b.Force {
		if err := s.mayBeDone(ctx, addr.Key()); err != nil {
			return nil, err
		}
	}
	err = s.change(ctx, rec, func(ctx context.Context, r *Record) (err error) {
		req := router.SetRequest{By: callerOf(ctx).name, Reason: b.Reason, Epoch: b.Epoch, Force: b.Force}
		out.User, out.Busy, err = s.cfg.Router.SetState(ctx, addr, b.State, req)
		if err == nil {
			r.Detail["epoch"] = out.User.Epoch
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.publishUser(ctx, out.User, from, b.Reason, b.Force)
	return &body[StateChanged]{out}, nil
}

func (s *Server) history(ctx context.Context, in *historyInput) (*body[UserHistory], error) {
	key, err := keyOf("path.address", in.Address)
	if err != nil {
		return nil, err
	}
	changes, err := s.cfg.Users.History(ctx, key, in.Limit)
	if err != nil {
		return nil, fmt.Errorf("reading the history of %s: %w", key, err)
	}
	if len(changes) == 0 { // tell a user without changes from a spelling mistake
		if _, err := s.user(ctx, key); err != nil {
			return nil, err
		}
		changes = []router.Change{}
	}
	return &body[UserHistory]{UserHistory{Changes: changes}}, nil
}
