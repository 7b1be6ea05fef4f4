package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"crossfade/admin"
	"crossfade/backfill"
	"crossfade/config"
	"crossfade/journal"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/disk"
	"crossfade/store/redis"
)

// store is what the parts ask of either store.
type store interface {
	queue.Store
	router.Table
	backfill.Ledger
	journal.Outbox
	// Failed is closed when the store stopped itself; Err says why.
	Failed() <-chan struct{}
	Err() error
	Close() error
}

// shared tells whether the store is one that other nodes may use too.
func shared(cfg *config.Config) bool { return strings.Contains(cfg.Store, "://") }

// openStore opens the store of the configuration. It waits for a Redis that
// does not answer yet, until ctx ends.
func (d *Daemon) openStore(ctx context.Context) (err error) {
	if shared(d.cfg) {
		return d.openRedis(ctx)
	}
	s, err := disk.Open(d.cfg.Store, disk.Options{
		MaxBytes: int64(d.cfg.Queue.MaxSize), MinFree: minFree(d.cfg), Logger: d.log, CrashPoint: d.opts.CrashPoint,
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", d.cfg.Store, err)
	}
	d.store = s
	for _, doubt := range s.InDoubt() {
		d.log.Warn("a delivery was under way when the process before died: its mailbox is asked where there is IMAP, and it is tried again",
			"id", doubt.ID, "recipient", doubt.N, "route", doubt.Route, "final_dot_allowed", doubt.Sending)
	}
	return nil
}

func (d *Daemon) openRedis(ctx context.Context) error {
	server, err := DialRedis(d.cfg, d.log)
	if err != nil {
		return fmt.Errorf("store %s: %w", d.cfg.Store, err)
	}
	w, err := d.waitingRoom()
	if err != nil {
		server.Close()
		return err
	}
	defer w.close()
	s, err := redis.Open(ctx, server, redis.Options{
		Node: d.cfg.Node, Info: d.info(), MaxBytes: int64(d.cfg.Queue.MaxSize), Logger: d.log, CrashPoint: d.opts.CrashPoint,
		Waiting: w.tell,
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", d.cfg.Store, err)
	}
	d.store = s
	return nil
}

// DialRedis makes the way to the Redis of a configuration; nothing is sent yet.
func DialRedis(cfg *config.Config, log *slog.Logger) (*redis.Server, error) {
	r := cfg.Redis
	password, err := r.Password()
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	conf, err := redisTLS(cfg)
	if err != nil {
		return nil, err
	}
	return redis.Dial(cfg.Store, redis.DialOptions{
		Username: r.Username, Password: password.Reveal(), TLS: conf, Queue: r.Queue, Replicas: r.Replicas,
		Service: r.Durability == "service", Logger: log,
	})
}

// redisTLS is the configuration of TLS towards Redis; nil without it.
func redisTLS(cfg *config.Config) (*tls.Config, error) {
	if !strings.HasPrefix(cfg.Store, "rediss") {
		return nil, nil
	}
	r := cfg.Redis
	t := &tls.Config{ServerName: r.ServerName, MinVersion: tls.VersionTLS12}
	if r.CA != "" {
		pem, err := os.ReadFile(r.CA)
		if err != nil {
			return nil, fmt.Errorf("redis.ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis.ca: %s holds no certificate in PEM", r.CA)
		}
	}
	if r.Cert != "" {
		c, err := tls.LoadX509KeyPair(r.Cert, r.Key)
		if err != nil {
			return nil, fmt.Errorf("redis.cert: %w", err)
		}
		t.Certificates = []tls.Certificate{c}
	}
	return t, nil
}

// waitingRoom answers on the admin address while the store is being waited
// for: alive, and not ready.
type waitingRoom struct {
	srv  *http.Server
	done chan struct{}
	once sync.Once

	mu  sync.Mutex
	why error
}

// tell notes what is waited for.
func (w *waitingRoom) tell(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.why = err
}

// answer is what readiness is answered, as the API does it later.
func (w *waitingRoom) answer() admin.Readiness {
	w.mu.Lock()
	defer w.mu.Unlock()
	why := "waiting for the store"
	if w.why != nil {
		why += ": " + w.why.Error()
	}
	return admin.Readiness{Reasons: []string{why}}
}

func (d *Daemon) waitingRoom() (*waitingRoom, error) {
	l, err := d.listenAdmin()
	if err != nil {
		return nil, err
	}
	if conf := d.adminTLS(); conf != nil {
		l = tls.NewListener(l, conf)
	}
	room := &waitingRoom{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(room.answer())
	})
	w := room
	w.srv, w.done = &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 32 << 10}, make(chan struct{})
	go func() {
		defer close(w.done)
		if err := w.srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Warn("the admin address does not answer while the store is waited for", "err", err)
		}
	}()
	return w, nil
}

func (w *waitingRoom) close() {
	w.once.Do(func() {
		_ = w.srv.Close()
		<-w.done
	})
}

// auditPath is where the audit log lies.
func auditPath(cfg *config.Config) string {
	switch {
	case cfg.Admin.AuditFile != "":
		return cfg.Admin.AuditFile
	case shared(cfg):
		// Nodes that share a configuration's directory each have their own.
		name := "audit.jsonl"
		if cfg.Node != "" {
			name = "audit." + url.PathEscape(cfg.Node) + ".jsonl"
		}
		return filepath.Join(filepath.Dir(cfg.Admin.TokenFile), name)
	}
	return filepath.Join(cfg.Store, "audit.jsonl")
}
