package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"crossfade/cutover"
	"crossfade/router"
)

// WavesAPI is what the API asks of the conductor about groups of users. What is
// said is durable when a method returns.
type WavesAPI interface {
	Waves(ctx context.Context, name string) ([]cutover.Wave, error)
	SetWave(ctx context.Context, name string, notBefore time.Time) (cutover.Wave, error)
	ApproveWave(ctx context.Context, name, by string) (cutover.Wave, error)
	ResumeFlips(ctx context.Context, wave string) (bool, error)
	PlanMoves(ctx context.Context, users []string, wave string) (cutover.MovePlan, error)
	Report(ctx context.Context, wave string) (cutover.MoveReport, error)
}

// WaveList lists waves.
type WaveList struct {
	Waves []cutover.Wave `json:"waves" doc:"In the order in which they are copied."`
}

// WaveChange changes a wave. Fields that are left out stay as they are.
type WaveChange struct {
	NotBefore *string `json:"not_before,omitempty" doc:"RFC 3339 time before which nobody of the wave flips; the empty string for none. One in the past is none."`
	Reason    string  `json:"reason,omitempty" maxLength:"1000"`
}

// WaveChanged is a wave after a change.
type WaveChanged struct {
	cutover.Wave
	Note string `json:"note,omitempty" doc:"What is worth knowing about the change."`
}

// MovePlanRequest names whom a plan is about.
type MovePlanRequest struct {
	Users []string `json:"users,omitempty" maxItems:"100000" doc:"Addresses, each once."`
	Wave  string   `json:"wave,omitempty" maxLength:"256"`
}

// WavePath names a wave in a path.
type WavePath struct {
	Name string `path:"name" maxLength:"256"`
}

type waveChangeInput struct {
	WavePath
	Body WaveChange
}

type waveApproveInput struct {
	WavePath
	Body *PauseRequest
}

type movePlanInput struct {
	Body MovePlanRequest
}

type reportQuery struct {
	Wave string `query:"wave" maxLength:"256" doc:"Only users of this wave."`
}

func (s *Server) registerWaves() {
	register(s, op{method: http.MethodGet, path: "/v1/waves", id: "list-waves", tag: tagMoves, role: RoleRead, long: true,
		summary: "The waves that users have: members, time, approval, state, and why one stands still"}, s.listWaves)
	register(s, op{method: http.MethodGet, path: "/v1/waves/{name}", id: "get-wave", tag: tagMoves, role: RoleRead, long: true,
		summary: "One wave"}, s.getWave)
	register(s, op{method: http.MethodPatch, path: "/v1/waves/{name}", id: "change-wave", tag: tagMoves, role: RoleOperate, long: true,
		summary: "Set the time before which nobody of a wave flips"}, s.changeWave)
	register(s, op{method: http.MethodPost, path: "/v1/waves/{name}/approve", id: "approve-wave", tag: tagMoves, role: RoleOperate, long: true,
		summary: "Let the users of a wave flip as they are ready", detail: "Starts no copies: POST /v1/waves/{name}/cutover does, and approves too."}, s.approveWave)
	register(s, op{method: http.MethodPost, path: "/v1/cutover:pause", id: "pause-cutover", tag: tagMoves, role: RoleOperate,
		summary: "Hold nobody until it is resumed: of all users, or of a wave",
		detail:  "Users are copied on and kept in sync. Who is held is carried to his end. Nobody is held after the answer, on any node."}, s.pauseCutover)
	register(s, op{method: http.MethodPost, path: "/v1/cutover:resume", id: "resume-cutover", tag: tagMoves, role: RoleOperate,
		summary: "End a pause of flips, also one that a wave made by itself", detail: "Flips that failed before are tried at once."}, s.resumeCutover)
	register(s, op{method: http.MethodPost, path: "/v1/cutover:plan", id: "plan-cutover", tag: tagMoves, role: RoleOperate, long: true,
		summary: "What a start would do: who goes, in which order, when, and who cannot and why",
		detail:  "Changes nothing, and looks into no mailbox: GET /v1/backfill/{address}/plan does."}, s.planCutover)
	register(s, op{method: http.MethodGet, path: "/v1/cutover/report", id: "report-cutover", tag: tagMoves, role: RoleRead, long: true,
		summary: "How moves went, user by user and added up", detail: "Made of the history and of what is kept, so it outlives a restart."}, s.reportCutover)
}

func (s *Server) waves() (WavesAPI, error) {
	if s.cfg.Waves != nil && s.cfg.Conductor != nil {
		return s.cfg.Waves, nil
	}
	_, err := s.conductor()
	if err == nil {
		err = refused(ProblemNoBackfill, "this relay knows no waves", "see the configuration of the backends")
	}
	return nil, err
}

// waveError makes a problem of what the conductor says of waves.
func waveError(name string, err error) error {
	switch {
	case errors.Is(err, cutover.ErrNoWave):
		return &Problem{Type: ProblemNoUser, Title: "no such wave", Status: http.StatusNotFound,
			Detail: fmt.Sprintf("no user has the wave %q", name), Hint: "GET /v1/waves lists them; PATCH of a user and import set them"}
	case errors.Is(err, cutover.ErrTwice):
		return invalid("body.users", "%v", err)
	}
	return err
}

func (s *Server) listWaves(ctx context.Context, _ *struct{}) (*body[WaveList], error) {
	c, err := s.waves()
	if err != nil {
		return nil, err
	}
	out, err := c.Waves(ctx, "")
	if err != nil {
		return nil, err
	}
	return &body[WaveList]{WaveList{Waves: append([]cutover.Wave{}, out...)}}, nil
}

func (s *Server) getWave(ctx context.Context, in *WavePath) (*body[cutover.Wave], error) {
	c, err := s.waves()
	if err != nil {
		return nil, err
	}
	out, err := c.Waves(ctx, in.Name)
	if err != nil {
		return nil, waveError(in.Name, err)
	}
	return &body[cutover.Wave]{out[0]}, nil
}

func (s *Server) changeWave(ctx context.Context, in *waveChangeInput) (*body[WaveChanged], error) {
	if in.Body.NotBefore == nil {
		return nil, invalid("body", "nothing is said to change: give not_before")
	}
	var at time.Time
	if *in.Body.NotBefore != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, *in.Body.NotBefore); err != nil {
			return nil, invalid("body.not_before", "%q is no RFC 3339 time, such as 2026-03-31T20:00:00+02:00", *in.Body.NotBefore)
		}
	}
	out := WaveChanged{}
	if !at.IsZero() && time.Until(at) <= 0 {
		out.Note = "the time is over already: it keeps nobody waiting"
	}
	rec := Record{Action: "change-wave", Object: in.Name, Reason: in.Body.Reason, Detail: map[string]any{"not_before": *in.Body.NotBefore}}
	var err error
	out.Wave, err = s.sayOfWave(ctx, rec, func(ctx context.Context, c WavesAPI) (cutover.Wave, error) { return c.SetWave(ctx, in.Name, at) })
	if err != nil {
		return nil, err
	}
	return &body[WaveChanged]{out}, nil
}

func (s *Server) approveWave(ctx context.Context, in *waveApproveInput) (*body[cutover.Wave], error) {
	rec := Record{Action: "approve-wave", Object: in.Name}
	if in.Body != nil {
		rec.Reason = in.Body.Reason
	}
	out, err := s.sayOfWave(ctx, rec, func(ctx context.Context, c WavesAPI) (cutover.Wave, error) {
		return c.ApproveWave(ctx, in.Name, callerOf(ctx).name)
	})
	if err != nil {
		return nil, err
	}
	return &body[cutover.Wave]{out}, nil
}

// sayOfWave makes a change to a wave, under the eyes of the audit log.
func (s *Server) sayOfWave(ctx context.Context, rec Record, say func(context.Context, WavesAPI) (cutover.Wave, error)) (out cutover.Wave, err error) {
	c, err := s.waves()
	if err != nil {
		return out, err
	}
	err = s.change(ctx, rec, func(ctx context.Context, _ *Record) (err error) {
		out, err = say(ctx, c)
		return waveError(rec.Object, err)
	})
	if err == nil {
		s.events.Publish(EventWave, out)
	}
	return out, err
}

func (s *Server) pauseCutover(ctx context.Context, in *pauseInput) (*body[BackfillPauses], error) {
	return s.switchBackfill(ctx, "pause-cutover", in.Body, func(ctx context.Context, c ConductorAPI, p BackfillPause) error {
		return conductorError(c.Pause(ctx, cutover.Pause{Wave: p.Wave, By: callerOf(ctx).name, Reason: p.Reason, Flips: true}))
	})
}

func (s *Server) resumeCutover(ctx context.Context, in *pauseInput) (*body[BackfillPauses], error) {
	w, err := s.waves()
	if err != nil {
		return nil, err
	}
	return s.switchBackfill(ctx, "resume-cutover", in.Body, func(ctx context.Context, _ ConductorAPI, p BackfillPause) error {
		known, err := w.ResumeFlips(ctx, p.Wave)
		if err == nil && !known {
			return notPaused("flips are", p.Wave)
		}
		return conductorError(err)
	})
}

func (s *Server) planCutover(ctx context.Context, in *movePlanInput) (*body[cutover.MovePlan], error) {
	c, err := s.waves()
	if err != nil {
		return nil, err
	}
	if len(in.Body.Users) == 0 && in.Body.Wave == "" {
		return nil, invalid("body", "nobody is named: give users or wave")
	}
	out, err := c.PlanMoves(ctx, in.Body.Users, in.Body.Wave)
	if err != nil {
		return nil, waveError(in.Body.Wave, err)
	}
	for i := range out.Users {
		m := &out.Users[i]
		if err := s.oursToMove(ctx, m.User); err != nil && !m.Cannot && errors.Is(err, router.ErrNotOurs) {
			m.WhyNot, m.Cannot = append(m.WhyNot, err.Error()), true
		}
	}
	out.Forecast(time.Now())
	return &body[cutover.MovePlan]{out}, nil
}

func (s *Server) reportCutover(ctx context.Context, in *reportQuery) (*body[cutover.MoveReport], error) {
	c, err := s.waves()
	if err != nil {
		return nil, err
	}
	out, err := c.Report(ctx, in.Wave)
	if err != nil {
		return nil, waveError(in.Wave, err)
	}
	return &body[cutover.MoveReport]{out}, nil
}

// Waves lists the waves that users have.
func (c *Client) Waves(ctx context.Context) ([]cutover.Wave, error) {
	var out WaveList
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/waves"}, nil, &out)
	return out.Waves, err
}

// Wave tells of one wave.
func (c *Client) Wave(ctx context.Context, name string) (cutover.Wave, error) {
	var out cutover.Wave
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/waves/" + part(name)}, nil, &out)
	return out, err
}

// ChangeWave changes a wave.
func (c *Client) ChangeWave(ctx context.Context, name string, w WaveChange) (WaveChanged, error) {
	var out WaveChanged
	err := c.do(ctx, call{method: http.MethodPatch, path: "/v1/waves/" + part(name)}, w, &out)
	return out, err
}

// ApproveWave lets the users of a wave flip as they are ready.
func (c *Client) ApproveWave(ctx context.Context, name, reason string) (cutover.Wave, error) {
	var out cutover.Wave
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/waves/" + part(name) + "/approve"}, PauseRequest{Reason: reason}, &out)
	return out, err
}

// PauseCutover has nobody held any more, of all users or of a wave, and tells
// what is paused then.
func (c *Client) PauseCutover(ctx context.Context, p BackfillPause) ([]cutover.Pause, error) {
	var out BackfillPauses
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/cutover:pause"}, p, &out)
	return out.Paused, err
}

// ResumeCutover ends what PauseCutover began, or a wave by itself.
func (c *Client) ResumeCutover(ctx context.Context, wave string) ([]cutover.Pause, error) {
	var out BackfillPauses
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/cutover:resume"}, BackfillPause{Wave: wave}, &out)
	return out.Paused, err
}

// PlanCutover says what a start of users or of a wave would do.
func (c *Client) PlanCutover(ctx context.Context, users []string, wave string) (cutover.MovePlan, error) {
	var out cutover.MovePlan
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/cutover:plan"}, MovePlanRequest{Users: users, Wave: wave}, &out)
	return out, err
}

// CutoverReport tells how the moves of a wave went, or of everybody.
func (c *Client) CutoverReport(ctx context.Context, wave string) (cutover.MoveReport, error) {
	var out cutover.MoveReport
	q := url.Values{}
	set(q, "wave", wave)
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/cutover/report", query: q}, nil, &out)
	return out, err
}
