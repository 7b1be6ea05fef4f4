package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// DialOptions are what a URL does not say about a Server, secrets above all.
type DialOptions struct {
	// Username and Password are the ACL user's; no user means the default one.
	Username, Password string
	// SentinelUsername and SentinelPassword are for the sentinels themselves.
	SentinelUsername, SentinelPassword string
	// TLS is for rediss; nil trusts the system's authorities. Without a ServerName
	// the name that was dialled is expected in the certificate.
	TLS *tls.Config
	// Queue names the queue, and is in all keys. Default "q".
	Queue string
	// Replicas is the least number of replicas that must have each write on which
	// a promise hangs. As many as can be promoted are waited for in any case, as
	// far as Sentinel, the Cluster or the master tells.
	Replicas int
	// Service trusts a server that is durable by contract and does not tell how: it
	// is not asked for its AOF.
	Service bool
	// Logger gets warnings; nil: nobody.
	Logger *slog.Logger
}

// Server is where the store lies. Make one with [Dial].
type Server struct {
	client goredis.UniversalClient
	target target
	opts   DialOptions
	queue  string
	log    *slog.Logger
	dialer *dialer
	hosts  hosts

	watchers []*goredis.SentinelClient // one for each sentinel
}

// Times of connections.
const (
	dialTime = 3 * time.Second
	askTime  = 5 * time.Second // for the reply to a single command
)

// Dial reads the URL of a store and gets ready to connect; nothing is sent yet.
// At most one DialOptions may be given.
//
//	redis://[user[:password]@]host[:port][/db]
//	redis+sentinel://host[:port][,host[:port]...]/master[/db]
//	redis+cluster://host[:port][,host[:port]...]
//
// rediss in front is the same over TLS. An error does not have the password.
func Dial(url string, opts ...DialOptions) (*Server, error) {
	var o DialOptions
	if len(opts) > 0 {
		o = opts[0]
	}
	t, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("URL of the store: %w", err)
	}
	if err := o.merge(t); err != nil {
		return nil, fmt.Errorf("URL of the store: %w", err)
	}
	quietDriver()
	s := &Server{target: t, opts: o, queue: o.Queue, log: o.Logger, dialer: &dialer{tls: o.TLS, open: map[*tracked]struct{}{}}}
	s.hosts.server = s
	switch t.kind {
	case kindAlone:
		s.client = goredis.NewClient(s.options(t.addrs[0]))
	case kindSentinel:
		for _, a := range t.addrs {
			opt := s.options(a)
			opt.DB, opt.Username, opt.Password = 0, o.SentinelUsername, o.SentinelPassword
			s.watchers = append(s.watchers, goredis.NewSentinelClient(opt))
		}
		s.client = s.failover()
	case kindCluster:
		s.client = s.cluster()
	}
	return s, nil
}

// merge checks the options against the URL and completes them.
func (o *DialOptions) merge(t target) error {
	if o.Queue == "" {
		o.Queue = "q"
	}
	if strings.ContainsAny(o.Queue, "{}:*?[]\\ ") {
		return fmt.Errorf("queue %q: it stands in keys and in the ACL: use letters, digits, dots, dashes and underscores", o.Queue)
	}
	if t.user != "" || t.pass != "" {
		if o.Username != "" || o.Password != "" {
			return errors.New("user and password stand in the URL and beside it: keep those beside it")
		}
		o.Username, o.Password = t.user, t.pass
	}
	if o.Username != "" && o.Password == "" {
		return fmt.Errorf("user %q has no password", o.Username)
	}
	switch {
	case o.TLS != nil && !t.tls:
		return fmt.Errorf("TLS settings for a %s URL: write %s", t.scheme, strings.Replace(t.scheme, "redis", "rediss", 1))
	case t.tls && o.TLS == nil:
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// options are those of one server's client. The store repeats calls by itself:
// the driver repeats nothing.
func (s *Server) options(addr string) *goredis.Options {
	return &goredis.Options{
		Addr: addr, DB: s.target.db, Username: s.opts.Username, Password: s.opts.Password, Dialer: s.dialer.dial,
		MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true,
		DialTimeout: dialTime, DialerRetries: 1, ReadTimeout: askTime, WriteTimeout: askTime,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// failover makes the client of the master that the sentinels name. Each
// connection asks them: the driver's own way believes the one that answered
// first, for as long as it answers.
func (s *Server) failover() *goredis.Client {
	opt := s.options(s.target.master)
	opt.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
		addr, err := s.hosts.askMaster(ctx)
		if err != nil {
			return nil, err
		}
		return s.dialer.dial(ctx, network, addr)
	}
	return goredis.NewClient(opt)
}

func (s *Server) cluster() *goredis.ClusterClient {
	return goredis.NewClusterClient(&goredis.ClusterOptions{
		Addrs: s.target.addrs, Username: s.opts.Username, Password: s.opts.Password, Dialer: s.dialer.dial,
		MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true,
		DialTimeout: dialTime, DialerRetries: 1, ReadTimeout: askTime, WriteTimeout: askTime,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// prefix begins the keys of everything but bodies.
func (s *Server) prefix() string { return "cx:{" + s.queue + "}:" }

// String is the URL without user and password.
func (s *Server) String() string { return s.target.String() }

// Close ends its connections.
func (s *Server) Close() error {
	s.hosts.close()
	for _, w := range s.watchers {
		w.Close()
	}
	return s.client.Close()
}

// holder gives the client of the server that has a key.
func (s *Server) holder(ctx context.Context, key string) (*goredis.Client, error) {
	switch c := s.client.(type) {
	case *goredis.Client:
		return c, nil
	case *goredis.ClusterClient:
		m, err := c.MasterForKey(ctx, key)
		if err != nil {
			c.ReloadState(ctx)
			return nil, fmt.Errorf("find the node of the cluster that has %s: %w", key, err)
		}
		return m, nil
	}
	return nil, fmt.Errorf("a client of type %T is not supported", s.client)
}

// moved says that a server is not the right one any more: the Cluster is asked
// anew.
func (s *Server) moved(ctx context.Context) {
	if c, ok := s.client.(*goredis.ClusterClient); ok {
		c.ReloadState(ctx)
	}
}

// dialer makes connections and can cut them, so that nobody has to wait for
// the time-out of a server that hangs when another has taken over.
type dialer struct {
	tls  *tls.Config
	mu   sync.Mutex
	open map[*tracked]struct{}
}

// tracked is a connection that its dialer knows. It embeds the concrete type:
// the driver looks at the socket of idle connections.
type tracked struct {
	*net.TCPConn
	d    *dialer
	addr string
}

func (t *tracked) Close() error {
	t.d.mu.Lock()
	delete(t.d.open, t)
	t.d.mu.Unlock()
	return t.TCPConn.Close()
}

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	nd := net.Dialer{Timeout: dialTime, KeepAlive: 15 * time.Second}
	c, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	t := &tracked{TCPConn: tcp, d: d, addr: addr}
	d.mu.Lock()
	d.open[t] = struct{}{}
	d.mu.Unlock()
	if d.tls == nil {
		return t, nil
	}
	cfg := d.tls
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	tc := tls.Client(t, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		t.Close()
		return nil, fmt.Errorf("TLS with %s: %w", addr, hintTLS(err))
	}
	return tc, nil
}

func hintTLS(err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "first record does not look like a TLS handshake"), errors.Is(err, io.EOF):
		return fmt.Errorf("%w (does it speak TLS at that port? Without TLS write redis:// for rediss://)", err)
	case strings.Contains(text, "unknown authority"):
		return fmt.Errorf("%w (name the authority that signed its certificate: redis.ca)", err)
	}
	return err
}

// cut closes the connections to the servers that which names.
func (d *dialer) cut(which func(addr string) bool) {
	d.mu.Lock()
	var list []*tracked
	for t := range d.open {
		if which(t.addr) {
			list = append(list, t)
		}
	}
	d.mu.Unlock()
	for _, t := range list {
		t.Close()
	}
}

// quietDriver keeps the driver from writing to stderr by itself: all that it
// would write there comes back to us as an error. It is the only setting of
// the driver that is global.
var quietDriver = sync.OnceFunc(func() { goredis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}
