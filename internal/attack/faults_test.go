package attack

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The tests of faults*_test.go break what the relay leans on: the DNS, the keys that
// it finds there, the organisation's scanner, certificates, the authority that it has
// them of. Through each fault goes mail; nothing that is answered with 250 is lost,
// and an operator hears of it by /readyz and the metrics.

// readyz asks what an orchestrator asks.
func (f *front) readyz() (status int, warnings string) {
	f.t.Helper()
	resp, err := http.Get(f.d.AdminURL() + "/readyz")
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var out struct{ Warnings []string }
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		f.t.Fatal(err)
	}
	return resp.StatusCode, strings.Join(out.Warnings, "; ")
}

// metrics gives the lines of the metrics.
func (f *front) metrics() []string {
	f.t.Helper()
	resp, err := http.Get(f.d.AdminURL() + "/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Split(string(b), "\n")
}

// counts tells whether the metrics have a line that begins so and is not zero.
func (f *front) counts(begins string) bool {
	f.t.Helper()
	return slices.ContainsFunc(f.metrics(), func(l string) bool {
		return strings.HasPrefix(l, begins) && !strings.HasSuffix(l, " 0")
	})
}

// give hands a message over, under TLS where there is a configuration for it, and
// gives the last reply: that to the message, or the first refusal.
func give(addr, sender, message string, conf *tls.Config) (reply string, err error) {
	k, err := dialTalk(addr)
	if err != nil {
		return "", err
	}
	defer func() { k.close() }()
	lines := []string{"", "EHLO client.test"}
	if conf != nil {
		if err := k.cmds("", "220", "EHLO client.test", "250", "STARTTLS", "220"); err != nil {
			return "", err
		}
		tc := tls.Client(k.conn, conf)
		if err := tc.Handshake(); err != nil {
			return "", err
		}
		k.conn, lines = tc, lines[1:]
	}
	for _, l := range append(lines, "MAIL FROM:<"+sender+">", "RCPT TO:<"+target+">", "DATA") {
		if reply, err = k.cmd(l, ""); err != nil || reply[0] > '3' {
			return reply, err
		}
	}
	return k.cmd(message+".", "")
}

// letterOf is a message with a subject to know it by.
func letterOf(domain, id string) string {
	return "From: Ann <ann@" + domain + ">\r\nTo: " + target + "\r\nSubject: " + id + ".\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <" + id + "@" + domain + ">\r\n\r\nbody\r\n"
}

// asSent tells whether a message arrived with the bytes that were sent, and gives
// what is above them.
func asSent(arrived []byte, sent string) (top string, err error) {
	t, ok := bytes.CutSuffix(arrived, []byte(sent))
	if !ok {
		return "", errors.New("below our header there is not what was sent")
	}
	return string(t), nil
}

// closedPort is an address at which nobody listens.
const closedPort = "127.0.0.1:1"

// atOnce runs tests that wait for most of their time, all at once: t.Parallel runs as
// many as there are processors.
func atOnce[T any](t *testing.T, list []T, name func(T) string, f func(*testing.T, T)) {
	t.Helper()
	var wg sync.WaitGroup
	for _, x := range list {
		wg.Go(func() { t.Run(name(x), func(t *testing.T) { f(t, x) }) })
	}
	wg.Wait()
}
