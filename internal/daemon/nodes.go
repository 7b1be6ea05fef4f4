package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/queue"
	"crossfade/store/redis"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	_ cutover.Owners = (*redis.Store)(nil)
	_ cutover.Board  = (*redis.Store)(nil)
)

// info is what this node tells of itself.
func (d *Daemon) info() redis.Info {
	return redis.Info{Version: d.opts.Version, Admin: d.cfg.Admin.Listen}
}

// nodeName is the name of this node.
func (d *Daemon) nodeName() string {
	if d.cfg.Node != "" {
		return d.cfg.Node
	}
	name, _ := os.Hostname() // without one the store has refused to open
	return name
}

// shareUsers has the conductor share the users with those of other nodes,
// where the store is one that several nodes use.
func (d *Daemon) shareUsers(c *cutover.Config) {
	if s, ok := d.store.(*redis.Store); ok {
		c.Owners, c.Board, c.Node = s, s, d.nodeName()
	}
}

// nodesAPI is what operators see of the nodes.
func (d *Daemon) nodesAPI() admin.NodesAPI {
	if s, ok := d.store.(*redis.Store); ok {
		return sharedNodes{s}
	}
	return &onlyNode{d: d, since: time.Now()}
}

// nodesCollector counts the nodes by state, for Prometheus.
type nodesCollector struct {
	api  admin.NodesAPI
	desc *prometheus.Desc
}

func newNodesCollector(api admin.NodesAPI) *nodesCollector {
	return &nodesCollector{api, prometheus.NewDesc("crossfade_nodes", "Nodes that share the store, by state: alive, draining, drained, gone, left.", []string{"state"}, nil)}
}

// scrapeTime bounds a look into the books for one scrape.
const scrapeTime = 3 * time.Second

// Describe implements prometheus.Collector.
func (c *nodesCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *nodesCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	list, err := c.api.Nodes(ctx)
	if err != nil {
		return // a figure that is missing says more than a wrong one; readiness has the reason
	}
	counts := map[redis.NodeState]int{redis.NodeAlive: 0, redis.NodeDraining: 0, redis.NodeDrained: 0, redis.NodeGone: 0, redis.NodeLeft: 0}
	for _, n := range list {
		counts[redis.NodeState(n.State)]++
	}
	for state, n := range counts {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), string(state))
	}
}

// sharedNodes are the nodes on one Redis.
type sharedNodes struct{ store *redis.Store }

// Nodes implements admin.NodesAPI.
func (n sharedNodes) Nodes(ctx context.Context) ([]admin.Node, error) {
	list, err := n.store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]admin.Node, 0, len(list))
	for _, x := range list {
		out = append(out, admin.Node{
			Name: x.Name, State: string(x.State), Self: x.Self, Host: x.Host, PID: x.PID, Version: x.Info.Version, Admin: x.Info.Admin,
			Since: x.Since, Seen: x.Seen, DrainedBy: x.Drained, Leases: x.Leases, Sending: x.Sending, Users: x.Users,
		})
	}
	slices.SortFunc(out, func(a, b admin.Node) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Drain implements admin.NodesAPI.
func (n sharedNodes) Drain(ctx context.Context, name, by string) error {
	if by == "" {
		by = "an operator" // empty would put it back
	}
	return nodeError(n.store.Drain(ctx, name, by))
}

// Undrain implements admin.NodesAPI.
func (n sharedNodes) Undrain(ctx context.Context, name string) error {
	return nodeError(n.store.Drain(ctx, name, ""))
}

func nodeError(err error) error {
	if errors.Is(err, redis.ErrNoNode) {
		return fmt.Errorf("%w (%w)", admin.ErrNoNode, err)
	}
	return err
}

// onlyNode is the one node on an embedded store.
type onlyNode struct {
	d     *Daemon
	since time.Time
}

// Nodes implements admin.NodesAPI.
func (n *onlyNode) Nodes(ctx context.Context) ([]admin.Node, error) {
	st, err := n.d.store.Stats(ctx)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // only to be shown
	self := admin.Node{
		Name: n.d.nodeName(), State: string(redis.NodeAlive), Self: true, Host: host, PID: os.Getpid(), Version: n.d.opts.Version,
		Admin: n.d.cfg.Admin.Listen, Since: n.since, Seen: time.Now(),
		Leases: st.States[queue.Leased] + st.States[queue.Sending], Sending: st.States[queue.Sending],
	}
	for _, s := range n.d.conductor.Status() {
		if s.Active() {
			self.Users++
		}
	}
	return []admin.Node{self}, nil
}

// Drain implements admin.NodesAPI.
func (n *onlyNode) Drain(_ context.Context, name, _ string) error {
	if name != n.d.nodeName() {
		return fmt.Errorf("%w: %s", admin.ErrNoNode, name)
	}
	return fmt.Errorf("drain node %s: %w, and no other node could take over: stop it instead", name, admin.ErrOneNode)
}

// Undrain implements admin.NodesAPI.
func (n *onlyNode) Undrain(ctx context.Context, name string) error { return n.Drain(ctx, name, "") }
