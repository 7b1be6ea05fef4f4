package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// Report is what Inspect found.
type Report struct {
	// Kind is how the server is reached: alone, sentinel or cluster.
	Kind string
	// Masters are the servers that take writes: one, or several of a Cluster.
	Masters []MasterReport
	// Schema is the version of the store that lies there; 0: none yet.
	Schema int
	// Warnings are what works and should be changed.
	Warnings []string
}

// MasterReport is what Inspect found about one server.
type MasterReport struct {
	// Addr is where it was reached; with sentinels, the name of the master.
	Addr string
	// Version is its name and version.
	Version string
	// Replicas is how many replicas each write waits for, Online how many follow
	// now.
	Replicas, Online int
	// Sync says what makes a write durable there: "appendfsync always", "WAITAOF",
	// or "service": it was not asked.
	Sync string
	// Used and Max are octets of memory; Max 0 is no bound.
	Used, Max int64
}

// String gives a line for each server and each warning.
func (r Report) String() string {
	var b strings.Builder
	for _, m := range r.Masters {
		fmt.Fprintf(&b, "%s (%s): %s, %s", m.Addr, r.Kind, m.Version, m.Sync)
		if m.Replicas > 0 {
			fmt.Fprintf(&b, ", each write waits for %d replicas (%d follow)", m.Replicas, m.Online)
		}
		b.WriteByte('\n')
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

// Inspect looks at the server as the store would, and changes nothing but a
// mark that goes away by itself. The error says each thing that has to be
// changed before the store will use it.
func (s *Server) Inspect(ctx context.Context) (Report, error) {
	r := Report{Kind: s.target.kind}
	clients, err := s.masters(ctx)
	if err != nil {
		return r, s.explain(err)
	}
	var errs []error
	for _, c := range clients {
		w, err := s.hosts.connectTo(ctx, c, s.keyOn(ctx, c))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m, warnings, err := s.report(ctx, w)
		s.hosts.give(ctx, w, err)
		errs = append(errs, err)
		r.Masters = append(r.Masters, m)
		r.Warnings = append(r.Warnings, warnings...)
	}
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	r.Schema, err = s.schema(ctx)
	return r, err
}

func (s *Server) report(ctx context.Context, w *wire) (MasterReport, []string, error) {
	m := MasterReport{Addr: s.nameOf(w.client)}
	f, err := askInfo(ctx, w.cn)
	if err != nil {
		return m, nil, s.explain(err)
	}
	v, err := s.judge(ctx, w, f)
	if err != nil {
		return m, nil, err
	}
	m.Version, m.Replicas, m.Online = f.version(), int(w.host.replicas.Load()), int(w.host.online.Load())
	m.Used, m.Max, m.Sync = asInt(f["used_memory"]), asInt(f["maxmemory"]), v.sync
	if err := v.err(m.Addr); err != nil {
		return m, v.warnings, err
	}
	return m, v.warnings, w.host.short()
}

func (s *Server) nameOf(c *goredis.Client) string {
	if s.target.kind == kindSentinel {
		return s.target.master
	}
	return c.Options().Addr
}

// masters gives the clients of all servers that take writes.
func (s *Server) masters(ctx context.Context) ([]*goredis.Client, error) {
	switch c := s.client.(type) {
	case *goredis.Client:
		return []*goredis.Client{c}, nil
	case *goredis.ClusterClient:
		var mu sync.Mutex
		var out []*goredis.Client
		err := c.ForEachMaster(ctx, func(_ context.Context, m *goredis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			out = append(out, m)
			return nil
		})
		if err == nil && len(out) == 0 {
			err = errors.New("the cluster has no master")
		}
		return out, err
	}
	return nil, fmt.Errorf("a client of type %T is not supported", s.client)
}

// keyOn gives a key of ours that a server has.
func (s *Server) keyOn(ctx context.Context, c *goredis.Client) string {
	key := s.prefix() + "w"
	for i := range 1000 {
		if m, err := s.holder(ctx, key); err != nil || m == c {
			return key
		}
		key = fmt.Sprintf("cx:%s:b:{mark%d}:w", s.queue, i)
	}
	return key
}

// facts are the fields of INFO.
type facts map[string]string

func askInfo(ctx context.Context, cn *goredis.Conn) (facts, error) {
	text, err := cn.Info(ctx).Result()
	if err != nil {
		return nil, err
	}
	return readInfo(text), nil
}

func readInfo(text string) facts {
	f := facts{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			f[k] = v
		}
	}
	return f
}

// replicas gives the addresses of those that follow and have all that came
// before.
func (f facts) replicas() (out []string) {
	for i := range asInt(f["connected_slaves"]) {
		at := map[string]string{}
		for part := range strings.SplitSeq(f["slave"+strconv.FormatInt(i, 10)], ",") {
			k, v, _ := strings.Cut(part, "=")
			at[k] = v
		}
		if at["state"] == "online" {
			out = append(out, net.JoinHostPort(at["ip"], at["port"]))
		}
	}
	return out
}

func (f facts) version() string {
	if v := f["valkey_version"]; v != "" {
		return "Valkey " + v
	}
	return "Redis " + f["redis_version"]
}

// atLeast compares the version; what Valkey says about its compatibility
// counts.
func (f facts) atLeast(major, minor int64) bool {
	a, rest, _ := strings.Cut(f["redis_version"], ".")
	b, _, _ := strings.Cut(rest, ".")
	return asInt(a) > major || asInt(a) == major && asInt(b) >= minor
}

// rightKind tells whether the server is what the URL says, and takes writes.
func (s *Server) rightKind(f facts) error {
	if f["run_id"] == "" {
		return fmt.Errorf("%w: INFO has no run_id: is it a Redis?", errRefused)
	}
	mode := cmp.Or(f["redis_mode"], f["server_mode"]) // as Valkey calls it
	switch {
	case mode == "sentinel":
		return fmt.Errorf("%w: that is a sentinel: write %s with the name of the master behind the hosts", errRefused, s.otherScheme(kindSentinel))
	case mode == "cluster" && s.target.kind != kindCluster:
		return fmt.Errorf("%w: that server is part of a Redis Cluster: write %s", errRefused, s.otherScheme(kindCluster))
	case f["loading"] == "1":
		return errors.New("LOADING: Redis is reading its data")
	case f["role"] == "master":
		return nil
	case s.target.kind == kindAlone:
		return fmt.Errorf("%w: the server is a read-only replica of %s: name that one, or the sentinels that know which is the master (%s)",
			errRefused, net.JoinHostPort(f["master_host"], f["master_port"]), s.otherScheme(kindSentinel))
	}
	return errors.New("READONLY: the server is a replica: a failover is under way")
}

func (s *Server) otherScheme(kind string) string {
	base := "redis"
	if s.target.tls {
		base = "rediss"
	}
	return base + "+" + kind + "://"
}

// verdict is what a server's settings come to.
type verdict struct {
	problems []string
	warnings []string
	sync     string
	aof      bool // each write has to wait for WAITAOF
}

func (v *verdict) err(where string) error {
	if len(v.problems) == 0 {
		return nil
	}
	return fmt.Errorf("%w: Redis at %s would lose mail that was acknowledged:\n- %s", errRefused, where, strings.Join(v.problems, "\n- "))
}

func (v *verdict) problem(format string, args ...any) {
	v.problems = append(v.problems, fmt.Sprintf(format, args...))
}

// tell writes the verdict into what is known of the server.
func (v *verdict) tell(x *host) {
	x.aof.Store(v.aof)
	x.refused.Store(nil)
	if len(v.problems) > 0 {
		err := fmt.Errorf("%w: %w: %s", errUnsafe, errRefused, strings.Join(v.problems, "; "))
		x.refused.Store(&err)
	}
	x.judged.Store(time.Now().UnixNano())
}

// set is how to change a setting.
func set(line string) string {
	return fmt.Sprintf("set `%s` in redis.conf, and run: CONFIG SET %s", line, line)
}

// judge finds out what would lose a write.
func (s *Server) judge(ctx context.Context, w *wire, f facts) (verdict, error) {
	var v verdict
	if !f.atLeast(7, 0) {
		v.problem("it is %s: 7.0 or newer is needed, or Valkey", f.version())
		return v, nil
	}
	if p := f["maxmemory_policy"]; p != "noeviction" {
		v.problem("maxmemory-policy is %s, which throws mail away when memory is short: %s", p, set("maxmemory-policy noeviction"))
	}
	if f["maxmemory"] == "0" {
		v.warnings = append(v.warnings, "Redis has no bound on its memory: the system kills it when there is none left; set maxmemory")
	}
	if s.opts.Service {
		v.sync = "service"
		v.warnings = append(v.warnings, "durability: service: whether Redis keeps what it acknowledged is not checked; its operator has to guarantee it")
		return v, nil
	}
	if f["aof_enabled"] != "1" {
		v.problem("the AOF is off: with the process goes all that is queued: %s", set("appendonly yes"))
	}
	conf, err := w.cn.ConfigGet(ctx, "*append*").Result()
	switch {
	case err == nil:
		v.sync = "appendfsync always"
		if p := conf["appendfsync"]; p != "always" {
			v.problem("appendfsync is %s: a crash of the machine loses seconds of acknowledged mail: %s", p, set("appendfsync always"))
		}
		if conf["no-appendfsync-on-rewrite"] != "no" {
			v.problem("no-appendfsync-on-rewrite is yes: while the AOF is rewritten nothing is synced: %s", set("no-appendfsync-on-rewrite no"))
		}
	case !forbidden(err):
		return v, s.explain(err)
	default:
		return v, s.probeAOF(ctx, w, f, &v)
	}
	return v, nil
}

// forbidden tells whether a command failed because it may not be used.
func forbidden(err error) bool {
	text := strings.ToLower(err.Error())
	return strings.HasPrefix(text, "noperm") || strings.Contains(text, "unknown command") || strings.Contains(text, "unknown subcommand")
}

// probeAOF finds out, where settings may not be read, whether the server can
// say of a write that it was synced.
func (s *Server) probeAOF(ctx context.Context, w *wire, f facts, v *verdict) error {
	const way = "let the ACL user read its settings (+config|get, see docs/redis.md), or write `durability: service` " +
		"under redis: if its operator guarantees that nothing acknowledged is lost"
	if !f.atLeast(7, 2) {
		v.problem("its settings cannot be read, and %s has no WAITAOF, which comes with 7.2: %s", f.version(), way)
		return nil
	}
	v.sync, v.aof = "WAITAOF", true
	if len(v.problems) > 0 {
		return nil
	}
	pipe := w.cn.Pipeline()
	wait := need{aof: true}.add(ctx, pipe, w.key)
	if _, err := pipe.Exec(ctx); err != nil && !isAnswer(err) {
		return err
	}
	err := wait.check()
	if err == nil || !errors.Is(err, errNotSynced) && !(isAnswer(err) && refusal(err)) {
		return err
	}
	v.problem("its settings cannot be read, and %v: %s", err, way)
	return nil
}

// refusal tells a command that cannot work from one that does not work now.
func refusal(err error) bool {
	var e goredis.Error
	return errors.As(err, &e) && (strings.HasPrefix(e.Error(), "ERR") || strings.HasPrefix(e.Error(), "NOPERM"))
}

// isAnswer tells whether Redis said so itself.
func isAnswer(err error) bool {
	var e goredis.Error
	return errors.As(err, &e)
}

// explain says what to do about an answer that waiting does not mend; other
// errors stay as they are.
func (s *Server) explain(err error) error {
	if err == nil || errors.Is(err, errRefused) {
		return err
	}
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		cert    *tls.CertificateVerificationError
	)
	if errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &invalid) || errors.As(err, &cert) {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	text := err.Error()
	hint := ""
	switch {
	case strings.Contains(text, "WRONGPASS"), strings.Contains(text, "invalid password"), strings.Contains(text, "invalid username-password pair"):
		hint = "user or password is wrong: look at redis.username and redis.password_file, and at ACL LIST"
	case strings.Contains(text, "NOAUTH"):
		hint = "Redis wants a password: give redis.password_file, and redis.username for an ACL user"
	case strings.Contains(text, "called without any password configured"):
		hint = "Redis has no password, and one was given: take it out of the configuration, or set one there"
	case strings.Contains(text, "NOPERM"):
		hint = "the ACL user may not do what the store needs: docs/redis.md has the line for it"
	case strings.Contains(text, "DB index is out of range"):
		hint = "there is no such database: name another number at the end of the URL, or raise `databases` in redis.conf"
	case strings.Contains(text, "cluster support disabled"):
		hint = "the server is not part of a Redis Cluster: write redis:// for redis+cluster://"
	case strings.Contains(text, "No such master with that name"), s.target.kind == kindSentinel && errors.Is(err, goredis.Nil):
		hint = fmt.Sprintf("the sentinels know no master named %s: look at the first part of the URL's path, and at SENTINEL MASTERS", s.target.master)
	default:
		return err
	}
	return fmt.Errorf("%w: %w (%s)", errRefused, err, hint)
}
