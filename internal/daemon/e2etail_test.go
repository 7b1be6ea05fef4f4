package daemon_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/internal/mailtest"
	"crossfade/router"
)

// TestTailOfReadyUsers: what reaches the old mailbox of a ready user is on new
// within two seconds, also after the old server was started anew, and in a
// folder that nobody listens to at the next look at all of them.
func TestTailOfReadyUsers(t *testing.T) {
	w := newWorld(t, 2, 3)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("backfill: {tail_interval: 1h}")
	d := w.serve()
	var lines []string
	for _, u := range w.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, d.client, lines)
	for _, u := range w.users {
		if _, err := d.client.RunBackfill(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	u := w.users[1]
	w.awaitReady(d, w.users...)
	// Ready is said before the watch begins; the first message may be carried by
	// the pass that belongs to that.
	w.arrives(u, "INBOX", 10*time.Second)
	for range 3 {
		for _, u := range w.users {
			w.arrives(u, "INBOX", 2*time.Second)
		}
	}
	w.old.Stop(t)
	w.old.Start(t)
	w.arrives(u, "INBOX", 20*time.Second) // the pause after a connection that was refused
	w.arrives(u, "INBOX", 2*time.Second)
	if n := w.metric(d, "crossfade_backfill_tail_lag_seconds_count"); n < 7 {
		t.Errorf("the lag of %v passes was observed, want 7 or more", n)
	}
	d.stop()

	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("backfill: {tail_interval: 1s, tail_connections: 0}")
	d = w.serve()
	w.awaitReady(d, w.users...)
	w.arrives(u, "INBOX.Later", 20*time.Second)
	w.arrives(u, "INBOX", 20*time.Second)
	if n := w.metric(d, "crossfade_backfill_tail_lag_seconds_count"); n != 0 {
		t.Errorf("nobody listens, and the lag of %v passes was observed", n)
	}
}

// extend puts a section at the end of the configuration.
func (w *world) extend(section string) {
	w.t.Helper()
	b, err := os.ReadFile(w.cfgPath)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("crossfade.yaml", string(b)+section+"\n")
}

func (w *world) awaitReady(d *running, users ...string) {
	w.t.Helper()
	for _, u := range users {
		poll(w.t, 30*time.Second, u+" in sync", func() (bool, error) {
			st, err := d.client.Move(w.t.Context(), u)
			if err == nil && st.Err != "" {
				err = errors.New(st.Err)
			}
			return err == nil && st.State == router.StateReady && st.Phase == cutover.PhaseReady, err
		})
	}
}

// arrives puts a message into a folder of the old mailbox, and waits until there
// is one more in the new mailbox.
func (w *world) arrives(user, folder string, limit time.Duration) {
	w.t.Helper()
	before := len(w.new.MaildirFiles(w.t, user))
	w.old.Append(w.t, user, folder, mailtest.StoredMessage{Body: fmt.Appendf(nil, "Subject: after %d\r\n\r\nto %s\r\n", before, folder)})
	poll(w.t, limit, "a message in "+folder+" of "+user, func() (bool, error) {
		return len(w.new.MaildirFiles(w.t, user)) == before+1, nil
	})
}

// metric reads one figure of the metrics.
func (w *world) metric(d *running, name string) float64 {
	t := w.t
	t.Helper()
	tokens, err := admin.LoadTokens(filepath.Join(w.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.d.AdminURL()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tokens[0].Value())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s among the metrics (%s)", name, strings.SplitN(string(b), "\n", 2)[0])
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
