package lookup

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxHeader bounds the header of an HTTP question. nginx may send a client's
// certificate, which is not read but has to fit.
const maxHeader = 32 << 10

// ServeHTTP answers nginx (GET /nginx) and the Lua passdb of Dovecot (GET
// /dovecot) on l until ctx ends, and returns nil then. It closes l.
func (s *Service) ServeHTTP(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: s.cfg.Timeout, ReadTimeout: s.cfg.Timeout, WriteTimeout: 3 * s.cfg.Timeout,
		IdleTimeout: s.cfg.IdleTime, MaxHeaderBytes: maxHeader, BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: log.New(quiet{s.log}, "", 0),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(&gate{Listener: l, s: s})
	if !stop() {
		<-ended
	}
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	_ = srv.Close()
	return fmt.Errorf("lookup: answer HTTP on %s: %w", l.Addr(), err)
}

// quiet passes on what net/http has to say about connections. It quotes no
// headers, but what it says is only of use to whoever looks for it.
type quiet struct{ log *slog.Logger }

// Write logs one message.
func (q quiet) Write(p []byte) (int, error) {
	q.log.Debug("lookup: http", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (s *Service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /nginx", s.nginx)
	mux.HandleFunc("GET /dovecot", s.dovecot)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A password is none of our business: nothing behind this line can see it.
		r.Header.Del("Auth-Pass")
		if !s.keyFits(r.Header) {
			s.refused.Do(func() {
				s.log.Warn("lookup: a question without the right key is refused (X-Auth-Key has to be what lookup.token_file holds)", "peer", r.RemoteAddr)
			})
			http.Error(w, "the key is missing or wrong", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// keyFits compares the key in constant time.
func (s *Service) keyFits(h http.Header) bool {
	want := s.set.Load().Key
	got := h.Get("X-Auth-Key")
	if bearer, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer "); got == "" && ok {
		got = bearer
	}
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return want != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// dovecot answers a passdb: the extra fields of a proxy, one on a line, in the
// notation of Dovecot ("host=10.0.0.2"). 404 is a user who does not exist;
// every other status but 200 has to be a temporary failure for who asks.
func (s *Service) dovecot(w http.ResponseWriter, r *http.Request) {
	user, service := r.FormValue("user"), r.FormValue("service")
	l, err := s.dovecotPlace(r.Context(), service, user)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	switch answerOf(err) {
	case AnswerFound:
	case AnswerUnknown:
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case AnswerRefused:
		http.Error(w, reason(err), http.StatusBadRequest)
		return
	default:
		http.Error(w, "temporary failure", http.StatusServiceUnavailable)
		return
	}
	fields := []string{"proxy=y", "nopassword=y", "host=" + l.up.Host, "port=" + strconv.Itoa(l.up.Port)}
	switch l.up.TLS {
	case Implicit:
		fields = append(fields, "ssl=yes")
	case StartTLS:
		fields = append(fields, "starttls=yes")
	}
	if l.name != user {
		fields = append(fields, "destuser="+l.name)
	}
	fmt.Fprintln(w, strings.Join(fields, "\n"))
}

// dovecotServices are Dovecot's names for what we call otherwise.
var dovecotServices = map[string]Protocol{
	"imap": IMAP, "pop3": POP3, "submission": Submission, "sieve": Sieve, "managesieve": Sieve, "lmtp": LMTP,
}

func (s *Service) dovecotPlace(ctx context.Context, service, user string) (l login, err error) {
	p, ok := dovecotServices[service]
	if !ok {
		s.answered("other", user, errRefused)
		return login{}, fmt.Errorf("%w: the service %q is none that can be looked up", errRefused, service)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	defer func() { s.answered(string(p), user, err) }()
	if l, err = s.loginPlace(ctx, p, user); err != nil {
		return login{}, err
	}
	if strings.ContainsAny(l.name, "\r\n\t") {
		return login{}, fmt.Errorf("the login name of %s holds a line end or a tab: correct it in the table", user)
	}
	return l, nil
}
