package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"crossfade/config"
)

// certCheck is how often the files of a certificate are looked at.
const certCheck = 10 * time.Second

// certificate is a key pair that is read again when its files change. A pair
// that cannot be read leaves the one before in use, with an alarm in the log.
type certificate struct {
	pair config.KeyPair
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	conf    *tls.Config
	stamp   [2]time.Time
	checked time.Time
}

// loadCertificate reads the pair; nil without an error when none is configured.
func loadCertificate(pair config.KeyPair, log *slog.Logger) (*certificate, error) {
	if !pair.Enabled() {
		return nil, nil
	}
	c := &certificate{pair: pair, log: log, now: time.Now}
	stamp, err := c.stat()
	if err != nil {
		return nil, err
	}
	if err := c.load(stamp); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) stat() (stamp [2]time.Time, err error) {
	for i, name := range []string{c.pair.Cert, c.pair.Key} {
		info, err := os.Stat(name)
		if err != nil {
			return stamp, fmt.Errorf("certificate: %w", err)
		}
		stamp[i] = info.ModTime()
	}
	return stamp, nil
}

func (c *certificate) load(stamp [2]time.Time) error {
	cert, err := tls.LoadX509KeyPair(c.pair.Cert, c.pair.Key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", c.pair.Cert, c.pair.Key, err)
	}
	c.conf = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	c.stamp, c.checked = stamp, c.now()
	return nil
}

// config gives the present TLS configuration of a server. It may be called for
// every handshake.
func (c *certificate) config() *tls.Config {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Sub(c.checked) < certCheck {
		return c.conf
	}
	c.checked = c.now()
	stamp, err := c.stat()
	if err == nil && stamp != c.stamp {
		err = c.load(stamp)
	}
	if err != nil {
		c.log.Error("tls: the certificate cannot be read again; the one before stays in use", "err", err)
	}
	return c.conf
}

// backendTLS says how the certificate of a backend is checked.
func backendTLS(b config.BackendTLS, host string) (*tls.Config, error) {
	c := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: b.InsecureSkipVerify}
	if b.ServerName != "" {
		c.ServerName = b.ServerName
	}
	if b.CA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(b.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s holds no certificate in PEM form", b.CA)
	}
	return c, nil
}
