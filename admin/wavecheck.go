package admin

import (
	"context"
	"fmt"
	"slices"

	"crossfade/cutover"
	"crossfade/router"
)

// underWay tells whether users of a wave are being moved, or may be any moment.
func underWay(w cutover.Wave) bool {
	return w.State == cutover.WaveRunning || w.State == cutover.WavePaused || w.State == cutover.WaveApproved
}

// leavesWave says why a user may not be put into another wave; empty: he may. A
// user is in one wave: taking him out of one that moves him would change under the
// operator's eyes what he approved.
func leavesWave(u router.User, to string) string {
	onHisWay := u.State == router.StateSyncing || u.State == router.StateReady || u.State == router.StateCutover || u.State == router.StateRollback
	if u.Wave == "" || u.Wave == to || !onHisWay {
		return ""
	}
	return fmt.Sprintf("%s is %s in the wave %s, which is under way: a user is in one wave; take him back first (cutover cancel), or let him arrive", u.Address, u.State, u.Wave)
}

// checkWave refuses to take a user out of a wave that moves him.
func (s *Server) checkWave(ctx context.Context, u router.User, to string) error {
	why := leavesWave(u, to)
	if why == "" || s.cfg.Waves == nil {
		return nil
	}
	waves, err := s.cfg.Waves.Waves(ctx, u.Wave)
	if err != nil {
		return fmt.Errorf("looking at the wave %s: %w", u.Wave, err)
	}
	if len(waves) > 0 && underWay(waves[0]) {
		return refused(ProblemRefused, why, "GET /v1/waves shows the waves; nothing was changed")
	}
	return nil
}

// checkWaves is checkWave for the users of an import. What is wrong is added to
// out.Errors, and taken out when keepGoing is set.
func (s *Server) checkWaves(ctx context.Context, users []router.User, keepGoing bool, out *Imported) ([]router.User, error) {
	if s.cfg.Waves == nil || !slices.ContainsFunc(users, func(u router.User) bool { return u.Wave != "" }) {
		return users, nil
	}
	waves, err := s.cfg.Waves.Waves(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("looking at the waves: %w", err)
	}
	to := make(map[string]string, len(users))
	for _, u := range users {
		if u.Wave != "" { // an empty field leaves the wave as it is
			to[u.Address] = u.Wave
		}
	}
	bad := map[string]bool{}
	for _, w := range waves {
		if !underWay(w) {
			continue
		}
		err := s.eachOfWave(ctx, w.Name, func(u router.User) {
			if want, named := to[u.Address]; named {
				if why := leavesWave(u, want); why != "" {
					bad[u.Address] = true
					out.Errors = append(out.Errors, FieldError{Where: "wave", Message: why})
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	if keepGoing {
		users = slices.DeleteFunc(users, func(u router.User) bool { return bad[u.Address] })
	}
	return users, nil
}

// eachOfWave calls each for the users of a wave.
func (s *Server) eachOfWave(ctx context.Context, wave string, each func(router.User)) error {
	cursor := ""
	for {
		users, next, err := s.cfg.Users.Users(ctx, router.Filter{Wave: wave}, cursor, 500)
		if err != nil {
			return fmt.Errorf("listing the wave %s: %w", wave, err)
		}
		for _, u := range users {
			each(u)
		}
		if cursor = next; cursor == "" {
			return nil
		}
	}
}
