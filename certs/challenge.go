package certs

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// challenges answers an authority that asks whether a name is ours.
type challenges struct {
	log *slog.Logger

	mu         sync.Mutex
	thumbprint string                      // of the account key; empty: there is none yet
	certs      map[string]*tls.Certificate // by name, for tls-alpn-01
}

func newChallenges(log *slog.Logger) *challenges {
	return &challenges{log: log, certs: map[string]*tls.Certificate{}}
}

// use answers for the account of a key from now on.
func (c *challenges) use(key crypto.Signer) error {
	thumb, err := acme.JWKThumbprint(key.Public())
	if err != nil {
		return fmt.Errorf("thumbprint of the account key: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.thumbprint = thumb
	return nil
}

func (c *challenges) put(name string, cert *tls.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.certs[strings.ToLower(name)] = cert
}

func (c *challenges) remove(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.certs, strings.ToLower(name))
}

// token is what an authority may ask for (RFC 8555, 8.1 and 8.3).
var token = regexp.MustCompile(`^[A-Za-z0-9_-]{16,256}$`)

// ServeHTTP answers http-01, and nothing else. The answer is made of the token and of the key of our account alone, so
// any node that has the same account answers for the others; to whoever else asks it is of no use.
func (c *challenges) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	thumbprint := c.thumbprint
	c.mu.Unlock()
	asked, ok := strings.CutPrefix(r.URL.Path, "/.well-known/acme-challenge/")
	if !ok || thumbprint == "" || !token.MatchString(asked) || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	fmt.Fprintf(w, "%s.%s", asked, thumbprint)
}

// cert answers tls-alpn-01 (RFC 8737, 3).
func (c *challenges) cert(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cert := c.certs[strings.ToLower(hello.ServerName)]; cert != nil {
		return cert, nil
	}
	return nil, fmt.Errorf("nobody is proving that %q is ours", hello.ServerName)
}

const (
	bindAgain      = time.Minute
	challengeTime  = 10 * time.Second // for one connection
	challengeConns = 64               // at once
)

// serveChallenges binds the addresses and answers until ctx ends. An address that cannot be bound is a problem as any
// other: it is told, and tried again.
func (a *ACME) serveChallenges(ctx context.Context) {
	var bound []net.Listener
	failed := false
	for {
		var err error
		if bound, err = a.bind(ctx); err == nil {
			break
		}
		failed = true
		a.mu.Lock()
		if a.problem == "" {
			a.since = a.cfg.now()
		}
		a.problem, a.next = err.Error(), a.cfg.now().Add(bindAgain)
		a.mu.Unlock()
		a.log.Error("challenges of the authority cannot be answered", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(bindAgain):
		}
	}
	if failed {
		a.mu.Lock()
		a.problem, a.since, a.next = "", time.Time{}, time.Time{}
		a.mu.Unlock()
	}
	close(a.bound)
	var wg sync.WaitGroup
	for _, l := range bound {
		wg.Go(func() { a.answers.serve(ctx, l) })
	}
	wg.Wait()
}

// bind opens the addresses, all or none.
func (a *ACME) bind(ctx context.Context) ([]net.Listener, error) {
	var out []net.Listener
	for _, want := range []struct{ kind, address string }{{acmeHTTP, a.cfg.HTTP01}, {acmeALPN, a.cfg.ALPN01}} {
		if want.address == "" {
			continue
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", want.address)
		if err != nil {
			for _, opened := range out {
				_ = opened.Close()
			}
			return nil, fmt.Errorf("listen for %s: %w", want.kind, err)
		}
		if want.kind == acmeALPN {
			l = tls.NewListener(l, &tls.Config{GetCertificate: a.answers.cert, NextProtos: []string{acme.ALPNProto}, MinVersion: tls.VersionTLS12})
		}
		out = append(out, l)
	}
	return out, nil
}

// serve answers on one listener. Under TLS the handshake is the whole answer; whatever is asked behind it gets 404.
func (c *challenges) serve(ctx context.Context, l net.Listener) {
	srv := &http.Server{
		Handler: c, ReadTimeout: challengeTime, WriteTimeout: challengeTime, IdleTimeout: challengeTime, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug), TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	_ = srv.Serve(&fewConns{Listener: l, room: make(chan struct{}, challengeConns)}) // it ends when srv is closed
	_ = l.Close()
}

// fewConns is a listener that has only so many connections open at once.
type fewConns struct {
	net.Listener
	room chan struct{}
}

func (l *fewConns) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &fewConn{Conn: conn, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

type fewConn struct {
	net.Conn
	leave func()
}

func (c *fewConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
