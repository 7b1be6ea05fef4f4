package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/audit/seal"
	"crossfade/backfill"
	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// world is a relay of which only the records are there.
type world struct {
	*testing.T
	box     []journal.Batch
	queued  map[mail.ID]queue.Entry
	users   []router.User
	history []router.Change
	a       *Auditor
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, queued: map[mail.ID]queue.Entry{}}
	dir, err := journal.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	w.a = &Auditor{Journal: &journal.Journal{Outbox: w, Shelf: dir}, Queue: w, Users: w, Key: key, Hostname: "mx.example.org", Version: "test", TempDir: t.TempDir()}
	for _, u := range []string{"ann", "bob", "quiet"} {
		w.users = append(w.users, router.User{Address: u + "@example.org", Kind: router.KindMailbox, State: router.StateNew, Epoch: 4})
	}
	return w
}

// Pending implements journal.Outbox.
func (w *world) Pending(_ context.Context, after uint64, _ int) (out []journal.Batch, _ error) {
	for _, b := range w.box {
		if b.Number > after {
			out = append(out, b)
		}
	}
	return out, nil
}

// Forget implements journal.Outbox.
func (w *world) Forget(context.Context, uint64) error { return nil }

// List implements Queue.
func (w *world) List(context.Context, queue.Filter, string, int) (out []queue.Entry, _ string, _ error) {
	for _, e := range w.queued {
		out = append(out, e)
	}
	return out, "", nil
}

// Get implements Queue.
func (w *world) Get(_ context.Context, id mail.ID) (queue.Entry, error) {
	if e, ok := w.queued[id]; ok {
		return e, nil
	}
	return queue.Entry{}, queue.ErrNotFound
}

// User implements Users.
func (w *world) User(_ context.Context, key string) (router.User, error) {
	for _, u := range w.users {
		if u.Address == key {
			return u, nil
		}
	}
	return router.User{}, router.ErrNoUser
}

// Users implements Users.
func (w *world) Users(context.Context, router.Filter, string, int) ([]router.User, string, error) {
	return w.users, "", nil
}

// History implements Users.
func (w *world) History(context.Context, string, int) ([]router.Change, error) { return w.history, nil }

// CountUsers implements Users.
func (w *world) CountUsers(context.Context) (map[router.State]int, error) {
	n := map[router.State]int{}
	for _, u := range w.users {
		n[u.State]++
	}
	return n, nil
}

func (w *world) write(e journal.Entry) {
	e.At = time.Now().UTC().Truncate(time.Millisecond)
	w.box = append(w.box, journal.Batch{Number: uint64(len(w.box) + 1), Lines: e.Line()})
}

// accept writes the acceptance of a message to some users.
func (w *world) accept(users ...string) mail.ID {
	id := mail.NewID()
	e := journal.Entry{Kind: journal.Accepted, ID: id, From: "s@example.com", MessageID: "<" + string(id) + "@example.com>"}
	for _, u := range users {
		e.Rcpts = append(e.Rcpts, journal.Rcpt{To: u + "@example.org", User: u + "@example.org"})
	}
	w.write(e)
	return id
}

func (w *world) became(kind journal.Kind, id mail.ID, n int, user string) {
	w.write(journal.Entry{Kind: kind, ID: id, N: n, User: user + "@example.org", To: user + "@example.org", Route: mail.New, Epoch: 4,
		Attempt: 1, Reply: "250 2.0.0 Ok: queued as ABCDEF", Notice: "NOTICE", By: "ann"})
}

func (w *world) wait(state queue.State, id mail.ID, n int, user string, second bool) {
	w.queued[id] = queue.Entry{Envelope: &mail.Envelope{ID: id},
		Rcpts: []queue.Rcpt{{Recipient: mail.Recipient{User: user + "@example.org"}, N: n, State: state, Copy: second}}}
}

func (w *world) run(req Request) *Document {
	w.Helper()
	d, err := w.a.Run(w.Context(), req, nil)
	if err != nil {
		w.Fatal(err)
	}
	return d
}

func (w *world) account(d *Document, user string) Account {
	w.Helper()
	for _, a := range d.Users {
		if a.User == user+"@example.org" {
			return a
		}
	}
	w.Fatalf("%s is not in the audit", user)
	return Account{}
}

// TestEquation puts a message through each of its ways.
func TestEquation(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *world, id mail.ID)
		want Account // what is not 0 but Accepted
		kind DifferenceKind
	}{
		{"delivered", func(w *world, id mail.ID) { w.became(journal.Delivered, id, 0, "ann") }, Account{Delivered: 1}, ""},
		{"deferred, then delivered", func(w *world, id mail.ID) {
			w.became(journal.Deferred, id, 0, "ann")
			w.became(journal.Delivered, id, 0, "ann")
		}, Account{Delivered: 1}, ""},
		{"bounced", func(w *world, id mail.ID) { w.became(journal.Bounced, id, 0, "ann") }, Account{Bounced: 1}, Bounced},
		{"removed", func(w *world, id mail.ID) { w.became(journal.Deleted, id, 0, "ann") }, Account{Removed: 1}, Removed},
		{"queued", func(w *world, id mail.ID) { w.wait(queue.Queued, id, 0, "ann", false) }, Account{Queued: 1}, ""},
		{"held", func(w *world, id mail.ID) { w.wait(queue.Held, id, 0, "ann", false) }, Account{Queued: 1}, ""},
		{"parked", func(w *world, id mail.ID) {
			w.became(journal.Parked, id, 0, "ann")
			w.wait(queue.Parked, id, 0, "ann", false)
		}, Account{Parked: 1}, ""},
		{"withdrawn", func(w *world, id mail.ID) { w.write(journal.Entry{Kind: journal.Withdrawn, ID: id}) }, Account{Withdrawn: 1}, ""},
		{"delivered, and a copy waits", func(w *world, id mail.ID) {
			w.became(journal.Delivered, id, 0, "ann")
			w.wait(queue.Queued, id, 0, "ann", true)
		}, Account{Delivered: 1}, ""},
		{"delivered, and a copy too", func(w *world, id mail.ID) {
			w.became(journal.Delivered, id, 0, "ann")
			w.write(journal.Entry{Kind: journal.Delivered, ID: id, User: "ann@example.org", Copy: true})
		}, Account{Delivered: 1, Copies: 1}, ""},
		{"missing", func(*world, mail.ID) {}, Account{Missing: 1}, Missing},
		{"delivered for another recipient", func(w *world, id mail.ID) { w.became(journal.Delivered, id, 1, "bob") }, Account{Missing: 1}, Missing},
		{"twice", func(w *world, id mail.ID) {
			w.became(journal.Delivered, id, 0, "ann")
			w.became(journal.Delivered, id, 0, "ann")
		}, Account{Delivered: 1}, Twice},
		{"delivered and bounced", func(w *world, id mail.ID) {
			w.became(journal.Delivered, id, 0, "ann")
			w.became(journal.Bounced, id, 0, "ann")
		}, Account{Delivered: 1}, Conflict},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			id := w.accept("ann", "bob")
			if tt.name != "delivered for another recipient" {
				w.became(journal.Delivered, id, 1, "bob")
			}
			tt.do(w, id)
			d := w.run(Request{})
			got := w.account(d, "ann")
			differences := got.Differences
			tt.want.User, tt.want.State, tt.want.Accepted = "ann@example.org", "new", 1
			got.Differences = nil
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("account\n%+v, want\n%+v", got, tt.want)
			}
			if tt.kind == "" != (len(differences) == 0) || tt.kind != "" && (differences[0].Kind != tt.kind || differences[0].ID != id) {
				t.Errorf("differences %+v, want %q", differences, tt.kind)
			}
			bad := slices.Contains([]DifferenceKind{Missing, Twice, Conflict}, tt.kind)
			if d.Clean == bad || d.Total.Accepted != 2 {
				t.Errorf("clean %t, total %+v", d.Clean, d.Total)
			}
			if q := w.account(d, "quiet"); q.Accepted != 0 || !q.Clean() {
				t.Errorf("who got no mail: %+v", q)
			}
		})
	}
}

// What was accepted before there was a journal is no difference.
func TestBeforeTheJournal(t *testing.T) {
	w := newWorld(t)
	early := mail.ID("01ARZ3NDEKTSV4RRFFQ69G5FAV") // of 2016
	w.became(journal.Delivered, early, 0, "ann")
	d := w.run(Request{})
	if a := w.account(d, "ann"); a.Accepted != 1 || a.Before != 1 || a.Delivered != 1 || !d.Clean {
		t.Fatalf("%+v", a)
	}
	w.accept("bob")
	late := mail.ID(strings.Replace(string(mail.NewID()), "0", "1", 1)) // of the future
	w.became(journal.Delivered, late, 0, "ann")
	d = w.run(Request{})
	if a := w.account(d, "ann"); d.Clean || a.Differences[0].Kind != Unrecorded {
		t.Fatalf("%+v", a)
	}
}

// boxes are the mailboxes of TestLook.
type boxes struct {
	places  map[string][2][]backfill.Place // by queue id: old, new
	anew    []backfill.Anew                // on new
	folders map[string]uint32              // of new
	settled map[string]Settled
	oldErr  error
	newErr  error
	unread  int // on old
	unseen  int // on new, the same
	asked   []mail.Route
}

// Reads implements Mailboxes.
func (b *boxes) Reads(context.Context, string) (mail.Route, error) { return mail.New, nil }

// Settled implements Mailboxes.
func (b *boxes) Settled(context.Context) (map[string]Settled, error) { return b.settled, nil }

// Traced implements Mailboxes.
func (b *boxes) Traced(_ context.Context, _ string, side mail.Route, keep func(string) bool) (t backfill.Traced, err error) {
	b.asked = append(b.asked, side)
	i := 0
	t.Places, t.Folders, t.Unread, err = map[string][]backfill.Place{}, map[string]uint32{"INBOX": 1}, b.unread, b.oldErr
	if side == mail.New {
		i, t.Anew, t.Folders, t.Unread, err = 1, b.anew, b.folders, b.unseen, b.newErr
	}
	for id, p := range b.places {
		if keep(id) && p[i] != nil {
			t.Places[id] = p[i]
		}
	}
	return t, err
}

func TestLook(t *testing.T) {
	place := []backfill.Place{{Folder: "INBOX", UID: 1}}
	pairedTo := func(wire string, validity uint32) []backfill.Place {
		return []backfill.Place{{Folder: "INBOX", UID: 1, Paired: true, Twin: backfill.Twin{Wire: wire, Validity: validity}}}
	}
	copied := pairedTo("INBOX", 7)
	later, earlier := time.Now().Add(time.Hour).UTC(), time.Now().Add(-time.Hour).UTC()
	anew := []backfill.Anew{{Folder: "INBOX", Was: 7, Now: 8, At: later}}
	settled := map[string]Settled{"ann@example.org": {By: "op", Reason: "x", Anew: anew, At: later}}
	type at = [2][]backfill.Place
	for _, tt := range []struct {
		name  string
		to    mail.Route
		at    at
		boxes boxes
		want  Look
		clean bool
	}{
		{"on new", mail.New, at{nil, place}, boxes{}, Look{There: 1}, true},
		{"on both", mail.New, at{copied, copied}, boxes{}, Look{There: 1}, true},
		{"copied, and deleted there", mail.Old, at{copied, nil}, boxes{}, Look{Deleted: 1}, true},
		{"copied to a folder that the user did away with", mail.Old, at{pairedTo("Work", 9), nil}, boxes{}, Look{Deleted: 1}, true},
		{"left behind", mail.Old, at{place, nil}, boxes{}, Look{Behind: 1}, false},
		{"twice", mail.New, at{nil, append(place, place...)}, boxes{}, Look{There: 1, Twice: 1}, false},
		{"nowhere", mail.New, at{}, boxes{}, Look{Gone: 1}, true},
		{"nowhere, of old", mail.Old, at{}, boxes{}, Look{Gone: 1}, true},

		{"old cannot be looked into", mail.Old, at{}, boxes{oldErr: errors.New("off")}, Look{Unknown: 1}, false},
		{"of old some cannot be read", mail.Old, at{}, boxes{unread: 1}, Look{Unknown: 1}, false},
		{"of new some cannot be read", mail.New, at{}, boxes{unseen: 1}, Look{Unknown: 1}, false},
		{"of new some cannot be read, and it is there", mail.New, at{nil, place}, boxes{unseen: 1}, Look{There: 1}, true},
		{"old cannot be looked into, and it was never there", mail.New, at{}, boxes{oldErr: errors.New("off")}, Look{Gone: 1}, true},
		{"old cannot be looked into, and nobody needs it", mail.Old, at{nil, place}, boxes{oldErr: errors.New("off")}, Look{There: 1}, true},

		{"delivered, and new made anew since", mail.New, at{}, boxes{anew: anew}, Look{Missing: 1}, false},
		{"delivered, and new made anew before", mail.New, at{}, boxes{anew: []backfill.Anew{{Folder: "INBOX", Was: 7, Now: 8, At: earlier}}}, Look{Gone: 1}, true},
		{"copied, and the folder made anew", mail.Old, at{copied, nil}, boxes{anew: anew, folders: map[string]uint32{"INBOX": 8}}, Look{Missing: 1}, false},
		{"copied to a folder that is gone with the mailbox", mail.Old, at{pairedTo("Work", 9), nil}, boxes{anew: anew, folders: map[string]uint32{"INBOX": 8}}, Look{Missing: 1}, false},
		{"copied to another folder, which is the same", mail.Old, at{pairedTo("Work", 9), nil}, boxes{anew: anew, folders: map[string]uint32{"INBOX": 8, "Work": 9}}, Look{Deleted: 1}, true},
		{"copied, and the UIDs went back", mail.Old, at{copied, nil}, boxes{anew: []backfill.Anew{{Folder: "INBOX", Was: 7, Now: 7, At: later}}}, Look{Missing: 1}, false},
		{"restored with other UIDs", mail.New, at{nil, place}, boxes{anew: anew}, Look{There: 1}, true},
		{"made anew, and settled", mail.New, at{}, boxes{anew: anew, settled: settled}, Look{Gone: 1}, true},
		{"copied, made anew, and settled", mail.Old, at{copied, nil}, boxes{anew: anew, settled: settled, folders: map[string]uint32{"INBOX": 8}}, Look{Deleted: 1}, true},
		{"settled, and made anew again", mail.New, at{}, boxes{anew: []backfill.Anew{{Folder: "INBOX", Was: 8, Now: 9, At: later}}, settled: settled}, Look{Missing: 1}, false},
	} {
		w := newWorld(t)
		id := w.accept("ann")
		w.write(journal.Entry{Kind: journal.Delivered, ID: id, User: "ann@example.org", To: "ann@example.org", Route: tt.to})
		b := &tt.boxes
		if b.folders == nil {
			b.folders = map[string]uint32{"INBOX": 7}
		}
		b.places = map[string][2][]backfill.Place{string(id): tt.at, "OTHER": {nil, place}}
		w.a.Mailboxes = b
		d := w.run(Request{Mailboxes: true})
		got := *w.account(d, "ann").Look
		counts := func(l Look) string {
			return fmt.Sprintf("there %d, deleted %d, gone %d, behind %d, missing %d, unknown %d, twice %d", l.There, l.Deleted, l.Gone, l.Behind, l.Missing, l.Unknown, l.Twice)
		}
		if counts(got) != counts(tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, counts(got), counts(tt.want))
		}
		if d.Clean != tt.clean {
			t.Errorf("%s: clean is %t", tt.name, d.Clean)
		}
		if counts(*d.Total.Look) != counts(got) {
			t.Errorf("%s: the total is %s", tt.name, counts(*d.Total.Look))
		}
		if acct := w.account(d, "ann"); !tt.clean && (len(acct.All()) != 1 || acct.All()[0].ID != id) {
			t.Errorf("%s: it is not named: %+v", tt.name, acct.All())
		}
		if slices.Contains(b.asked, mail.Old) != (tt.want.There == 0) {
			t.Errorf("%s: looked into %v", tt.name, b.asked)
		}
	}
	w := newWorld(t)
	w.became(journal.Delivered, w.accept("ann"), 0, "ann")
	w.a.Mailboxes = &boxes{newErr: errors.New("wrong password")}
	if d := w.run(Request{Mailboxes: true}); d.Clean || w.account(d, "ann").Look.Error != "wrong password" {
		t.Errorf("a mailbox that cannot be read: %+v", d.Users)
	}
}

// TestManyDifferences: the time for what a look found grows with it and no faster, and what the journal tells is not
// written over.
func TestManyDifferences(t *testing.T) {
	ids := make([]mail.ID, 20_000)
	own := make([]Difference, 1, 50_000)
	a := &Account{Differences: own, Look: &Look{MissingIDs: ids, TwiceIDs: ids[:1]}}
	if allocs := testing.AllocsPerRun(1, func() { a.All() }); allocs > 100 {
		t.Errorf("%.0f allocations", allocs)
	}
	if all := a.All(); len(all) != len(ids)+2 || all[1].Kind != Missing || all[len(all)-1].Kind != Twice || own[:2][1] != (Difference{}) {
		t.Errorf("%d differences", len(all))
	}
}

// The document says what was changed, and so does that of one user.
func TestDocument(t *testing.T) {
	w := newWorld(t)
	for range 20 {
		w.became(journal.Delivered, w.accept("ann"), 0, "ann")
		w.became(journal.Delivered, w.accept("bob"), 0, "bob")
	}
	d := w.run(Request{})
	one, ok, err := d.ForUser("bob@example.org", w.a.Key)
	if err != nil || !ok || one.Total.Accepted != 20 {
		t.Fatalf("%+v, %t, %v", one, ok, err)
	}
	for _, d := range []*Document{d, one} {
		data, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if whole, err := json.MarshalIndent(d, "", " "); err != nil || string(data) != string(whole)+"\n" {
			t.Errorf("written user by user it is\n%s\nwant\n%s", data, whole)
		}
		back, result, err := Read(data, w.a.Key.Public())
		if err != nil || !result.OK() || !back.Clean {
			t.Fatalf("%+v, %v", result, err)
		}
		for from, want := range map[string]string{
			`"user": "bob@example.org",` + "\n" + `   "state": "new",` + "\n" + `   "accepted": 20`: "(bob@example.org) was changed",
			`"clean": true`:       "clean was changed",
			`"kind": "crossfade`:  "", // no audit any more
			`"first_batch": 1`:    "journal/first_batch was changed",
			`"hostname": "mx.exa`: "hostname was changed",
		} {
			bad := bytes.Replace(data, []byte(from), []byte(strings.NewReplacer("20", "21", "true", "false", "crossfade", "crossfadf", ": 1", ": 2", "mx", "my").Replace(from)), 1)
			if bytes.Equal(bad, data) {
				t.Fatalf("%q is not in %s", from, data)
			}
			_, result, err := Read(bad, "")
			if want == "" {
				if err == nil {
					t.Errorf("%s was read", from)
				}
			} else if !strings.Contains(strings.Join(result.Wrong, "; "), want) {
				t.Errorf("%s: %+v, %v", from, result, err)
			}
		}
	}
	if _, ok, _ := d.ForUser("nobody@example.org", w.a.Key); ok {
		t.Error("a document about nobody")
	}
}

// Some users only.
func TestSomeUsers(t *testing.T) {
	w := newWorld(t)
	id := w.accept("ann", "bob")
	w.became(journal.Delivered, id, 0, "ann")
	d := w.run(Request{Users: []string{"ann@example.org"}})
	if len(d.Users) != 1 || !d.Clean || d.Total.Accepted != 1 {
		t.Fatalf("%+v", d)
	}
	if d := w.run(Request{Users: []string{"quiet@example.org"}}); len(d.Users) != 1 || !d.Clean {
		t.Errorf("who got no mail: %+v", d)
	}
	if d, err := w.a.Run(t.Context(), Request{Users: []string{"ann@example.org", "anm@example.org"}}, nil); err == nil || !strings.Contains(err.Error(), "anm@example.org is in no table") {
		t.Errorf("a user who is none: %+v, %v", d, err)
	}
}
