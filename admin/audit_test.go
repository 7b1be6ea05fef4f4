package admin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/router"
)

func TestAuditLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := OpenAuditLog(path, AuditOptions{})
	check(t, err)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := l.Record(Record{Time: time.Now(), By: "ada", Action: "x", Object: fmt.Sprint(i % 5), Reason: strings.Repeat("y", 3000), Result: ResultOK}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, l.Close())
	check(t, l.Close())
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	// A crash cut the last line short.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteString(`{"time":"2026-`)
	check(t, err)
	check(t, f.Close())
	l, err = OpenAuditLog(path, AuditOptions{})
	check(t, err)
	defer l.Close()
	check(t, l.Record(Record{By: "ada", Action: "last", Result: ResultOK}))
	var all []Record
	for before := int64(0); ; {
		page, next, err := l.Read(AuditFilter{}, before, 7)
		check(t, err)
		all = append(all, page...)
		if before = next; before == 0 {
			break
		}
	}
	if len(all) != 53 || // two of them tell that the log was opened
		all[0].Action != "last" {
		t.Errorf("%d records, the newest is %+v", len(all), all[0])
	}
	some, _, err := l.Read(AuditFilter{Object: "3"}, 0, 100)
	if err != nil || len(some) != 10 {
		t.Errorf("%d records match, %v", len(some), err)
	}
}

// TestEveryChangeIsRecorded: who, what, why, and how it ended.
func TestEveryChangeIsRecorded(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(adminToken), t.Context()
	_, err := c.SetState(ctx, "anna@example.org", StateChange{State: router.StateSyncing, Reason: "go"})
	check(t, err)
	_, err = c.SetState(ctx, "anna@example.org", StateChange{State: router.StateDone, Reason: "no"})
	wantProblem(t, err, ProblemTransition)
	_, err = c.Act(ctx, id1, "delete", QueueAction{Reason: "spam"})
	check(t, err)
	_, err = c.ImportUsers(ctx, strings.NewReader("address\nx@example.org\n"), ImportOptions{Reason: "more"})
	check(t, err)
	_, err = c.StartCutover(ctx, "cleo@example.org", MoveRequest{})
	check(t, err)
	body, err := c.Export(ctx, id1)
	check(t, err)
	body.Close()
	p, err := c.Audit(ctx, AuditFilter{}, "", 3)
	check(t, err)
	rest, err := c.Audit(ctx, AuditFilter{}, p.Next, 100)
	check(t, err)
	var got []string
	for _, rec := range append(p.Records, rest.Records...) {
		if rec.By == logItself {
			continue
		}
		if rec.By != "ada" || rec.Role != RoleAdmin || rec.Time.IsZero() || rec.Remote == "" {
			t.Errorf("record %+v", rec)
		}
		got = append(got, strings.Join([]string{rec.Action, rec.Object, rec.Reason, rec.Result}, "|"))
	}
	want := []string{
		"export-message|" + string(id1) + "||ok", "start-cutover|cleo@example.org||ok", "import-users||more|ok",
		"delete-message|" + string(id1) + "|spam|ok", "set-state|anna@example.org|no|failed", "set-state|anna@example.org|go|ok",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestNoChangeWithoutRecord: what cannot be recorded is not done, and works
// again when the log does.
func TestNoChangeWithoutRecord(t *testing.T) {
	r := newRig(t, nil)
	c := r.client(adminToken)
	set := func() error {
		_, err := c.SetState(t.Context(), "anna@example.org", StateChange{State: router.StateSyncing})
		return err
	}
	good := r.audit.path
	r.audit.mu.Lock()
	r.audit.f.Close() // the disk fails
	r.audit.failed = os.ErrClosed
	r.audit.path = filepath.Join(filepath.Dir(good), "gone", "audit.log")
	r.audit.mu.Unlock()
	wantProblem(t, set(), ProblemAudit)
	if u, _ := r.table.User(t.Context(), "anna@example.org"); u.State != router.StateOld {
		t.Errorf("the change was made: %+v", u)
	}
	r.audit.mu.Lock()
	r.audit.path = good
	r.audit.mu.Unlock()
	check(t, set())
	if recs := r.records(); len(recs) != 1 {
		t.Errorf("records %+v", recs)
	}
}

func FuzzAuditRead(f *testing.F) {
	line, _ := json.Marshal(Record{By: "a", Action: "b", Result: ResultOK})
	f.Add(line, int64(3))
	f.Add([]byte("\n\n{}\n"), int64(0))
	f.Fuzz(func(t *testing.T, content []byte, before int64) {
		path := filepath.Join(t.TempDir(), "audit.log")
		check(t, os.WriteFile(path, content, 0o600))
		l, err := OpenAuditLog(path, AuditOptions{})
		check(t, err)
		defer l.Close()
		for range len(content) + 2 {
			_, next, err := l.Read(AuditFilter{}, before, 1)
			check(t, err)
			if before = next; next == 0 {
				return
			}
		}
		t.Errorf("the list does not end at %d", before)
	})
}
