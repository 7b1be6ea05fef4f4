package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// checkEvery is how often the files of a certificate are looked at.
const checkEvery = 10 * time.Second

// ErrNone means that there is no certificate to show yet.
var ErrNone = errors.New("there is no certificate yet")

// Status is what is known of a certificate of ours.
type Status struct {
	Name    string    // what it is for: "smtp.tls"
	Names   []string  // in the certificate
	Ends    time.Time // zero: there is none
	Began   time.Time
	Problem string    // why it could not be replaced; empty: all is well
	Since   time.Time // of the problem
	Next    time.Time // when it is tried again; zero: when the files change
}

// Files is a certificate that lies in two PEM files. It is safe for use by many goroutines.
type Files struct {
	name, cert, key string
	log             *slog.Logger
	now             func() time.Time

	current atomic.Pointer[tls.Certificate]
	mu      sync.Mutex
	seen    [2]os.FileInfo // of what was read last, good or bad
	problem string
	since   time.Time
}

// OpenFiles reads a chain with its key. name is the section of the configuration, for messages.
func OpenFiles(name, cert, key string, log *slog.Logger) (*Files, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Files{name: name, cert: cert, key: key, log: log, now: time.Now}
	infos, err := f.stat()
	if err != nil {
		return nil, err
	}
	pair, err := f.read()
	if err != nil {
		return nil, err
	}
	f.current.Store(pair)
	f.seen = infos
	return f, nil
}

func (f *Files) stat() (infos [2]os.FileInfo, err error) {
	for i, name := range []string{f.cert, f.key} {
		if infos[i], err = os.Stat(name); err != nil {
			return [2]os.FileInfo{}, fmt.Errorf("read a certificate: %w", err)
		}
	}
	return infos, nil
}

func (f *Files) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s with key %s: %w", f.cert, f.key, err)
	}
	if pair.Leaf == nil { // only with GODEBUG=x509keypairleaf=0
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("read certificate %s: %w", f.cert, err)
		}
	}
	return &pair, nil
}

// Refresh looks whether the files changed, and takes what they hold. What cannot be read or does not fit together
// leaves the certificate as it is, and so does one that has ended when the present one has not. The log says each
// change and each problem once.
func (f *Files) Refresh() {
	f.mu.Lock()
	defer f.mu.Unlock()
	infos, err := f.stat()
	if err == nil {
		if sameFile(infos[0], f.seen[0]) && sameFile(infos[1], f.seen[1]) {
			return
		}
		err = f.take()
	}
	f.seen = infos // nothing when they could not be looked at: when they are back they are read
	switch {
	case err == nil:
		f.problem, f.since = "", time.Time{}
	case f.problem != err.Error():
		f.problem, f.since = err.Error(), f.now()
		f.log.Error("a certificate cannot be read again; the one before stays in use", "certificate", f.name, "error", err)
	}
}

func (f *Files) take() error {
	pair, err := f.read()
	if err != nil {
		return err
	}
	now := f.now()
	if old := f.current.Load(); now.After(pair.Leaf.NotAfter) && now.Before(old.Leaf.NotAfter) {
		return fmt.Errorf("read certificate %s: it ended on %s, before the one that is in use", f.cert, pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	f.current.Store(pair)
	f.log.Info("a new certificate is in use", "certificate", f.name, "ends", pair.Leaf.NotAfter)
	return nil
}

// sameFile tells whether nothing was written to a file between two looks.
func sameFile(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// Run looks after the files until ctx ends.
func (f *Files) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.Refresh()
		}
	}
}

// Get gives the certificate, as tls.Config.GetCertificate wants it.
func (f *Files) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current.Load(), nil }

// Ready tells whether there is a certificate to show: always.
func (f *Files) Ready() bool { return true }

// Status says how the certificate is.
func (f *Files) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := statusOf(f.name, f.current.Load())
	s.Problem, s.Since = f.problem, f.since
	return s
}

func statusOf(name string, cert *tls.Certificate) Status {
	s := Status{Name: name}
	if cert != nil && cert.Leaf != nil {
		s.Names, s.Began, s.Ends = cert.Leaf.DNSNames, cert.Leaf.NotBefore, cert.Leaf.NotAfter
	}
	return s
}
