package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/internal/daemon"
	"crossfade/internal/mailtest/realtest"
	"crossfade/router"
)

// binary compiles the product as `make build` does.
func binary(t *testing.T) string {
	t.Helper()
	return daemon.Built(t, "crossfade", "crossfade/cmd/crossfade", "build")
}

// child is `crossfade serve` as a process of its own.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// startChild starts it; its log is added to logPath. It dies with this
// process.
func startChild(t *testing.T, program, cfgPath, logPath string) *child {
	t.Helper()
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := &child{cmd: exec.Command(program, "serve", "-c", cfgPath), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // Pdeathsig is bound to the thread
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait()
		}
		close(c.done)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *child) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

// kill ends it as a power cut would.
func (c *child) kill(t *testing.T) {
	t.Helper()
	c.signal(t, syscall.SIGKILL)
	<-c.done
}

// awaitReady waits until the API says that mail is taken.
func awaitReady(t *testing.T, c *child, api string) {
	t.Helper()
	poll(t, 30*time.Second, "the relay's start", func() (bool, error) {
		select {
		case <-c.done:
			t.Fatal("the relay ended instead of starting: see its log")
		default:
		}
		resp, err := http.Get("http://" + api + "/readyz")
		if err != nil {
			return false, err
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
}

// killRun is a migration whose process dies again and again.
type killRun struct {
	w            *world
	program, api string
	stream       *stream
	rnd          *rand.Rand

	mu     sync.Mutex
	child  *child
	kills  []time.Time
	held   chan struct{}  // told when a user is seen in his hold
	seen   string         // what the flip was seen to do last
	phases map[string]int // what it was doing when it was killed
	holds  []time.Duration
}

// TestKillDuringFlips: kill -9 at random moments while users are flipped under
// a stream of mail. Nothing is lost. What was being delivered at a kill is looked
// up in its mailbox: what is twice all the same was not there in time, and told of.
func TestKillDuringFlips(t *testing.T) {
	kills, users, past := 8, 8, 12
	if long() {
		kills, users, past = 100, 90, 40
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t, users, past)
	smtp, api := fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))
	w.configure(smtp, api)
	r := &killRun{w: w, program: binary(t), api: api, rnd: rand.New(rand.NewPCG(seed, 1)), phases: map[string]int{}, held: make(chan struct{})}
	r.child = startChild(t, r.program, w.cfgPath, w.logPath)
	t.Cleanup(func() { r.child.kill(t) })
	awaitReady(t, r.child, api)
	c := w.dial("http://" + api)
	var lines []string
	for _, u := range w.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, c, lines)
	r.stream = &stream{addr: smtp, users: w.users, book: w.book, senders: 4, pause: 50 * time.Millisecond, retry: true}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := r.stream.start(ctx)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		r.killer(ctx, kills)
	}()
	began := time.Now()
	for i, u := range w.users {
		r.flip(t, c, u)
		if i == len(w.users)-2 { // the last one waits for the last kill
			select {
			case <-killed:
			case <-time.After(time.Duration(kills) * 10 * time.Second):
				t.Fatal("the killer does not come to its end")
			}
		}
	}
	took := time.Since(began)
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused for good: %v", err)
	}
	drain(t, c, 3*time.Minute)
	r.judge(t, took, true)
}

// killer kills the child at random moments and starts it again.
func (r *killRun) killer(ctx context.Context, kills int) {
	t := r.w.t
	for n := range kills {
		delay := 50*time.Millisecond + time.Duration(r.rnd.IntN(2500))*time.Millisecond
		if n%2 == 1 { // in or just after a hold
			select {
			case <-ctx.Done():
				return
			case <-r.held:
			case <-time.After(5 * time.Second):
			}
			delay = time.Duration(r.rnd.IntN(120)) * time.Millisecond
		}
		wait := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		r.mu.Lock()
		r.child.kill(t)
		r.kills = append(r.kills, time.Now())
		r.phases[r.seen]++
		r.child = startChild(t, r.program, r.w.cfgPath, r.w.logPath)
		r.mu.Unlock()
		awaitReady(t, r.child, r.api)
	}
}

// flip asks for a user's move once, as an operator would, and waits. Asked
// again is only what got no answer.
func (r *killRun) flip(t *testing.T, c *admin.Client, user string) {
	t.Helper()
	r.stream.hot.Store(&user)
	asked := false
	last := ""
	poll(t, 3*time.Minute, "flipping "+user, func() (bool, error) {
		if !asked {
			_, err := c.StartCutover(t.Context(), user, admin.MoveRequest{Reason: "e2e"})
			var p *admin.Problem
			if errors.As(err, &p) && p.Status < http.StatusInternalServerError {
				u, uerr := c.User(t.Context(), user)
				if uerr != nil || u.State == router.StateOld {
					return false, errors.Join(err, uerr)
				}
				err = nil // the answer to the first request was lost
			}
			if err != nil {
				return false, err
			}
			asked = true
		}
		u, err := c.User(t.Context(), user)
		if err != nil {
			return false, err
		}
		if st, err := c.Move(t.Context(), user); err == nil {
			last = fmt.Sprintf("%s/%s %s", u.State, st.Phase, st.Err)
			if u.State == router.StateNew && st.HoldTime > 0 {
				r.holds = append(r.holds, st.HoldTime)
			}
			r.phase(u.State, st.Phase)
		}
		return u.State == router.StateNew, errors.New(last)
	})
}

// phase remembers what the flip does, for the report of what was killed.
func (r *killRun) phase(s router.State, p cutover.Phase) {
	if s.Held() {
		select {
		case r.held <- struct{}{}:
		default:
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen = string(s); s.Held() {
		r.seen += "/" + string(p)
	}
}

// judge counts, and explains every duplicate.
func (r *killRun) judge(t *testing.T, took time.Duration, flipped bool) {
	t.Helper()
	var sum audit
	for _, u := range r.w.users {
		sum.add(r.w.countRead(u, flipped))
	}
	doubts, again := readDoubts(t, r.w.logPath)
	explained := 0
	for who, copies := range sum.doubles {
		why := r.explain(copies, again)
		if why != "" {
			t.Errorf("%s is there %d times and no kill explains it: %s\n%s", who, len(copies), why, strings.Join(paths(copies), "\n"))
			continue
		}
		explained++
	}
	past, sent := r.w.book.totals()
	figure(t, "%d kills -9 (just before, the user was: %v), %d users moved in %s; past messages %d; accepted %d for %d recipients in %d attempts, %d with a lost reply; found %d, missing %d, altered %d, stray %d; twice %d, of which explained by a kill %d; deliveries in doubt %d, not found in the mailbox and sent again %d; hold p50 %s p99 %s",
		len(r.kills), r.phases, len(r.w.users), took.Round(time.Millisecond), past, r.stream.accepted.Load(), sent, r.stream.attempts.Load(), r.stream.doubtful.Load(),
		sum.found, sum.missing, sum.altered, sum.stray, len(sum.doubles), explained, len(doubts), len(again),
		percentile(r.holds, 50).Round(time.Millisecond), percentile(r.holds, 99).Round(time.Millisecond))
}

// explain says why copies of one message are not the work of a kill; "" when
// they are. All but one of the copies must have been delivered within moments
// of a kill, and the relay must have told that it did not find it in the mailbox.
func (r *killRun) explain(copies []found, again map[string]int) string {
	id := copies[0].queueID
	for _, f := range copies {
		if f.queueID != id {
			return fmt.Sprintf("two queue ids, %q and %q, for one 250", id, f.queueID)
		}
	}
	if again[id] < len(copies)-1 {
		return fmt.Sprintf("the relay told %d times that it sent %s again", again[id], id)
	}
	const slack = 3 * time.Second
	near := 0
	for _, f := range copies {
		at := time.Unix(f.when, 0)
		if slices.ContainsFunc(r.kills, func(k time.Time) bool { return k.Sub(at).Abs() <= slack }) {
			near++
		}
	}
	if near == 0 {
		return "no copy was delivered near a kill"
	}
	return ""
}

// readDoubts counts the deliveries that the log reports as in doubt, by queue
// id, only those whose final dot may have gone out, and those that were sent
// again.
func readDoubts(t *testing.T, path string) (doubts, again map[string]int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	doubts, again = map[string]int{}, map[string]int{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		_, id, _ := strings.Cut(line, " id=")
		id, _, _ = strings.Cut(id, " ")
		switch {
		case strings.Contains(line, "under way when the process before died") && strings.Contains(line, "final_dot_allowed=true"):
			doubts[id]++
		case strings.Contains(line, "a delivery in doubt is sent again"):
			again[id]++
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return doubts, again
}
