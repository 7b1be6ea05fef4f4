package admin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// RouterAPI is what the API asks of package router.
type RouterAPI interface {
	Explain(ctx context.Context, addr mail.Address) (router.Explanation, error)
	SetState(ctx context.Context, addr mail.Address, to router.State, req router.SetRequest) (router.User, int, error)
	CheckAliases(ctx context.Context, users []router.User) error
	Domains() []string       // ours, in normal form
	Ours(domain string) bool // domain in normal form
}

// BodyOpener streams the body of a queued message; see [queue.Deliverer].
type BodyOpener interface {
	Open(ctx context.Context, id mail.ID) (io.ReadCloser, error)
}

// ConductorAPI is what the API asks of the conductor.
type ConductorAPI interface {
	MovesAPI
	PausesAPI
	LooksAPI
	WindowAPI
}

// MovesAPI moves users. Start, Cancel and RunBackfill return when the request is
// durable; the work goes on by itself.
type MovesAPI interface {
	Start(ctx context.Context, req cutover.Request) error
	Cancel(ctx context.Context, user, by string) error
	Status() []cutover.Status
	StatusOf(user string) (cutover.Status, bool)
	RunBackfill(ctx context.Context, user, by string) error
}

// PausesAPI is the operator's switch of copies and flips.
type PausesAPI interface {
	Pause(ctx context.Context, p cutover.Pause) error
	Resume(ctx context.Context, wave string) (bool, error)
	Pauses() []cutover.Pause
}

// LooksAPI looks into mailboxes and changes nothing.
type LooksAPI interface {
	Plan(ctx context.Context, user string) (backfill.Plan, error)
	Verify(ctx context.Context, user string) (backfill.Verification, error)
	Inventory(ctx context.Context, user string) (backfill.Inventory, error)
}

// BackendStatus says how deliveries over one route go.
type BackendStatus struct {
	Route  mail.Route `json:"route"`
	State  string     `json:"state" doc:"up, down (left alone after failures, and probed) or paused (by an operator)"`
	Reason string     `json:"reason,omitempty"`
	By     string     `json:"by,omitempty" doc:"Who paused it."`
	Since  time.Time  `json:"since,omitzero"`
	Active int        `json:"active" doc:"Deliveries under way."`
	Limit  int        `json:"limit" doc:"Deliveries at once, at most."`
}

// BackendsAPI is the operator's switch of the deliveries.
type BackendsAPI interface {
	Status() []BackendStatus
	Pause(ctx context.Context, route mail.Route, by, reason string) error
	Resume(ctx context.Context, route mail.Route, by string) error
}

// Config is what a [Server] works with. Tokens, Users, Router, Queue, Bodies
// and Audit are required.
type Config struct {
	Version string
	Tokens  Tokens
	Users   router.Table
	Router  RouterAPI
	Queue   queue.Inspector
	Bodies  BodyOpener
	Audit   *AuditLog

	Conductor ConductorAPI // nil: no IMAP is configured, so nobody is copied
	Waves     WavesAPI     // nil: there are none; needs a Conductor
	Audits    AuditsAPI    // nil: there is no journal
	Lives     LivesAPI     // nil: there is no journal
	Backends  BackendsAPI  // nil: there is no switch
	Nodes     NodesAPI     // nil: nothing is known of nodes
	DNS       DNSAPI       // nil: the DNS is not watched
	Events    *Events      // nil: the server's own
	// Reload reads the configuration again; its strings tell what a reload
	// cannot change. nil: it cannot be reloaded.
	Reload func(ctx context.Context) ([]string, error)
	// Health tells what is wrong when the process should be started anew; nil:
	// nothing ever is.
	Health func(ctx context.Context) error
	// DeliveryTLS tells how TLS with the servers that mail is delivered to fares; nil:
	// nobody does.
	DeliveryTLS TLSAPI
	// Warn gives what will need an operator though mail is taken, such as a
	// certificate that ends soon; nil: nothing.
	Warn func() []string
	// Ready gives the reasons why no mail can be accepted now; nil: there are
	// none.
	Ready func(ctx context.Context) []string
	// Metrics is what GET /metrics shows; nil: nothing.
	Metrics prometheus.Gatherer
	// OpenMetrics shows the metrics to everybody. Otherwise they need a token,
	// except from this machine.
	OpenMetrics bool
	// TokenStore keeps tokens that are made over the API; nil: those of Tokens are
	// all there are.
	TokenStore TokenStore
	// Hosts are the names by which plain HTTP may ask for this API, beside IP
	// addresses and names without a dot.
	Hosts []string
	// TLS is how Serve speaks; nil: plain HTTP.
	TLS *tls.Config
	// Refused is called for each request that was refused before it reached a
	// handler; see [Metrics.AdminRefused]. nil: nobody counts.
	Refused func(reason string)
	Log     *slog.Logger // nil: silent
}

// Server is the HTTP API. Make it with New; it starts nothing before Serve.
type Server struct {
	cfg     Config
	log     *slog.Logger
	tokens  tokenSet
	events  *Events
	handler http.Handler
	api     huma.API
	spec    []byte // the OpenAPI description
	started time.Time

	lockouts    lockouts
	denials     denials
	streams     tally
	tokenChange sync.Mutex // one change of tokens at a time
	now         func() time.Time
	closing     chan struct{}                                    // closed when Serve ends, for event streams
	bodyIdle    time.Duration                                    // longest silence inside a request body
	every       func(d time.Duration) (<-chan time.Time, func()) // ticker of the event streams
}

// Limits of the HTTP side.
const (
	maxBody        = 1 << 20
	maxImport      = 64 << 20
	maxHeader      = 32 << 10
	headerTime     = 10 * time.Second
	idleTime       = 2 * time.Minute
	answerTime     = time.Minute // for an ordinary request
	longAnswerTime = time.Hour   // for verify, import, apply
	shutdownTime   = 10 * time.Second
)

// New makes a server. Its error names what is missing.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, events: cfg.Events, started: time.Now(), closing: make(chan struct{}),
		now: time.Now, bodyIdle: 30 * time.Second, every: tick,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.events == nil {
		s.events = &Events{}
	}
	s.tokens.setFile(cfg.Tokens)
	mux := http.NewServeMux()
	s.api = humago.New(mux, apiConfig(cfg.Version))
	s.api.UseMiddleware(s.authorize)
	s.registerAll()
	s.describeMetrics()
	mux.Handle("GET /metrics", s.metricsHandler())
	spec, err := json.MarshalIndent(s.api.OpenAPI(), "", " ")
	if err != nil {
		return nil, fmt.Errorf("admin: the OpenAPI description: %w", err)
	}
	s.spec = spec
	mux.HandleFunc("GET /openapi.json", s.serveSpec)
	s.handler = s.outer(mux)
	return s, nil
}

func (c *Config) check() error {
	switch {
	case len(c.Tokens) == 0:
		return errors.New("there is no token")
	case c.Users == nil || c.Router == nil:
		return errors.New("there is no table of users or no router")
	case c.Queue == nil || c.Bodies == nil:
		return errors.New("there is no queue")
	case c.Audit == nil:
		return errors.New("there is no audit log")
	}
	return nil
}

func apiConfig(version string) huma.Config {
	if version == "" {
		version = "(devel)"
	}
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{Title: "Crossfade admin API", Version: version,
			Description: "Every error is application/problem+json (see Problem); its type is stable. Lists are cursors: pass next as cursor until it is empty."},
		Components: &huma.Components{
			Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName),
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"token": {Type: "http", Scheme: "bearer", Description: "A token that crossfade token add made, or one of the token file (admin.token_file)."},
			},
		},
	}
	return huma.Config{
		OpenAPI:                      doc,
		Formats:                      map[string]huma.Format{"application/json": strictJSON(), "json": strictJSON()},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{transform},
	}
}

// schemaName names a type in the description. Types of the packages queue,
// cutover and backfill carry the package's name, because several packages have
// a Stats or a Status.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch pkg := path.Base(t.PkgPath()); pkg {
	case "queue", "cutover", "backfill", "audit", "journal", "seal", "dnswatch":
		return strings.ToUpper(pkg[:1]) + pkg[1:] + name
	}
	return name
}

// Handler is the API, for a server of one's own or a test.
func (s *Server) Handler() http.Handler { return s.handler }

// Events is the hub that the event streams listen to.
func (s *Server) Events() *Events { return s.events }

// SetTokens exchanges the tokens of the file; requests under way go on.
func (s *Server) SetTokens(tokens Tokens) error {
	if len(tokens) == 0 {
		return errors.New("admin: there is no token")
	}
	s.tokens.setFile(tokens)
	return nil
}

// Serve answers requests on l until ctx ends, then lets requests under way
// finish for ten seconds. It closes l. A Server serves once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	l = &limited{Listener: l, open: &tally{}, turned: func() { s.refusedBy("connections") }}
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	refreshed := make(chan struct{})
	defer func() { <-refreshed }()
	tokensCtx, stopTokens := context.WithCancel(ctx)
	defer stopTokens()
	go func() {
		defer close(refreshed)
		s.keepTokens(tokensCtx)
	}()
	select {
	case err := <-done:
		close(s.closing)
		return fmt.Errorf("admin API on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	close(s.closing)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		s.log.Warn("requests to the admin API were cut off", "error", err)
		srv.Close() // its error says nothing new
	}
	<-done
	return nil
}

func tick(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(d)
	return t.C, t.Stop
}
