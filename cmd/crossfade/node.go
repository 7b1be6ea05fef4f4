package main

import (
	"fmt"
	"slices"
	"time"

	"crossfade/admin"
)

type nodeCmd struct {
	List    nodeListCmd    `cmd:"" help:"List the nodes that share one Redis, and how they do."`
	Drain   nodeDrainCmd   `cmd:"" help:"Take a node out of service: it ends what it has and takes nothing new."`
	Undrain nodeUndrainCmd `cmd:"" help:"Put a node back into service."`
}

type nodeListCmd struct {
	jsonFlag
}

// Run lists the nodes.
func (c *nodeListCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	nodes, err := client.Nodes(a.ctx)
	if err != nil {
		return fmt.Errorf("listing the nodes: %w", err)
	}
	if c.JSON {
		return a.printJSON(append([]admin.Node{}, nodes...))
	}
	t := newTable(a.stdout, "NODE", "STATE", "HOST", "VERSION", "SINCE", "SEEN", "LEASES", "SENDING", "USERS", "DRAINED BY")
	for _, n := range nodes {
		name := n.Name
		if n.Self {
			name += " *"
		}
		t.row(name, n.State, fmt.Sprintf("%s (%d)", n.Host, n.PID), n.Version, moment(n.Since), moment(n.Seen),
			fmt.Sprint(n.Leases), fmt.Sprint(n.Sending), fmt.Sprint(n.Users), n.DrainedBy)
	}
	return t.flush()
}

type nodeDrainCmd struct {
	Name string        `arg:"" help:"Name of the node, as node list shows it."`
	Wait bool          `help:"Return when the node is drained, and may be stopped."`
	For  time.Duration `help:"With --wait: how long at most." default:"15m"`
}

// Run takes a node out of service.
func (c *nodeDrainCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	nodes, err := client.DrainNode(a.ctx, c.Name)
	if err != nil {
		return fmt.Errorf("draining node %s: %w", c.Name, err)
	}
	if !c.Wait {
		fmt.Fprintf(a.stderr, "node %s ends what it has; see: crossfade node list\n", clean(c.Name))
		return nil
	}
	limit := time.NewTimer(c.For)
	defer limit.Stop()
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	said := ""
	for {
		done, left, err := c.judge(a, nodes)
		if done || err != nil {
			return err
		}
		if left != said {
			said = left
			fmt.Fprintf(a.stderr, "node %s: %s left\n", clean(c.Name), left)
		}
		select {
		case <-a.ctx.Done():
			fmt.Fprintf(a.stderr, "no longer waiting; node %s goes on ending what it has\n", clean(c.Name))
			return a.ctx.Err()
		case <-limit.C:
			return &commandError{code: exitFailed, err: fmt.Errorf("node %s is not drained after %s: %s left", c.Name, c.For, left),
				hint: "it goes on by itself; wait longer with --for"}
		case <-tick.C:
		}
		if nodes, err = client.Nodes(a.ctx); err != nil {
			return fmt.Errorf("waiting until node %s is drained: %w", c.Name, err)
		}
	}
}

// judge tells whether the node may be stopped, and what it still has.
func (c *nodeDrainCmd) judge(a *app, nodes []admin.Node) (done bool, left string, err error) {
	i := slices.IndexFunc(nodes, func(n admin.Node) bool { return n.Name == c.Name })
	if i < 0 {
		return false, "", fmt.Errorf("node %s is in the books no more", c.Name)
	}
	switch n := nodes[i]; n.State {
	case "drained", "left":
		fmt.Fprintf(a.stderr, "node %s is %s: it may be stopped\n", clean(c.Name), n.State)
		return true, "", nil
	case "gone":
		return false, "", &commandError{code: exitFailed, err: fmt.Errorf("node %s has not been heard of since %s", c.Name, moment(n.Seen)),
			hint: "its mail and its users go to the other nodes by themselves, within a minute"}
	default:
		return false, count(n.Leases, "delivery", "deliveries") + " and " + count(n.Users, "user", "users"), nil
	}
}

type nodeUndrainCmd struct {
	Name string `arg:"" help:"Name of the node, as node list shows it."`
}

// Run puts a node back into service.
func (c *nodeUndrainCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	if _, err := client.UndrainNode(a.ctx, c.Name); err != nil {
		return fmt.Errorf("putting node %s back into service: %w", c.Name, err)
	}
	fmt.Fprintf(a.stderr, "node %s is in service\n", clean(c.Name))
	return nil
}
