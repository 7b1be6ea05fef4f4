package admin

import (
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// caller is who makes a request.
type caller struct {
	name   string
	role   Role
	remote string
	token  [sha256.Size]byte // its hash
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// authorize checks the token of a request against the role that the operation
// needs. Operations without a role are open.
func (s *Server) authorize(ctx huma.Context, next func(huma.Context)) {
	need, _ := ctx.Operation().Metadata["role"].(Role)
	if need == "" {
		next(ctx)
		return
	}
	r, w := humago.Unwrap(ctx)
	c, p := s.authenticate(r)
	if p == nil && !c.role.May(need) {
		p = s.forbidden(c, need, ctx.Operation().OperationID, r.URL.Path)
	}
	if p != nil {
		refuse(w, p)
		return
	}
	next(huma.WithValue(ctx, callerKey{}, c))
}

// forbidden answers a caller whose role is not enough, and records what he tried.
func (s *Server) forbidden(c caller, need Role, action, object string) *Problem {
	s.refusedBy("role")
	if yes, skipped, last := s.denials.record(c.name, s.now()); yes {
		rec := Record{Time: time.Now(), By: c.name, Role: c.role, Remote: c.remote, Action: action, Object: object, Result: ResultDenied}
		if skipped > 0 {
			rec.Detail = map[string]any{"not_recorded_before": skipped}
		}
		if err := s.cfg.Audit.Record(rec); err != nil {
			s.log.Error("a denied request was not recorded", "error", err)
		}
		if last {
			s.log.Warn("a token asks again and again for what its role does not allow; for the rest of the hour that is counted, no longer recorded: if its owner does not do that, take it back (crossfade token revoke)",
				"token", c.name, "role", c.role, "remote", c.remote, "recorded", denialsInFull)
		}
	}
	return &Problem{Type: ProblemForbidden, Title: "not allowed", Status: http.StatusForbidden,
		Detail: "the token " + c.name + " has the role " + string(c.role) + "; this needs " + string(need),
		Hint:   "use a token with the role " + string(need)}
}

func refuse(w http.ResponseWriter, p *Problem) {
	switch p.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="crossfade"`)
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", strconv.Itoa(int(max(p.wait, time.Second).Round(time.Second)/time.Second)))
	}
	writeProblem(w, p)
}

// authenticate finds the token of a request. After some wrong ones an address is
// locked out, for longer each time, and what it sends is not looked at. This
// machine's own address is not: a right token always passes there, because everybody
// on the machine could else keep the operator out, and behind a proxy on it all
// clients have that address. Trying is hopeless at any speed, see Token.
func (s *Server) authenticate(r *http.Request) (caller, *Problem) {
	remote := remoteAddr(r)
	locked := s.lockouts.locked(remote, s.now())
	if locked > 0 && !remote.IsLoopback() {
		return caller{}, s.lockedOut(locked)
	}
	p := &Problem{Type: ProblemUnauthorized, Title: "no access", Status: http.StatusUnauthorized,
		Detail: "the request has no token", Hint: "send the header Authorization: Bearer with a token that crossfade token add made, or that of the relay's token file (admin.token_file)"}
	value, ok := bearer(r)
	if !ok {
		return caller{}, p
	}
	t, found := s.tokens.all().find(value)
	switch {
	case found && t.expired(s.now()):
		s.refusedBy("expired")
		p.Detail, p.Hint = "the token "+t.Name+" has come to its end: "+t.Expires.Format(time.RFC3339), "crossfade token add makes another one"
		return caller{}, p
	case found:
		return caller{name: t.Name, role: t.Role, remote: r.RemoteAddr, token: t.hash}, nil
	case locked > 0:
		return caller{}, s.lockedOut(locked)
	}
	p.Detail = "the token is not one of this relay"
	s.refusedBy("token")
	pause := s.lockouts.wrong(remote, s.now())
	s.log.Warn("a wrong token was used for the admin API", "remote", r.RemoteAddr, "locked_out", pause)
	return caller{}, p
}

// lockedOut answers for an address that sent too many wrong tokens. It is counted
// and not logged: whoever sends many would fill the log.
func (s *Server) lockedOut(wait time.Duration) *Problem {
	s.refusedBy("locked-out")
	return &Problem{Type: ProblemSlowDown, Title: "too many wrong tokens", Status: http.StatusTooManyRequests, wait: wait,
		Detail: "requests with wrong tokens came from this address, and it is locked out for now", Hint: "wait as long as Retry-After says, and use the right token"}
}

// remoteAddr is where a request comes from; the zero Addr when that is no address.
func remoteAddr(r *http.Request) netip.Addr {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return remote.Addr().Unmap()
}

// bearer reads the Authorization header (RFC 6750, 2.1).
func bearer(r *http.Request) (string, bool) {
	scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	value = strings.TrimSpace(value)
	return value, ok && strings.EqualFold(scheme, "Bearer") && value != ""
}

// metricsHandler shows the metrics to a token, to this machine, or to all.
func (s *Server) metricsHandler() http.Handler {
	gatherer := s.cfg.Metrics
	if gatherer == nil {
		gatherer = prometheus.NewRegistry()
	}
	show := promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 20 * time.Second})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.cfg.OpenMetrics && !fromHere(r) {
			if _, p := s.authenticate(r); p != nil {
				refuse(w, p)
				return
			}
		}
		show.ServeHTTP(w, r)
	})
}

// fromHere tells whether a request comes from this machine itself: not through
// a proxy on it, and not from a web page that made its name point here.
func fromHere(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "Via"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	if !remoteAddr(r).IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}
