package admin

import (
	"context"
	"net"
	"net/http"
	"net/netip"
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
		p = &Problem{Type: ProblemForbidden, Title: "not allowed", Status: http.StatusForbidden,
			Detail: "the token " + c.name + " has the role " + string(c.role) + "; this needs " + string(need),
			Hint:   "use a token with the role " + string(need)}
		s.auditDenied(ctx.Operation(), c, r)
	}
	if p != nil {
		refuse(w, p)
		return
	}
	next(huma.WithValue(ctx, callerKey{}, c))
}

// auditDenied records that somebody with a token tried to change what he may
// not change.
func (s *Server) auditDenied(op *huma.Operation, c caller, r *http.Request) {
	if op.Method == http.MethodGet {
		return
	}
	err := s.cfg.Audit.Record(Record{Time: time.Now(), By: c.name, Role: c.role, Remote: c.remote, Action: op.OperationID,
		Object: r.URL.Path, Result: ResultDenied})
	if err != nil {
		s.log.Error("a denied request was not recorded", "error", err)
	}
}

func refuse(w http.ResponseWriter, p *Problem) {
	switch p.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="crossfade"`)
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "5")
	}
	writeProblem(w, p)
}

// authenticate finds the token of a request. A wrong one costs time, so that
// nobody tries many; a right one is never delayed by the wrong ones of others.
func (s *Server) authenticate(r *http.Request) (caller, *Problem) {
	value, ok := bearer(r)
	if ok {
		if t, found := s.tokens.Load().find(value); found {
			return caller{name: t.Name, role: t.Role, remote: r.RemoteAddr}, nil
		}
	}
	p := &Problem{Type: ProblemUnauthorized, Title: "no access", Status: http.StatusUnauthorized,
		Detail: "the request has no token", Hint: "send the header Authorization: Bearer with a token of the relay's token file (admin.token_file)"}
	if !ok {
		return caller{}, p
	}
	p.Detail = "the token is not one of this relay"
	res := s.failures.Reserve()
	delay := res.Delay()
	if delay > failedWait {
		res.Cancel()
		return caller{}, &Problem{Type: ProblemSlowDown, Title: "too many wrong tokens", Status: http.StatusTooManyRequests,
			Detail: "many requests with wrong tokens were made", Hint: "wait some seconds, and use the right token"}
	}
	s.log.Warn("a wrong token was used for the admin API", "remote", r.RemoteAddr)
	s.wait(r.Context(), delay)
	return caller{}, p
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
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !remote.Addr().Unmap().IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err = netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}
