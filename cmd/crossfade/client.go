package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"crossfade/admin"
	"crossfade/config"
)

// clientFlags say which relay to speak to. They are accepted by every command.
type clientFlags struct {
	Config    string `short:"c" placeholder:"FILE" type:"path" help:"Configuration file; client commands read the address and the token of the admin API from it."`
	URL       string `name:"url" placeholder:"URL" help:"Address of the admin API; also $$CROSSFADE_URL."`
	TokenFile string `placeholder:"FILE" type:"path" help:"File with the token of the admin API; also $$CROSSFADE_TOKEN with the token itself."`
}

const defaultURL = "http://127.0.0.1:8025"

// client makes the client of the admin API: flags win over the environment,
// the environment over the configuration file.
func (a *app) client() (*admin.Client, error) {
	url, token, certFile := a.flags.URL, "", ""
	if url == "" {
		url = a.getenv("CROSSFADE_URL")
	}
	tokenFile := a.flags.TokenFile
	if tokenFile == "" {
		token = strings.TrimSpace(a.getenv("CROSSFADE_TOKEN"))
	}
	if a.flags.Config != "" {
		cfg, err := config.Load(a.flags.Config)
		if err != nil {
			return nil, usageError(err, "")
		}
		if url == "" {
			url, certFile = urlOf(cfg.Admin), cfg.Admin.TLS.Cert
			if strings.HasSuffix(url, ":0") {
				return nil, usageError(fmt.Errorf("%s: admin.listen leaves the port to the relay (0)", a.flags.Config), "its log says which one it took: name it with --url")
			}
		}
		if tokenFile == "" && token == "" {
			tokenFile = cfg.Admin.TokenFile
		}
	}
	if url == "" {
		url = defaultURL
	}
	if tokenFile != "" {
		var err error
		if token, err = readToken(tokenFile); err != nil {
			return nil, err
		}
	}
	if token == "" {
		return nil, usageError(errors.New("no token for the admin API was given"),
			"set CROSSFADE_TOKEN, or use --token-file FILE, or -c with the configuration file of the relay")
	}
	c, err := admin.NewClient(url, token)
	if err != nil {
		return nil, usageError(err, "the address looks like "+defaultURL)
	}
	if certFile != "" {
		return c, trust(c, certFile)
	}
	return c, nil
}

// trust makes the client accept the certificate of the configuration.
func trust(c *admin.Client, certFile string) error {
	chain, err := os.ReadFile(certFile)
	if err != nil {
		return usageError(fmt.Errorf("admin.tls.cert: %w", err), "")
	}
	if err := c.TrustCertificate(chain); err != nil {
		return usageError(fmt.Errorf("%s: %w", certFile, err), "")
	}
	return nil
}

func readToken(path string) (string, error) {
	tokens, err := admin.LoadTokens(path)
	if err != nil {
		return "", usageError(err, "the relay makes the file (admin.token_file) when it starts for the first time; it can be read by the relay's user only")
	}
	for _, t := range tokens {
		if t.Value() != "" {
			return t.Value(), nil
		}
	}
	return "", usageError(fmt.Errorf("token file %s has hashes alone, and no token to use", path), "set CROSSFADE_TOKEN, or use --token-file with a file of your own that has a token")
}

// urlOf gives the address at which the API that c describes can be reached
// from this machine.
func urlOf(c config.Admin) string {
	scheme := "http"
	if c.TLS.Enabled() {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return scheme + "://" + c.Listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, port))
}

// openFile opens a file that the user named.
func openFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usageError(fmt.Errorf("cannot read the file: %w", err), "")
	}
	return f, nil
}
