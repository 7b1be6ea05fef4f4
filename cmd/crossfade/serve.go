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

	"crossfade/config"
	"crossfade/internal/daemon"
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
	read := func() (*config.Config, error) { return config.Load(a.flags.Config) }
	d, err := daemon.New(cfg, log, daemon.Options{Version: readBuild().Version, Reload: read})
	if err != nil {
		return usageError(err, "crossfade check -c "+a.flags.Config)
	}
	go reloadOnHangup(a.ctx, d, read, log)
	return d.Run(a.ctx)
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
func reloadOnHangup(ctx context.Context, d *daemon.Daemon, read func() (*config.Config, error), log *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	select {
	case <-ctx.Done():
		return
	case <-d.Started():
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		cfg, err := read()
		if err == nil {
			_, err = d.Reload(ctx, cfg)
		}
		if err != nil {
			log.Error("reload: the running configuration stays", "err", err)
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
