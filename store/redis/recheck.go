package redis

import (
	"context"
	"fmt"
	"time"
)

// recheck looks whether Redis still is what a promise can hang on: the same
// server, a master, durable, followed by all replicas that could take over,
// with a schema that this build knows. It costs a round trip to each master and
// each sentinel, so it may be called each second; the settings are read again
// each minute and whenever another server answers. While it fails, Room and
// all writes that take something in say why, and mail on its way out goes on.
// An error that waiting does not mend has errRefused in it.
func (s *Store) recheck(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := s.server.hosts.refresh(ctx)
	if err == nil {
		err = s.server.adoptNow(ctx)
	}
	if ctx.Err() != nil && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		s.server.moved(ctx)
	}
	if s.ctx.Err() != nil {
		return s.ctx.Err() // the store is being closed
	}
	before := s.link.sick.found(err)
	switch {
	case err != nil && before == nil:
		s.log.Error("Redis cannot be relied on: no mail is accepted until it can", "err", err, "alarm", true)
	case err == nil && before != nil:
		s.log.Info("Redis can be relied on again", "before", before.Error())
	}
	if err != nil {
		return fmt.Errorf("look at Redis: %w", err)
	}
	return nil
}

// watch rechecks each second.
func (s *Store) watch() {
	for s.link.pause(s.ctx, time.Second) {
		_ = s.recheck(s.ctx) // it says itself what it finds
	}
}
