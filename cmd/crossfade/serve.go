package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"crossfade/config"
	"crossfade/internal/daemon"
	"crossfade/internal/systemd"
)

type serveCmd struct{}

// Run works until SIGINT or SIGTERM; SIGHUP reads the configuration again.
func (c *serveCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	log := logger(cfg.Log, a.stderr)
	for _, w := range cfg.Warnings() {
		log.Warn("configuration: " + w)
	}
	manager, err := systemd.FromEnv()
	if err != nil {
		return err
	}
	read := func() (*config.Config, error) { return config.Load(a.flags.Config) }
	d, err := daemon.New(cfg, log, daemon.Options{Version: readBuild().Version, Reload: read, Sockets: manager.Sockets()})
	if err != nil {
		return usageError(err, "crossfade check -c "+a.flags.Config)
	}
	s := &service{manager: manager, d: d, log: log}
	go s.reloadOnHangup(a.ctx, read)
	go s.tell(a.ctx)
	return d.Run(a.ctx)
}

// service is a running relay and the service manager that started it.
type service struct {
	manager *systemd.Manager
	d       *daemon.Daemon
	log     *slog.Logger
}

// startTime is what the manager is asked for, again and again, while a Redis is
// waited for.
const startTime = time.Minute

// tell keeps the service manager informed until ctx ends.
func (s *service) tell(ctx context.Context) {
	for started := false; !started; {
		s.notify(systemd.Extend(startTime))
		select {
		case <-ctx.Done():
			s.notify(systemd.Stopping)
			return
		case <-s.d.Started():
			started = true
		case <-time.After(startTime / 3):
		}
	}
	s.notify(systemd.Ready)
	var alive <-chan time.Time
	if every := s.manager.Watchdog(); every > 0 {
		tick := time.NewTicker(every / 3)
		defer tick.Stop()
		alive = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			s.notify(systemd.Stopping)
			return
		case <-alive:
			if s.d.Healthy() == nil {
				s.notify(systemd.Alive)
			}
		}
	}
}

func (s *service) notify(notices ...string) {
	if err := s.manager.Notify(notices...); err != nil {
		s.log.Warn("the service manager does not listen", "err", err)
	}
}

// config reads the file named by -c.
func (a *app) config() (*config.Config, error) {
	if a.flags.Config == "" {
		return nil, usageError(errors.New("no configuration file was given"), "use -c crossfade.yaml")
	}
	cfg, err := config.Load(a.flags.Config)
	if err != nil {
		return nil, usageError(err, "")
	}
	return cfg, nil
}

func logger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // cannot be: the configuration was checked
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// reloadOnHangup puts the file into force again at each SIGHUP. What is wrong
// with it is logged, and the running configuration stays.
func (s *service) reloadOnHangup(ctx context.Context, read func() (*config.Config, error)) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	select {
	case <-ctx.Done():
		return
	case <-s.d.Started():
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		s.notify(systemd.Reloading, fmt.Sprintf("MONOTONIC_USEC=%d", systemd.Monotonic()))
		cfg, err := read()
		if err == nil {
			_, err = s.d.Reload(ctx, cfg)
		}
		s.notify(systemd.Ready)
		if err != nil {
			s.log.Error("reload: the running configuration stays", "err", err)
		}
	}
}

type healthCmd struct{}

// Run asks the relay that -c describes whether it is ready; exit 1 says why
// not.
func (c *healthCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	r, err := client.Ready(a.ctx)
	if err != nil {
		return err
	}
	if !r.Ready {
		return fmt.Errorf("not ready: %v", r.Reasons)
	}
	fmt.Fprintln(a.stdout, "ready")
	return nil
}
