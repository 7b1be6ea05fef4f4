package admin

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"crossfade/mail"
	"crossfade/router"
)

const tagUsers = "users"

// UserPage is a page of the table of users.
type UserPage struct {
	Users []router.User `json:"users"`
	Next  string        `json:"next,omitempty" doc:"Cursor of the next page; empty at the end."`
}

// UserPatch changes a user. Fields that are left out stay as they are.
type UserPatch struct {
	Epoch     *uint64         `json:"epoch,omitempty" doc:"The epoch that you saw; 409 when it is another by now."`
	Reason    string          `json:"reason,omitempty" maxLength:"1000"`
	Wave      *string         `json:"wave,omitempty" maxLength:"256"`
	NotBefore *string         `json:"not_before,omitempty" doc:"RFC 3339 time; the empty string for none."`
	Deliver   *router.Deliver `json:"deliver,omitempty" enum:",both" doc:"both: the side that is not read gets a copy; the empty string: one."`
	OldLogin  *string         `json:"old_login,omitempty" maxLength:"256"`
	NewLogin  *string         `json:"new_login,omitempty" maxLength:"256"`
	Targets   *[]string       `json:"targets,omitempty" maxItems:"20000" doc:"Of an alias or a group."`
}

// UserPath names a user in a path.
type UserPath struct {
	Address string `path:"address" doc:"Address of the user, or @domain for a domain alias." maxLength:"1000"`
}

// PageQuery asks for a page of a list.
type PageQuery struct {
	Cursor string `query:"cursor" doc:"next of the page before." maxLength:"4096"`
	Limit  int    `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

type usersQuery struct {
	State router.State `query:"state" enum:"old,syncing,ready,cutover,new,done,rollback"`
	Wave  string       `query:"wave" maxLength:"256"`
	Kind  router.Kind  `query:"kind" enum:"mailbox,alias,group"`
	Q     string       `query:"q" doc:"Part of the address." maxLength:"256"`
	PageQuery
}

type body[T any] struct{ Body T }

func (s *Server) registerUsers() {
	register(s, op{method: http.MethodGet, path: "/v1/users", id: "list-users", tag: tagUsers, role: RoleRead,
		summary: "List users, in the order of addresses"}, s.listUsers)
	register(s, op{method: http.MethodGet, path: "/v1/users/{address}", id: "get-user", tag: tagUsers, role: RoleRead,
		summary: "One user"}, s.getUser)
	register(s, op{method: http.MethodPatch, path: "/v1/users/{address}", id: "change-user", tag: tagUsers, role: RoleOperate,
		summary: "Change what is known of a user, but not the state"}, s.patchUser)
	register(s, op{method: http.MethodDelete, path: "/v1/users/{address}", id: "delete-user", tag: tagUsers, role: RoleAdmin, status: http.StatusNoContent,
		summary: "Take a user out of the table", detail: "The history stays. Mail for the address then goes as routing.unknown says."}, s.deleteUser)
}

func (s *Server) listUsers(ctx context.Context, in *usersQuery) (*body[UserPage], error) {
	f := router.Filter{State: in.State, Wave: in.Wave, Kind: in.Kind, Query: in.Q}
	users, next, err := s.cfg.Users.Users(ctx, f, in.Cursor, in.Limit)
	if err != nil {
		return nil, fmt.Errorf("listing users: %w", err)
	}
	if users == nil {
		users = []router.User{}
	}
	return &body[UserPage]{UserPage{Users: users, Next: next}}, nil
}

func (s *Server) getUser(ctx context.Context, in *UserPath) (*body[router.User], error) {
	u, err := s.user(ctx, in.Address)
	if err != nil {
		return nil, err
	}
	return &body[router.User]{u}, nil
}

// user reads the user whom a path names.
func (s *Server) user(ctx context.Context, address string) (router.User, error) {
	key, err := keyOf("path.address", address)
	if err != nil {
		return router.User{}, err
	}
	u, err := s.cfg.Users.User(ctx, key)
	if err != nil {
		return u, fmt.Errorf("reading %s: %w", key, err)
	}
	return u, nil
}

type patchInput struct {
	UserPath
	Body UserPatch
}

func (s *Server) patchUser(ctx context.Context, in *patchInput) (*body[router.User], error) {
	u, err := s.user(ctx, in.Address)
	if err != nil {
		return nil, err
	}
	if err := checkEpoch(u, in.Body.Epoch); err != nil {
		return nil, err
	}
	before := u
	if err := in.Body.apply(&u); err != nil {
		return nil, err
	}
	if err := s.checkWave(ctx, before, u.Wave); err != nil {
		return nil, err
	}
	if err := s.cfg.Router.CheckAliases(ctx, []router.User{u}); err != nil {
		return nil, invalid("body.targets", "%v", err)
	}
	var saved router.User
	rec := Record{Action: "change-user", Object: u.Address, Reason: in.Body.Reason, Detail: in.Body.detail()}
	err = s.change(ctx, rec, func(ctx context.Context, _ *Record) (err error) {
		c := router.Change{From: u.State, To: u.State, By: callerOf(ctx).name, Reason: in.Body.Reason}
		saved, _, err = s.cfg.Users.SetUser(ctx, u, c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("changing %s: %w", u.Address, err)
	}
	s.publishUser(ctx, saved, u.State, in.Body.Reason, false)
	return &body[router.User]{saved}, nil
}

func checkEpoch(u router.User, want *uint64) error {
	if want != nil && *want != u.Epoch {
		return &router.EpochError{User: u.Address, Have: u.Epoch, Want: *want}
	}
	return nil
}

// apply writes the fields that were given into u.
func (p UserPatch) apply(u *router.User) error {
	isMailbox := u.Kind == router.KindMailbox || u.Kind == ""
	if !isMailbox && (p.Deliver != nil || p.OldLogin != nil || p.NewLogin != nil || p.Wave != nil || p.NotBefore != nil) {
		return invalid("body", "%s is of the kind %s: it has targets, and nothing else that could be changed", u.Address, u.Kind)
	}
	if p.Targets != nil {
		targets, err := normalTargets(*p.Targets)
		if err != nil {
			return err
		}
		u.Targets = targets
	}
	if p.NotBefore != nil {
		u.NotBefore = time.Time{}
		if *p.NotBefore != "" {
			t, err := time.Parse(time.RFC3339, *p.NotBefore)
			if err != nil {
				return invalid("body.not_before", "%q is no RFC 3339 time, such as 2026-03-31T20:00:00+02:00", *p.NotBefore)
			}
			u.NotBefore = t.UTC()
		}
	}
	if p.Deliver != nil {
		u.Deliver = *p.Deliver
	}
	set := func(to *string, from *string) {
		if from != nil {
			*to = *from
		}
	}
	set(&u.Wave, p.Wave)
	set(&u.OldLogin, p.OldLogin)
	set(&u.NewLogin, p.NewLogin)
	return nil
}

func normalTargets(given []string) ([]string, error) {
	targets := make([]string, 0, len(given))
	for i, t := range given {
		key, err := keyOf(fmt.Sprintf("body.targets[%d]", i), t)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(targets, key) {
			targets = append(targets, key)
		}
	}
	return targets, nil
}

// detail is what the audit log keeps of a patch.
func (p UserPatch) detail() map[string]any {
	d := map[string]any{}
	put := func(name string, v *string) {
		if v != nil {
			d[name] = *v
		}
	}
	put("wave", p.Wave)
	put("not_before", p.NotBefore)
	put("deliver", (*string)(p.Deliver))
	put("old_login", p.OldLogin)
	put("new_login", p.NewLogin)
	if p.Targets != nil {
		d["targets"] = len(*p.Targets)
	}
	return d
}

// publishUser tells the event streams that a user changed.
func (s *Server) publishUser(ctx context.Context, u router.User, from router.State, reason string, forced bool) {
	s.events.Publish(EventUser, router.Change{User: u.Address, Epoch: u.Epoch, From: from, To: u.State,
		By: callerOf(ctx).name, Reason: reason, Forced: forced, At: time.Now()})
}

type deleteUserInput struct {
	UserPath
	Epoch  uint64 `query:"epoch" doc:"The epoch that you saw; 409 when it is another by now."`
	Reason string `query:"reason" maxLength:"1000"`
	Force  bool   `query:"force" doc:"Needed for a mailbox that is not old: its mail would go to old again, or be refused."`
}

func (s *Server) deleteUser(ctx context.Context, in *deleteUserInput) (*struct{}, error) {
	u, err := s.user(ctx, in.Address)
	if err != nil {
		return nil, err
	}
	if in.Epoch != 0 {
		if err := checkEpoch(u, &in.Epoch); err != nil {
			return nil, err
		}
	}
	isMailbox := u.Kind == router.KindMailbox || u.Kind == ""
	if isMailbox && u.State != router.StateOld && u.State != "" && !in.Force {
		return nil, refused(ProblemNeedsForce, fmt.Sprintf("%s is %s: without the line in the table, mail would go to %s again, or be refused", u.Address, u.State, mail.Old),
			"set the user to old first, or say force=true")
	}
	rec := Record{Action: "delete-user", Object: u.Address, Reason: in.Reason, Detail: map[string]any{"state": u.State, "epoch": u.Epoch}}
	err = s.change(ctx, rec, func(ctx context.Context, _ *Record) error {
		c := router.Change{From: u.State, By: callerOf(ctx).name, Reason: in.Reason, Forced: in.Force}
		return s.cfg.Users.DeleteUser(ctx, u.Address, u.Epoch, c)
	})
	if err != nil {
		return nil, fmt.Errorf("deleting %s: %w", u.Address, err)
	}
	s.events.Publish(EventUser, router.Change{User: u.Address, Epoch: u.Epoch, From: u.State, By: callerOf(ctx).name, Reason: in.Reason, At: time.Now()})
	return nil, nil
}
