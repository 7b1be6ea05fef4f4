package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// TestBadInput sends what a client may get wrong, and looks that the type of
// the problem is the one promised and that nothing was done.
func TestBadInput(t *testing.T) {
	r := newRig(t, nil)
	long := strings.Repeat("x", maxBody)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		kind                     string
		detail                   string
	}{
		{"unknown field", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing","colour":"red"}`, 422, ProblemInvalid, "colour"},
		{"wrong type", "PUT", "/v1/users/anna@example.org/state", `{"state":7}`, 422, ProblemInvalid, "body.state"},
		{"null", "PUT", "/v1/users/anna@example.org/state", `null`, 422, ProblemInvalid, "body"},
		{"array", "PUT", "/v1/users/anna@example.org/state", `[]`, 422, ProblemInvalid, "body"},
		{"unknown state", "PUT", "/v1/users/anna@example.org/state", `{"state":"moving"}`, 422, ProblemInvalid, "body.state"},
		{"wrong case", "PUT", "/v1/users/anna@example.org/state", `{"state":"Syncing"}`, 422, ProblemInvalid, "body.state"},
		{"negative epoch", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing","epoch":-1}`, 422, ProblemInvalid, "body.epoch"},
		{"wrong epoch", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing","epoch":9}`, 409, ProblemWrongEpoch, "epoch 9"},
		{"no such way", "PUT", "/v1/users/anna@example.org/state", `{"state":"done"}`, 409, ProblemTransition, "from old"},
		{"held without force", "PUT", "/v1/users/cleo@example.org/state", `{"state":"cutover"}`, 409, ProblemNeedsForce, "holds"},
		{"alias has no state", "PUT", "/v1/users/info@example.org/state", `{"state":"syncing"}`, 409, ProblemRefused, "mailbox"},
		{"foreign domain", "PUT", "/v1/users/anna@example.com/state", `{"state":"syncing"}`, 409, ProblemRefused, "domains"},
		{"no JSON", "PUT", "/v1/users/anna@example.org/state", `{"state":`, 400, ProblemBadRequest, ""},
		{"two values", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing"} {}`, 400, ProblemBadRequest, ""},
		{"name twice", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing","State":"old"}`, 400, ProblemBadRequest, "twice"},
		{"no body", "PUT", "/v1/users/anna@example.org/state", ``, 400, ProblemBadRequest, "required"},
		{"huge body", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing","reason":"` + long + `"}`, 413, ProblemTooLarge, ""},
		{"long reason", "PUT", "/v1/users/anna@example.org/state", `{"state":"syncing","reason":"` + long[:2000] + `"}`, 422, ProblemInvalid, "body.reason"},
		{"content type", "PUT", "text/plain /v1/users/anna@example.org/state", `{"state":"syncing"}`, 415, ProblemMediaType, ""},
		{"bad address", "GET", "/v1/users/anna", ``, 422, ProblemInvalid, "domain"},
		{"no such user", "GET", "/v1/users/zoe@example.org", ``, 404, ProblemNoUser, "zoe"},
		{"no such history", "GET", "/v1/users/zoe@example.org/history", ``, 404, ProblemNoUser, "zoe"},
		{"unknown parameter", "GET", "/v1/users?colour=red", ``, 422, ProblemInvalid, "colour"},
		{"limit", "GET", "/v1/users?limit=100000", ``, 422, ProblemInvalid, "limit"},
		{"limit word", "GET", "/v1/users?limit=many", ``, 422, ProblemInvalid, "limit"},
		{"state parameter", "GET", "/v1/users?state=gone", ``, 422, ProblemInvalid, "state"},
		{"patch time", "PATCH", "/v1/users/anna@example.org", `{"not_before":"tomorrow"}`, 422, ProblemInvalid, "RFC 3339"},
		{"patch epoch", "PATCH", "/v1/users/anna@example.org", `{"wave":"x","epoch":1}`, 409, ProblemWrongEpoch, "epoch"},
		{"patch state", "PATCH", "/v1/users/anna@example.org", `{"state":"new"}`, 422, ProblemInvalid, "state"},
		{"patch targets of mailbox", "PATCH", "/v1/users/anna@example.org", `{"targets":["bert@example.org"]}`, 422, ProblemInvalid, "target"},
		{"patch loop", "PATCH", "/v1/users/info@example.org", `{"targets":["info@example.org"]}`, 422, ProblemInvalid, "loop"},
		{"patch alias wave", "PATCH", "/v1/users/info@example.org", `{"wave":"x"}`, 422, ProblemInvalid, "kind"},
		{"delete needs force", "DELETE", "/v1/users/bert@example.org", ``, 409, ProblemNeedsForce, "new"},
		{"delete epoch", "DELETE", "/v1/users/anna@example.org?epoch=9", ``, 409, ProblemWrongEpoch, ""},
		{"route without rcpt", "GET", "/v1/route", ``, 422, ProblemInvalid, "rcpt"},
		{"no such message", "GET", "/v1/queue/" + string(mail.NewID()), ``, 404, ProblemNoMessage, ""},
		{"no id", "GET", "/v1/queue/1234", ``, 404, ProblemNoMessage, ""},
		{"no message to delete", "DELETE", "/v1/queue/" + string(mail.NewID()), ``, 404, ProblemNoMessage, ""},
		{"reroute nowhere", "POST", "/v1/queue/" + string(id1) + "/reroute", `{}`, 422, ProblemInvalid, "route"},
		{"reroute out", "POST", "/v1/queue/" + string(id1) + "/reroute", `{"route":"out"}`, 422, ProblemInvalid, "route"},
		{"retry with route", "POST", "/v1/queue/" + string(id1) + "/retry", `{"route":"new"}`, 422, ProblemInvalid, "route"},
		{"unknown verb", "POST", "/v1/queue/" + string(id1) + "/explode", `{}`, 404, ProblemNotFound, ""},
		{"apply to all unsaid", "POST", "/v1/queue:apply", `{"filter":{},"action":"delete"}`, 422, ProblemInvalid, "empty"},
		{"apply unknown verb", "POST", "/v1/queue:apply", `{"filter":{"state":"held"},"action":"explode"}`, 422, ProblemInvalid, "action"},
		{"apply unknown filter", "POST", "/v1/queue:apply", `{"filter":{"colour":"red"},"action":"retry"}`, 422, ProblemInvalid, "colour"},
		{"apply bad id", "POST", "/v1/queue:apply", `{"filter":{"ids":["x"]},"action":"retry"}`, 422, ProblemInvalid, "id"},
		{"apply bad user", "POST", "/v1/queue:apply", `{"filter":{"user":"x"},"action":"retry"}`, 422, ProblemInvalid, "user"},
		{"filter state", "GET", "/v1/queue?state=lost", ``, 422, ProblemInvalid, "state"},
		{"filter time", "GET", "/v1/queue?before=yesterday", ``, 422, ProblemInvalid, "before"},
		{"wave unknown", "POST", "/v1/waves/nine/cutover", ``, 404, ProblemNoUser, "nine"},
		{"move foreign", "POST", "/v1/users/anna@example.com/cutover", ``, 409, ProblemRefused, "domains"},
		{"move unknown field", "POST", "/v1/users/anna@example.org/cutover", `{"fast":true}`, 422, ProblemInvalid, "fast"},
		{"no move", "GET", "/v1/users/anna@example.org/cutover", ``, 404, ProblemNoMove, ""},
		{"no reload", "POST", "/v1/reload", ``, 409, ProblemRefused, ""},
		{"no switch", "POST", "/v1/backends/old/pause", ``, 409, ProblemRefused, ""},
		{"no backend", "POST", "/v1/backends/side/pause", ``, 422, ProblemInvalid, "route"},
		{"audit cursor", "GET", "/v1/audit?cursor=x", ``, 422, ProblemInvalid, "cursor"},
		{"no path", "GET", "/v1/nothing", ``, 404, ProblemNotFound, ""},
		{"rollback wave unknown", "POST", "/v1/waves/nine/rollback", ``, 404, ProblemNoUser, "nine"},
		{"rollback unknown field", "POST", "/v1/users/anna@example.org/rollback", `{"fast":true}`, 422, ProblemInvalid, "fast"},
		{"method", "PUT", "/v1/users", ``, 405, ProblemMethod, ""},
		{"csv type", "POST", "application/json /v1/users:import", `{}`, 415, ProblemMediaType, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			resp, text := r.ask(adminToken, tt.method, tt.path, tt.body)
			var p Problem
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				t.Fatalf("%d %q is no problem: %v", resp.StatusCode, text, err)
			}
			if resp.StatusCode != tt.status || p.Status != tt.status || p.Type != tt.kind {
				t.Errorf("got %d %s, want %d %s: %s", resp.StatusCode, p.Type, tt.status, tt.kind, text)
			}
			if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("content type %q", ct)
			}
			if !strings.Contains(p.Detail, tt.detail) || p.Title == "" || p.Hint == "" {
				t.Errorf("title %q, detail %q, hint %q: want %q in the detail", p.Title, p.Detail, p.Hint, tt.detail)
			}
		})
	}
	if len(r.queue.applied) > 0 || len(r.conductor.requests) > 0 || len(r.table.changes) > 0 {
		t.Errorf("bad input changed something: %v %v %v", r.queue.applied, r.conductor.requests, r.table.changes)
	}
}

// TestEveryOperationNeedsARole finds an endpoint that was left open by mistake.
func TestEveryOperationNeedsARole(t *testing.T) {
	r := newRig(t, nil)
	open := map[string]bool{"healthz": true, "readyz": true, "metrics": true, "openapi": true}
	for path, item := range r.server.api.OpenAPI().Paths {
		for method, o := range map[string]any{"GET": item.Get, "PUT": item.Put, "POST": item.Post, "PATCH": item.Patch, "DELETE": item.Delete} {
			data, err := json.Marshal(o)
			check(t, err)
			var parsed *struct {
				OperationID string `json:"operationId"`
				Security    []any  `json:"security"`
			}
			check(t, json.Unmarshal(data, &parsed))
			if parsed != nil && len(parsed.Security) == 0 && !open[parsed.OperationID] {
				t.Errorf("%s %s needs no token", method, path)
			}
		}
	}
}

// contractPaths are the endpoints of the contract that this version has.
var contractPaths = []string{
	"GET /v1/users", "POST /v1/users:import", "GET /v1/users/{address}", "PATCH /v1/users/{address}", "DELETE /v1/users/{address}",
	"PUT /v1/users/{address}/state", "GET /v1/users/{address}/history", "POST /v1/users/{address}/cutover", "POST /v1/waves/{name}/cutover",
	"POST /v1/users/{address}/rollback", "POST /v1/waves/{name}/rollback", "POST /v1/users:rollback",
	"GET /v1/route", "GET /v1/queue", "GET /v1/queue/{id}", "DELETE /v1/queue/{id}", "POST /v1/queue/{id}/retry", "POST /v1/queue/{id}/hold",
	"POST /v1/queue/{id}/release", "POST /v1/queue/{id}/park", "POST /v1/queue/{id}/reroute", "POST /v1/queue:apply", "GET /v1/queue/{id}/message",
	"GET /v1/backfill", "POST /v1/backfill/{address}/run", "POST /v1/backfill/{address}/verify", "POST /v1/backfill:pause", "POST /v1/backfill:resume",
	"GET /v1/backfill/{address}/plan", "POST /v1/backfill/{address}/inventory", "GET /v1/stats", "GET /v1/events",
	"GET /v1/waves", "GET /v1/waves/{name}", "PATCH /v1/waves/{name}", "POST /v1/waves/{name}/approve",
	"POST /v1/cutover:pause", "POST /v1/cutover:resume", "POST /v1/cutover:plan", "GET /v1/cutover/report",
	"GET /v1/tokens", "POST /v1/tokens", "DELETE /v1/tokens/{name}", "POST /v1/reload", "GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json", "GET /v1/audit", "GET /v1/backends",
}

func TestOpenAPI(t *testing.T) {
	r := newRig(t, nil)
	resp, text := r.ask("", "GET", "/openapi.json", "")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	var doc struct {
		OpenAPI string                               `json:"openapi"`
		Info    struct{ Version string }             `json:"info"`
		Paths   map[string]map[string]map[string]any `json:"paths"`
	}
	check(t, json.Unmarshal([]byte(text), &doc))
	if doc.OpenAPI != "3.1.0" || doc.Info.Version != "1.2.3" {
		t.Errorf("openapi %q version %q", doc.OpenAPI, doc.Info.Version)
	}
	for _, want := range contractPaths {
		method, path, _ := strings.Cut(want, " ")
		o := doc.Paths[path][strings.ToLower(method)]
		if o == nil {
			t.Errorf("%s is not described", want)
			continue
		}
		if o["summary"] == "" {
			t.Errorf("%s has no summary", want)
		}
	}
	for _, part := range []string{"application/problem+json", `"text/csv"`, `"Problem"`} {
		if !strings.Contains(text, part) {
			t.Errorf("%s is not in the description", part)
		}
	}
	if strings.Contains(text, "ErrorModel") {
		t.Error("huma's own error is in the description")
	}
}

func TestUsers(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(operateToken), t.Context()
	var all []string
	for cursor := ""; ; {
		p, err := c.Users(ctx, router.Filter{}, cursor, 2)
		check(t, err)
		for _, u := range p.Users {
			all = append(all, u.Address)
		}
		if cursor = p.Next; cursor == "" {
			break
		}
	}
	if got := strings.Join(all, " "); got != "anna@example.org bert@example.org cleo@example.org info@example.org" {
		t.Errorf("listed %s", got)
	}
	wave, when := "two", "2026-03-31T20:00:00+02:00"
	u, err := c.ChangeUser(ctx, "Anna@Example.org", UserPatch{Wave: &wave, NotBefore: &when, Reason: "later"})
	check(t, err)
	if u.Wave != "two" || u.Epoch != 4 || !u.NotBefore.Equal(time.Date(2026, 3, 31, 18, 0, 0, 0, time.UTC)) || u.State != router.StateOld {
		t.Errorf("changed to %+v", u)
	}
	done, err := c.SetState(ctx, "anna@example.org", StateChange{State: router.StateSyncing, Reason: "go", Epoch: &u.Epoch})
	check(t, err)
	if done.User.State != router.StateSyncing || done.User.Epoch != 5 {
		t.Errorf("set to %+v", done)
	}
	_, err = c.SetState(ctx, "anna@example.org", StateChange{State: router.StateOld, Epoch: &u.Epoch})
	if p := wantProblem(t, err, ProblemWrongEpoch); p.Epoch != 5 {
		t.Errorf("the problem has the epoch %d, want 5", p.Epoch)
	}
	_, err = c.SetState(ctx, "anna@example.org", StateChange{State: router.StateDone})
	if p := wantProblem(t, err, ProblemTransition); fmt.Sprint(p.Allowed) != "[ready old]" {
		t.Errorf("the problem allows %v", p.Allowed)
	}
	h, err := c.History(ctx, "anna@example.org", 0)
	check(t, err)
	if len(h) != 2 || h[0].To != router.StateSyncing || h[0].By != "olga" || h[0].Reason != "go" {
		t.Errorf("history %+v", h)
	}
	e, err := c.Explain(ctx, "info+tag@example.org")
	check(t, err)
	if len(e.Destinations) != 1 || e.Destinations[0].User != "anna@example.org" {
		t.Errorf("explanation %+v", e)
	}
	check(t, r.client(adminToken).DeleteUser(ctx, "cleo@example.org", 2, "left", true))
	_, err = c.User(ctx, "cleo@example.org")
	wantProblem(t, err, ProblemNoUser)
}

// TestAddressesInPaths: local parts may hold what means something in a path.
func TestAddressesInPaths(t *testing.T) {
	r := newRig(t, nil)
	c := r.client(operateToken)
	for _, address := range []string{"a/b@example.org", "a%2fb@example.org", "what?@example.org", `"two words"@example.org`, `"../x"@example.org`, "a+b;c@example.org"} {
		if strings.Contains(address, ";") {
			address = `"` + strings.Replace(address, "@", `"@`, 1)
		}
		_, err := c.SetState(t.Context(), address, StateChange{State: router.StateSyncing})
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		u, err := c.User(t.Context(), address)
		if err != nil || u.State != router.StateSyncing {
			t.Errorf("%s: %+v, %v", address, u, err)
		}
	}
}

func TestImport(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(adminToken), t.Context()
	bad := "address,state\ndora@example.org,old\nnot an address,old\nemil@example.org,somewhere\nemil@example.com,old\n"
	_, err := c.ImportUsers(ctx, strings.NewReader(bad), ImportOptions{})
	p := wantProblem(t, err, ProblemBadCSV)
	var lines []int
	for _, e := range p.Errors {
		lines = append(lines, e.Line)
	}
	if fmt.Sprint(lines) != "[3 4 5]" {
		t.Errorf("errors %+v", p.Errors)
	}
	if _, err := c.User(ctx, "dora@example.org"); err == nil {
		t.Error("a good line of a bad file was imported")
	}
	out, err := c.ImportUsers(ctx, strings.NewReader(bad), ImportOptions{KeepGoing: true})
	check(t, err)
	if out.Created != 1 || out.Skipped != 3 || len(out.Errors) != 3 {
		t.Errorf("imported %+v", out)
	}
	loop := "address,kind,target\nx@example.org,alias,y@example.org\ny@example.org,alias,x@example.org\nfine@example.org,,\n"
	_, err = c.ImportUsers(ctx, strings.NewReader(loop), ImportOptions{})
	wantProblem(t, err, ProblemBadCSV)
	out, err = c.ImportUsers(ctx, strings.NewReader(loop), ImportOptions{KeepGoing: true})
	check(t, err)
	if out.Created != 1 || out.Skipped != 2 {
		t.Errorf("imported %+v", out)
	}
	out, err = c.ImportUsers(ctx, strings.NewReader("address\ngina@example.org\n"), ImportOptions{DryRun: true})
	check(t, err)
	if out.Checked != 1 || out.Created != 0 || !out.DryRun {
		t.Errorf("dry run %+v", out)
	}
	_, err = c.ImportUsers(ctx, io.MultiReader(strings.NewReader("address\n"), &endless{line: []byte("# filler filler filler filler filler\n")}), ImportOptions{})
	if err == nil || !strings.Contains(err.Error(), "too large") && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") && !strings.Contains(err.Error(), "errors") {
		t.Errorf("an endless file: %v", err)
	}
}

type endless struct{ line []byte }

func (e *endless) Read(p []byte) (int, error) {
	return copy(p, bytes.Repeat(e.line, len(p)/len(e.line)+1)), nil
}

func TestImportIsBounded(t *testing.T) {
	c := &countedReader{r: &endless{line: []byte("x")}, left: 1000}
	n, err := io.Copy(io.Discard, c)
	wantProblem(t, err, ProblemTooLarge)
	if n > 1000 {
		t.Errorf("%d octets were passed on", n)
	}
}

// TestImportCutShort: a file that did not arrive whole is not imported.
func TestImportCutShort(t *testing.T) {
	r := newRig(t, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	check(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v1/users:import?keep_going=true HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\naddress\nhalf@example.org\n", adminToken)
	check(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	check(t, err)
	if !bytes.Contains(answer, []byte("did not arrive whole")) {
		t.Errorf("answer %s", answer)
	}
	if _, err := r.table.User(t.Context(), "half@example.org"); !errors.Is(err, router.ErrNoUser) {
		t.Errorf("a file that was cut short was imported: %v", err)
	}
}

func TestQueue(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(adminToken), t.Context()
	before := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	f := QueueFilter{IDs: []mail.ID{id1, id2}, State: queue.Held, Route: mail.Old, User: "Anna@example.org", Rcpt: "a", From: "<>", Before: before, Reason: "busy"}
	p, err := c.Queue(ctx, f, "", 1)
	check(t, err)
	if len(p.Messages) != 1 || p.Next != string(id1) || p.Messages[0].Rcpts[0].LastReply != "451 4.3.0 busy" {
		t.Errorf("page %+v", p)
	}
	got := r.queue.filters[0]
	if len(got.IDs) != 2 || got.State != queue.Held || got.Route != mail.Old || got.User != "anna@example.org" || got.From != "<>" || !got.Before.Equal(before) || got.Reason != "busy" {
		t.Errorf("filter %+v", got)
	}
	for _, verb := range Verbs() {
		a := QueueAction{Reason: "because"}
		if verb == queue.DoReroute {
			a.Route = mail.New
		}
		n, err := c.Act(ctx, id1, verb, a)
		if err != nil || n.Changed != 1 {
			t.Errorf("%s: %+v %v", verb, n, err)
		}
		last := r.queue.applied[len(r.queue.applied)-1]
		if last.Verb != verb || last.Reason != "because" || last.Route != a.Route {
			t.Errorf("%s became %+v", verb, last)
		}
	}
	n, err := c.Apply(ctx, QueueApply{Action: queue.DoRetry, All: true})
	if err != nil || n.Changed != 1 {
		t.Errorf("apply: %+v %v", n, err)
	}
	body, err := c.Export(ctx, id1)
	check(t, err)
	text, err := io.ReadAll(body)
	body.Close()
	if err != nil || string(text) != r.queue.bodies[id1] {
		t.Errorf("exported %q, %v", text, err)
	}
	r.queue.err = queue.ErrClosed
	_, err = c.Message(ctx, id1)
	wantProblem(t, err, ProblemClosed)
	r.queue.err = errors.New("disk on fire")
	_, err = c.Queue(ctx, QueueFilter{}, "", 0)
	wantProblem(t, err, ProblemInternal)
}

// TestExportOfDamagedMessage: a damaged body is seen as cut short, whatever
// its size.
func TestExportOfDamagedMessage(t *testing.T) {
	r := newRig(t, nil)
	body, err := r.client(adminToken).Export(t.Context(), id2)
	if err != nil {
		return // small bodies may fail before the first octet
	}
	defer body.Close()
	if _, err := io.ReadAll(body); err == nil {
		t.Error("a damaged message was exported without an error")
	}
}

func TestMoves(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(operateToken), t.Context()
	st, err := c.StartCutover(ctx, "anna@example.org", MoveRequest{Reason: "wave"})
	check(t, err)
	if st.User != "anna@example.org" || !st.Flip {
		t.Errorf("status %+v", st)
	}
	if got := r.conductor.requests[0]; got != (cutover.Request{User: "anna@example.org", By: "olga", Reason: "wave"}) {
		t.Errorf("request %+v", got)
	}
	if _, err := c.Move(ctx, "anna@example.org"); err != nil {
		t.Error(err)
	}
	moves, err := c.Moves(ctx)
	if err != nil || len(moves) != 1 {
		t.Errorf("moves %+v %v", moves, err)
	}
	wave, err := c.StartWave(ctx, "one", MoveRequest{})
	check(t, err)
	if fmt.Sprint(wave.Started, wave.Skipped, wave.Failed) != "[anna@example.org] [bert@example.org] []" {
		t.Errorf("wave %+v", wave)
	}
	if _, err := c.RunBackfill(ctx, "cleo@example.org"); err != nil || !r.conductor.requests[2].Sync {
		t.Errorf("run: %v, requests %+v", err, r.conductor.requests)
	}
	if _, err := c.RunBackfillWith(ctx, "cleo@example.org", BackfillRun{AllowDeletions: true}); err != nil {
		t.Error(err)
	}
	if last := r.conductor.requests[len(r.conductor.requests)-1]; !last.Sync || !last.AllowDeletions || last.RetryRefused {
		t.Errorf("allowed: %+v", last)
	}
	plan, err := c.Plan(ctx, "cleo@example.org")
	if err != nil || plan.User != "cleo@example.org" || plan.Messages != 3 {
		t.Errorf("%+v %v", plan, err)
	}
	_, err = c.Plan(ctx, "someone@elsewhere.example")
	wantProblem(t, err, ProblemRefused)
	inv, err := c.Inventory(ctx, "cleo@example.org")
	if err != nil || inv.User != "cleo@example.org" || inv.Folders[0].Messages != 3 {
		t.Errorf("%+v %v", inv, err)
	}
	v, err := c.Verify(ctx, "cleo@example.org")
	if err != nil || len(v.Folders) != 1 {
		t.Errorf("verify %+v %v", v, err)
	}
	check(t, c.CancelCutover(ctx, "anna@example.org"))
	r.conductor.err = errors.New("the user is new already")
	_, err = c.StartCutover(ctx, "bert@example.org", MoveRequest{})
	if p := wantProblem(t, err, ProblemRefused); !strings.Contains(p.Detail, "new already") {
		t.Errorf("detail %q", p.Detail)
	}
}

func TestNoConductor(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Conductor = nil })
	c, ctx := r.client(operateToken), t.Context()
	_, err := c.StartCutover(ctx, "anna@example.org", MoveRequest{})
	if p := wantProblem(t, err, ProblemNoBackfill); !strings.Contains(p.Hint, "force") {
		t.Errorf("hint %q", p.Hint)
	}
	_, err = c.StartWave(ctx, "one", MoveRequest{})
	wantProblem(t, err, ProblemNoBackfill)
	_, err = c.Verify(ctx, "anna@example.org")
	wantProblem(t, err, ProblemNoBackfill)
	if moves, err := c.Moves(ctx); err != nil || len(moves) != 0 {
		t.Errorf("moves %v %v", moves, err)
	}
	done, err := c.SetState(ctx, "anna@example.org", StateChange{State: router.StateNew, Force: true})
	if err != nil || done.User.State != router.StateNew {
		t.Errorf("forced: %+v %v", done, err)
	}
}

// TestSlowWorkAfterABody: the deadline of the body must not end a request
// whose work takes longer.
func TestSlowWorkAfterABody(t *testing.T) {
	const idle = 50 * time.Millisecond
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := &idleBody{ReadCloser: r.Body, rc: http.NewResponseController(w), header: w.Header(), idle: idle}
		if _, err := io.ReadAll(body); err != nil {
			t.Error(err)
		}
		if n, err := body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("behind the end: %d, %v", n, err)
		}
		timer := time.NewTimer(6 * idle)
		defer timer.Stop()
		select {
		case <-r.Context().Done():
			t.Error("the request ended while its work went on")
		case <-timer.C:
		}
	}))
	defer web.Close()
	resp, err := http.Post(web.URL, "text/plain", strings.NewReader("body"))
	check(t, err)
	resp.Body.Close()
}

func TestSilentBodyIsCutOff(t *testing.T) {
	r := newRig(t, nil)
	r.server.bodyIdle = 50 * time.Millisecond
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(8*time.Second)))
	fmt.Fprintf(conn, "PUT /v1/users/anna@example.org/state HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{", adminToken)
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(answer, []byte(ProblemTimeout)) {
		t.Errorf("%s, %v", answer, err)
	}
}

// TestSilentBodyOfStrangers: who has no token, or asks for what there is not, keeps no
// connection by announcing a body that does not come.
func TestSilentBodyOfStrangers(t *testing.T) {
	r := newRig(t, nil)
	r.server.bodyIdle = 50 * time.Millisecond
	for _, tt := range []struct{ request, header, status string }{
		{"POST /v1/tokens", "", "401"},
		{"POST /v1/tokens", "Authorization: Bearer " + readToken + "\r\n", "403"},
		{"POST /healthz", "", "405"},
		{"POST /nothing", "", "404"},
		{"POST /v1/tokens", "Origin: https://evil.test\r\n", "403"},
		{"GET /healthz", "", "200"},
	} {
		for _, length := range []string{"Content-Length: 100", "Transfer-Encoding: chunked"} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			check(t, err)
			check(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
			fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s%s\r\n\r\n", tt.request, tt.header, length)
			answer, err := io.ReadAll(conn)
			if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 "+tt.status)) {
				t.Errorf("%s, %s: %s, %v", tt.request, length, answer, err)
			}
			conn.Close()
		}
	}
}

func TestHealthAndReadiness(t *testing.T) {
	var reasons []string
	var sick error
	r := newRig(t, func(c *Config) {
		c.Ready = func(context.Context) []string { return reasons }
		c.Health = func(context.Context) error { return sick }
	})
	c := r.client("")
	if got, err := c.Ready(t.Context()); err != nil || !got.Ready {
		t.Errorf("ready: %+v %v", got, err)
	}
	reasons, sick = []string{"the disk is full"}, errors.New("stopped")
	if got, err := c.Ready(t.Context()); err != nil || got.Ready || got.Reasons[0] != "the disk is full" {
		t.Errorf("not ready: %+v %v", got, err)
	}
	if resp, text := r.ask("", "GET", "/healthz", ""); resp.StatusCode != 503 || !strings.Contains(text, "stopped") {
		t.Errorf("health: %d %s", resp.StatusCode, text)
	}
}

func TestReload(t *testing.T) {
	var fail error
	r := newRig(t, func(c *Config) {
		c.Reload = func(context.Context) ([]string, error) { return []string{"smtp.listen"}, fail }
	})
	notices, err := r.client(adminToken).Reload(t.Context())
	if err != nil || len(notices) != 1 {
		t.Errorf("%v %v", notices, err)
	}
	fail = errors.New("crossfade.yaml:3: unknown key")
	_, err = r.client(adminToken).Reload(t.Context())
	if p := wantProblem(t, err, ProblemConfig); !strings.Contains(p.Detail, "crossfade.yaml:3") {
		t.Errorf("detail %q", p.Detail)
	}
}

type memBackends struct{ paused map[mail.Route]string }

func (b *memBackends) Status() (out []BackendStatus) {
	for _, r := range []mail.Route{mail.Old, mail.New} {
		s := BackendStatus{Route: r, State: "up", Limit: 20}
		if why, ok := b.paused[r]; ok {
			s.State, s.Reason = "paused", why
		}
		out = append(out, s)
	}
	return out
}
func (b *memBackends) Pause(_ context.Context, r mail.Route, by, reason string) error {
	b.paused[r] = by + ": " + reason
	return nil
}
func (b *memBackends) Resume(_ context.Context, r mail.Route, by string) error {
	delete(b.paused, r)
	return nil
}

func TestBackends(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Backends = &memBackends{paused: map[mail.Route]string{}} })
	c, ctx := r.client(operateToken), t.Context()
	paused, err := c.PauseBackfill(ctx, BackfillPause{Wave: "w1", Reason: "office hours"})
	if err != nil || len(paused) != 1 || paused[0].Wave != "w1" || paused[0].By != "olga" || paused[0].Reason != "office hours" {
		t.Errorf("pause: %+v %v", paused, err)
	}
	if _, err := c.ResumeBackfill(ctx, ""); err == nil || !strings.Contains(err.Error(), "is not paused for everybody") {
		t.Errorf("a resume of what was not paused: %v", err)
	}
	if paused, err = c.ResumeBackfill(ctx, "w1"); err != nil || len(paused) != 0 {
		t.Errorf("resume: %+v %v", paused, err)
	}
	check(t, c.PauseBackend(ctx, mail.New, "repair"))
	list, err := c.Backends(ctx)
	if err != nil || list[1].State != "paused" || list[1].Reason != "olga: repair" {
		t.Errorf("%+v %v", list, err)
	}
	check(t, c.ResumeBackend(ctx, mail.New))
	if st, err := c.Stats(ctx); err != nil || st.Backends[1].State != "up" || st.Queue.Messages != 2 || st.Users[router.StateNew] != 1 {
		t.Errorf("%+v %v", st, err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg)
	check(t, err)
	r := newRig(t, func(c *Config) { c.Metrics = reg })
	check(t, reg.Register(NewStateCollector(r.queue, r.table, nil)))
	m.Accepted(2, 4096, time.Millisecond)
	m.Refused("RCPT", 550)
	m.ConnOpened()
	m.ConnClosed()
	m.ConnTurnedAway("per-ip")
	m.Delivered(mail.New, queue.Done)
	m.Delivered(mail.New, queue.Release)
	m.Attempt(mail.New, time.Second)
	m.Bounced()
	m.Noticed()
	m.Backfilled(cutover.Passed{User: "a@b", Report: backfill.Report{Copied: 3, Bytes: 300, Throttled: 1500 * time.Millisecond}, New: []backfill.Problem{
		{Class: backfill.ClassRefused}, {Class: backfill.ClassMoved, Count: 4}}})
	m.Backfilled(cutover.Passed{User: "a@b", Err: errors.New("no")})
	m.IMAPConnections("new", 2)
	m.IMAPConnections("new", -1)
	m.Flipped(2 * time.Second)
	m.MoveFailed()
	m.Copying(1, 100)
	m.Copying(2, 200)
	m.WaveStopped()
	resp, text := r.ask("", "GET", "/metrics", "") // from this machine
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	for _, line := range []string{
		`crossfade_accepted_messages_total 1`, `crossfade_accepted_recipients_total 2`, `crossfade_refused_total{code="550",command="RCPT"} 1`,
		`crossfade_delivery_recipients_total{result="delivered",route="new"} 1`, `crossfade_delivery_recipients_total{result="deferred",route="old"} 0`,
		`crossfade_queue_recipients{state="queued"} 2`, `crossfade_queue_recipients{state="parked"} 0`, `crossfade_users{state="new"} 1`,
		`crossfade_store_up 1`, `crossfade_backfill_messages_total 3`, `crossfade_backfill_bytes_total 300`, `crossfade_cutover_wave_stops_total 1`, `crossfade_cutover_moves_total{result="flipped"} 1`,
		`crossfade_backfill_problems_total{class="refused"} 1`, `crossfade_backfill_problems_total{class="moved"} 4`, `crossfade_backfill_problems_total{class="quota"} 0`,
		`crossfade_backfill_passes_total{result="ok"} 1`, `crossfade_backfill_passes_total{result="failed"} 1`, `crossfade_backfill_throttled_seconds_total 1.5`,
		`crossfade_backfill_connections_open{side="new"} 1`, `crossfade_backfill_connections_open{side="old"} 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%s is missing", line)
		}
	}
	r.queue.err = errors.New("no answer")
	if _, text := r.ask("", "GET", "/metrics", ""); !strings.Contains(text, "crossfade_store_up 0\n") {
		t.Error("a store that does not answer is not seen")
	}
	for _, h := range []struct{ name, value string }{{"X-Forwarded-For", "192.0.2.1"}, {"Host", "evil.example"}} {
		req, err := http.NewRequest("GET", r.url+"/metrics", nil)
		check(t, err)
		req.Header.Set(h.name, h.value)
		if h.name == "Host" {
			req.Host = h.value
		}
		resp, err := http.DefaultClient.Do(req)
		check(t, err)
		resp.Body.Close()
		want := map[string]int{"X-Forwarded-For": http.StatusUnauthorized, "Host": http.StatusMisdirectedRequest}[h.name]
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", h.name, resp.StatusCode, want)
		}
	}
}

func TestEvents(t *testing.T) {
	r := newRig(t, nil)
	c := r.client(operateToken)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open, got := make(chan struct{}), make(chan Event, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Listen(ctx, 0, func() { close(open) }, func(e Event) error { got <- e; return nil })
	}()
	<-open
	_, err := c.SetState(ctx, "anna@example.org", StateChange{State: router.StateSyncing})
	check(t, err)
	e := <-got
	var change router.Change
	check(t, json.Unmarshal(e.Data, &change))
	if e.Kind != EventUser || change.User != "anna@example.org" || change.From != router.StateOld || change.To != router.StateSyncing || change.By != "olga" {
		t.Errorf("event %+v %+v", e, change)
	}
	r.server.Events().Publish(EventCutover, cutover.Status{User: "x"})
	if e := <-got; e.Kind != EventCutover || e.ID != 2 {
		t.Errorf("event %+v", e)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
	again, stop := context.WithCancel(t.Context())
	defer stop()
	var ids []uint64
	c.Listen(again, 1, nil, func(e Event) error { ids = append(ids, e.ID); stop(); return nil })
	if fmt.Sprint(ids) != "[2]" {
		t.Errorf("after coming back: events %v", ids)
	}
}

// TestPassEvents: a pass that did nothing is no event, and a mailbox with
// thousands of problems does not push everything else out of the hub.
func TestPassEvents(t *testing.T) {
	var h Events
	l, _ := h.listen(0)
	defer h.leave(l)
	h.Passed(cutover.Passed{User: "idle@example.org", Report: backfill.Report{Folders: 9, Messages: 900}})
	many := make([]backfill.Problem, 3000)
	for i := range many {
		many[i] = backfill.Problem{Folder: "INBOX", UID: uint32(i + 1), Class: backfill.ClassFlag, Text: "no keywords"}
	}
	h.Passed(cutover.Passed{User: "anna@example.org", Report: backfill.Report{Copied: 5, Bytes: 50}, New: many, Err: errors.New("cut off")})
	if got := len(h.kept); got != problemsTold+1 {
		t.Fatalf("%d events", got)
	}
	first, last := <-l.ch, h.kept[problemsTold]
	if want := `{"user":"anna@example.org","folder":"INBOX","uid":1,"class":"flag","text":"no keywords"}`; first.Kind != EventProblem || string(first.Data) != want {
		t.Errorf("%s %s", first.Kind, first.Data)
	}
	var e PassEvent
	check(t, json.Unmarshal(last.Data, &e))
	if last.Kind != EventPass || e.Copied != 5 || e.Problems["flag"] != 3000 || e.Error != "cut off" {
		t.Errorf("%s %s", last.Kind, last.Data)
	}
}

func TestSlowListenerIsCutOff(t *testing.T) {
	var h Events
	l, _ := h.listen(0)
	for range eventsWaiting + 1 {
		h.Publish(EventUser, 1)
	}
	n := 0
	for range l.ch {
		n++
	}
	if n != eventsWaiting || len(h.listeners) != 0 {
		t.Errorf("%d events, %d listeners", n, len(h.listeners))
	}
	for range eventsKept {
		h.Publish(EventUser, 1)
	}
	if _, missed := h.listen(1); len(missed) != eventsKept {
		t.Errorf("%d events are kept", len(missed))
	}
	var none *Events
	none.Publish(EventUser, 1)
}

func TestPanicIsAnswered(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Ready = func(context.Context) []string { panic("oops") } })
	_, err := r.client("").Ready(t.Context())
	wantProblem(t, err, ProblemInternal)
}

// TestServe runs a server of its own: streams end with it, and stopping waits
// for what is under way.
func TestServe(t *testing.T) {
	r := newRig(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(ctx, l) }()
	c, err := NewClient("http://"+l.Addr().String(), readToken)
	check(t, err)
	defer c.Close()
	open, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.Listen(t.Context(), 0, func() { close(open) }, func(Event) error { return nil }) }()
	<-open
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	if _, err := c.Users(t.Context(), router.Filter{}, "", 0); err == nil || !strings.Contains(err.Error(), "cannot reach") {
		t.Errorf("after the end: %v", err)
	}
}

func TestServeReportsALostListener(t *testing.T) {
	r := newRig(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	l.Close()
	if err := r.server.Serve(t.Context(), l); err == nil {
		t.Error("no error")
	}
}

// TestTLS: an operator on the relay's machine uses 127.0.0.1 and trusts the
// configured certificate, whatever name it is made for.
func TestTLS(t *testing.T) {
	r := newRig(t, nil)
	web := httptest.NewUnstartedServer(r.server.Handler())
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.StartTLS()
	defer web.Close()
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	for _, address := range []string{web.URL, strings.Replace(web.URL, "127.0.0.1", "localhost", 1)} {
		c, err := NewClient(address, readToken)
		check(t, err)
		defer c.Close()
		if _, err := c.Stats(t.Context()); err == nil {
			t.Error("an unknown certificate was trusted")
		}
		check(t, c.TrustCertificate(chain))
		if _, err := c.Stats(t.Context()); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		if err := c.TrustCertificate([]byte("no PEM")); err == nil {
			t.Error("no certificate was taken")
		}
	}
}

func TestClientErrors(t *testing.T) {
	for _, address := range []string{"", "example.org:8025", "ftp://x", "http://", "http://user:pw@x", "http://x?y"} {
		if _, err := NewClient(address, ""); err == nil {
			t.Errorf("%q was taken", address)
		}
	}
	if _, err := NewClient("http://x", "two words"); err == nil {
		t.Error("a token with a space was taken")
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go srv.Serve(l)
	defer srv.Close()
	c, err := NewClient("http://"+l.Addr().String(), readToken)
	check(t, err)
	defer c.Close()
	if _, err := c.Stats(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer of Crossfade") {
		t.Errorf("a foreign server: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
}
