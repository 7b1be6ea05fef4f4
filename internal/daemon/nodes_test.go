package daemon

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/redistest"
)

// aNode runs a daemon until the test is over, or stop is called.
func aNode(t *testing.T, store, name string) (d *Daemon, c *admin.Client, stop func()) {
	t.Helper()
	dir := t.TempDir()
	text := strings.Replace(reloadConfig, "store: ./data", "store: "+store+"\nnode: "+name, 1)
	d, stop = serveLogged(t, parse(t, dir, text), nil, Options{Version: "v-" + name})
	return d, fileClient(t, d), stop
}

// greeting is what the SMTP side says first.
func greeting(t *testing.T, d *Daemon) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", d.SMTPAddrs()[0].String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func nodeStates(t *testing.T, c *admin.Client) string {
	t.Helper()
	list, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range list {
		out = append(out, fmt.Sprintf("%s %s %s self=%v", n.Name, n.State, n.Version, n.Self))
	}
	return strings.Join(out, ", ")
}

// countedNodes is what the metrics say of nodes.
func countedNodes(t *testing.T, d *Daemon) map[string]float64 {
	t.Helper()
	all, err := d.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, family := range all {
		if family.GetName() != "crossfade_nodes" {
			continue
		}
		for _, m := range family.GetMetric() {
			out[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return out
}

func TestDrainOverTheAPI(t *testing.T) {
	url := redistest.Start(t).URL()
	a, ca, stopA := aNode(t, url, "a")
	b, cb, _ := aNode(t, url, "b")
	if got, want := nodeStates(t, cb), "a alive v-a self=false, b alive v-b self=true"; got != want {
		t.Errorf("nodes: %s\nwant:  %s", got, want)
	}
	if _, err := cb.DrainNode(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "a is drained", func() bool { return strings.HasPrefix(nodeStates(t, cb), "a drained") })
	if got := greeting(t, a); !strings.HasPrefix(got, "421 4.3.2 ") {
		t.Errorf("a node that is drained greets %q", got)
	}
	if got := greeting(t, b); !strings.HasPrefix(got, "220 ") {
		t.Errorf("the other one greets %q", got)
	}
	ready, err := ca.Ready(t.Context())
	if err != nil || ready.Ready || !strings.Contains(fmt.Sprint(ready.Reasons), "this node is being drained") {
		t.Errorf("a says of itself: %+v, %v", ready, err)
	}
	if _, err := ca.UndrainNode(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "a takes mail", func() bool { return strings.HasPrefix(greeting(t, a), "220 ") })
	if got := countedNodes(t, b); got["alive"] != 2 || len(got) != 5 {
		t.Errorf("metrics: %v", got)
	}
	stopA()
	if got := nodeStates(t, cb); !strings.HasPrefix(got, "a left") {
		t.Errorf("nodes after a has left: %s", got)
	}
	if _, err := cb.DrainNode(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "no such node") {
		t.Errorf("draining nobody: %v", err)
	}
}

func TestOnlyNode(t *testing.T) {
	_, c, _ := aNode(t, "./data", "one")
	if got := nodeStates(t, c); got != "one alive v-one self=true" {
		t.Errorf("nodes: %s", got)
	}
	_, err := c.DrainNode(t.Context(), "one")
	if err == nil || !strings.Contains(err.Error(), "no other node could take over") {
		t.Errorf("draining the only node: %v", err)
	}
	if _, err := c.DrainNode(t.Context(), "two"); err == nil || !strings.Contains(err.Error(), "no such node") {
		t.Errorf("draining nobody: %v", err)
	}
}
