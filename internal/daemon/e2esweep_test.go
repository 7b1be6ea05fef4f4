package daemon_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/internal/mailtest"
	"crossfade/router"
)

// stray puts a message into the mailbox of a user on one of the servers, past the
// relay, and waits until the other one has it.
func (w *world) stray(user, folder string, onOld bool, limit time.Duration) {
	w.t.Helper()
	in, out, side := w.new, w.old, "new"
	if onOld {
		in, out, side = w.old, w.new, "old"
	}
	before := len(out.MaildirFiles(w.t, user))
	body := fmt.Appendf(nil, "Received: from mx.outside.test (mx.outside.test [192.0.2.7])\r\n\tby %s.test with ESMTP; Sat, 1 Mar 2025 08:00:00 +0000\r\nSubject: stray %d\r\n\r\nfor %s\r\n", side, before, user)
	in.Append(w.t, user, folder, mailtest.StoredMessage{Body: body})
	poll(w.t, limit, "what reached "+side+" in "+folder+" of "+user, func() (bool, error) {
		return len(out.MaildirFiles(w.t, user)) == before+1, nil
	})
}

// sweepOf is how the sweeps of a user do.
func sweepOf(t *testing.T, c *admin.Client, user string) (st cutover.Status, s cutover.Sweep) {
	t.Helper()
	st, err := c.Move(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	if st.Sweep != nil {
		s = *st.Sweep
	}
	return st, s
}

// awaitFound waits until so much was counted.
func awaitFound(t *testing.T, c *admin.Client, user string, onOld, onNew int) {
	t.Helper()
	poll(t, 5*time.Second, "the count of what was found", func() (bool, error) {
		st, err := c.Move(t.Context(), user)
		if err != nil || st.Sweep == nil {
			return false, err // the relay has only just begun
		}
		return st.Sweep.Old.Count == onOld && st.Sweep.New.Count == onNew, fmt.Errorf("%+v", st.Sweep)
	})
}

// TestStragglersAfterTheFlip: what reaches old's INBOX is on new within two
// seconds, in another folder at the next look, also after a restart within the
// window, and when old was away for a while. Each is there once, and counted.
func TestStragglersAfterTheFlip(t *testing.T) {
	beside(t)
	w := newWorld(t, 2, 5)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("backfill: {tail_interval: 1h}")
	d := w.serve()
	u := w.users[0]
	importUsers(t, d.client, []string{u + ",old,,mailbox,"})
	if _, err := d.client.StartCutover(t.Context(), u, admin.MoveRequest{}); err != nil {
		t.Fatal(err)
	}
	awaitFlip(t, d.client, u)
	w.stray(u, "INBOX", true, 20*time.Second) // by the first look, which begins the watch
	for range 3 {
		w.stray(u, "INBOX", true, 2*time.Second)
	}
	awaitFound(t, d.client, u, 4, 0)
	_, s := sweepOf(t, d.client, u)
	if len(s.Old.From) != 1 || s.Old.From[0].Host != "mx.outside.test [192.0.2.7]" || s.Old.From[0].Count != 4 || s.Waits == "" {
		t.Errorf("%+v", s)
	}
	poll(t, 5*time.Second, "the metric, which is counted behind the record", func() (bool, error) {
		n := w.metric(d, `crossfade_cutover_strays_total\{side="old"\}`)
		return n == 4, fmt.Errorf("the metrics know of %v stragglers", n)
	})
	d.stop()
	w.old.Append(t, u, "INBOX", mailtest.StoredMessage{Body: []byte("Subject: while the relay was off\r\n\r\nx\r\n")})

	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("backfill: {tail_interval: 1s}")
	d = w.serve()
	awaitFound(t, d.client, u, 5, 0)
	w.stray(u, "INBOX.Later", true, 10*time.Second)
	w.old.Stop(t)
	poll(t, 20*time.Second, "the news that old is away", func() (bool, error) {
		st, s := sweepOf(t, d.client, u)
		return s.Err != "" && st.Err == "" && st.Phase == cutover.PhaseDone && s.Waits != "", fmt.Errorf("%+v", s)
	})
	w.old.Start(t)
	w.stray(u, "INBOX", true, 60*time.Second)
	awaitFound(t, d.client, u, 7, 0)
	w.twice(u)
}

// twice fails the test when a message is in a mailbox of the user twice.
func (w *world) twice(users ...string) {
	w.t.Helper()
	for _, u := range users {
		for side, files := range map[string][]string{"old": w.old.MaildirFiles(w.t, u), "new": w.new.MaildirFiles(w.t, u)} {
			seen := map[string]bool{}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					w.t.Fatal(err)
				}
				if seen[string(b)] && !strings.Contains(string(b), "past-") { // some past mail is there twice
					w.t.Errorf("twice on %s of %s: %.200q", side, u, b)
				}
				seen[string(b)] = true
			}
		}
	}
}

// TestMailOfColleaguesOnNew: what the new system delivers to itself for users who
// read old is carried there: for those who have not begun, and those who are ready.
// It does not come back, and is there once after the flip.
func TestMailOfColleaguesOnNew(t *testing.T) {
	beside(t)
	w := newWorld(t, 3, 5)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("backfill: {tail_interval: 2s}")
	d := w.serve()
	idle, ready := w.users[0], w.users[1]
	importUsers(t, d.client, []string{idle + ",old,,mailbox,", ready + ",old,,mailbox,"})
	if _, err := d.client.RunBackfill(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	w.awaitReady(d, ready)
	for _, u := range []string{idle, ready} {
		w.stray(u, "INBOX", false, 90*time.Second) // who was imported is taken up within tail_interval
		w.stray(u, "INBOX", false, 10*time.Second) // the watch begins behind the first look
		for range 2 {
			w.stray(u, "INBOX", false, 2*time.Second)
		}
		w.stray(u, "Work", false, 10*time.Second)
		awaitFound(t, d.client, u, 0, 5)
	}
	for _, u := range []string{idle, ready} {
		before := len(w.old.MaildirFiles(t, u))
		if _, err := d.client.StartCutover(t.Context(), u, admin.MoveRequest{}); err != nil {
			t.Fatal(err)
		}
		awaitFlip(t, d.client, u)
		w.stray(u, "INBOX", true, 20*time.Second)
		if o, n := len(w.old.MaildirFiles(t, u)), len(w.new.MaildirFiles(t, u)); o != before+1 || n != o {
			t.Errorf("%s has %d messages on old, %d on new, want %d", u, o, n, before+1)
		}
		awaitFound(t, d.client, u, 1, 5)
	}
	w.twice(idle, ready)
}

// TestWindowCloses: after two looks that found nothing and a comparison the user is
// done, and old is not looked at any more. He was set new by hand: what nobody
// copied before is copied by the sweep.
func TestWindowCloses(t *testing.T) {
	beside(t)
	w := newWorld(t, 1, 8)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("backfill: {tail_interval: 1s}\ncutover: {window: 10s}")
	d := w.serve()
	u := w.users[0]
	importUsers(t, d.client, []string{u + ",new,,mailbox,"})
	poll(t, 10*time.Second, "the first look", func() (bool, error) {
		st, err := d.client.Move(t.Context(), u)
		return err == nil && st.Sweep != nil && st.Sweep.Waits != "", err
	})
	if _, err := d.client.SetState(t.Context(), u, admin.StateChange{State: router.StateDone}); err == nil {
		t.Error("a window was closed by hand before its end")
	}
	poll(t, 30*time.Second, "the end of the window", func() (bool, error) {
		st, s := sweepOf(t, d.client, u)
		return st.State == router.StateDone, fmt.Errorf("%+v", s)
	})
	if o, n := len(w.old.MaildirFiles(t, u)), len(w.new.MaildirFiles(t, u)); o != n || n == 0 {
		t.Errorf("%d messages are on old, %d on new", o, n)
	}
	if _, s := sweepOf(t, d.client, u); !s.Uncopied || s.Old.Count != 0 || s.Waits != "" {
		t.Errorf("%+v", s)
	}
}
