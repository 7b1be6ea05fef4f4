package admin

import (
	"context"
	"fmt"
	"net/http"

	"crossfade/cutover"
)

// BackfillPause says whose copying stops, or goes on.
type BackfillPause struct {
	Wave   string `json:"wave,omitempty" maxLength:"256" doc:"The users of this wave; without it everybody."`
	Reason string `json:"reason,omitempty" maxLength:"1000"`
}

// BackfillPauses lists what is paused.
type BackfillPauses struct {
	Paused []cutover.Pause `json:"paused"`
}

type pauseInput struct {
	Body *BackfillPause
}

func (s *Server) registerPause() {
	register(s, op{method: http.MethodPost, path: "/v1/backfill:pause", id: "pause-backfill", tag: tagMoves, role: RoleOperate,
		summary: "Copy no mail until it is resumed: for everybody, or for a wave",
		detail:  "Lasts over restarts and holds on all nodes. Who is held is carried to his end, and the pass after a flip is made."}, s.pauseBackfill)
	register(s, op{method: http.MethodPost, path: "/v1/backfill:resume", id: "resume-backfill", tag: tagMoves, role: RoleOperate,
		summary: "End a pause: that of everybody, or that of a wave"}, s.resumeBackfill)
}

func (s *Server) pauseBackfill(ctx context.Context, in *pauseInput) (*body[BackfillPauses], error) {
	return s.switchBackfill(ctx, "pause-backfill", in.Body, func(ctx context.Context, c ConductorAPI, p BackfillPause) error {
		return conductorError(c.Pause(ctx, cutover.Pause{Wave: p.Wave, By: callerOf(ctx).name, Reason: p.Reason}))
	})
}

func (s *Server) resumeBackfill(ctx context.Context, in *pauseInput) (*body[BackfillPauses], error) {
	return s.switchBackfill(ctx, "resume-backfill", in.Body, func(ctx context.Context, c ConductorAPI, p BackfillPause) error {
		known, err := c.Resume(ctx, p.Wave)
		if err == nil && !known {
			return notPaused("the backfill is", p.Wave)
		}
		return conductorError(err)
	})
}

// notPaused says that there is no pause to end.
func notPaused(what, wave string) error {
	text := what + " not paused for everybody"
	if wave != "" {
		text = fmt.Sprintf("the wave %q: %s not paused", wave, what)
	}
	return refused(ProblemRefused, text,
		"GET /v1/backfill shows what is paused; a pause is resumed as it was made: copies by `backfill resume`, flips by `cutover resume`")
}

func (s *Server) switchBackfill(ctx context.Context, action string, b *BackfillPause, do func(context.Context, ConductorAPI, BackfillPause) error) (*body[BackfillPauses], error) {
	c, err := s.conductor()
	if err != nil {
		return nil, err
	}
	var p BackfillPause
	if b != nil {
		p = *b
	}
	rec := Record{Action: action, Object: p.Wave, Reason: p.Reason}
	if err := s.change(ctx, rec, func(ctx context.Context, _ *Record) error { return do(ctx, c, p) }); err != nil {
		return nil, err
	}
	return &body[BackfillPauses]{BackfillPauses{Paused: append([]cutover.Pause{}, c.Pauses()...)}}, nil
}

// PauseBackfill stops the copying for everybody or for a wave, and tells what is
// paused then.
func (c *Client) PauseBackfill(ctx context.Context, p BackfillPause) ([]cutover.Pause, error) {
	var out BackfillPauses
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/backfill:pause"}, p, &out)
	return out.Paused, err
}

// ResumeBackfill ends what PauseBackfill began.
func (c *Client) ResumeBackfill(ctx context.Context, wave string) ([]cutover.Pause, error) {
	var out BackfillPauses
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/backfill:resume"}, BackfillPause{Wave: wave}, &out)
	return out.Paused, err
}
