package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// StartReplicas starts n replicas of the server, and waits until they have all
// that it has.
func (s *Server) StartReplicas(n int, args ...string) []*Server {
	s.t.Helper()
	host, port, _ := net.SplitHostPort(s.Addr)
	args = append([]string{"--replicaof", host + " " + port}, args...)
	if s.pass != "" {
		args = append([]string{"--masterauth", s.pass, "--requirepass", s.pass}, args...)
	}
	var out []*Server
	for range n {
		out = append(out, Start(s.t, args...))
	}
	for i, r := range out {
		if err := poll(startTime, func() (bool, error) {
			return r.Info("master_link_status") == "up" && strings.Contains(s.Info(fmt.Sprintf("slave%d", i)), "state=online"), nil
		}); err != nil {
			s.t.Fatalf("replica %s: link to its master: %v\n%s", r.Addr, err, r.Log(10))
		}
	}
	return out
}

// Sentinels watch over one master.
type Sentinels struct {
	// Name is what they call the master.
	Name string
	// Nodes are the sentinels.
	Nodes []*Server
	t     testing.TB
}

// StartSentinels starts n sentinels for the server, of which quorum have to
// agree that it is gone. They take 0.5 s of silence for that. It waits until
// they know each other and the replicas.
func (s *Server) StartSentinels(name string, n, quorum int) *Sentinels {
	s.t.Helper()
	out := &Sentinels{Name: name, t: s.t}
	for range n {
		out.Nodes = append(out.Nodes, s.sentinel(name, quorum))
	}
	replicas := s.Info("connected_slaves")
	for _, node := range out.Nodes {
		err := poll(startTime, func() (bool, error) {
			f := out.master(node)
			return f["num-other-sentinels"] == fmt.Sprint(n-1) && f["num-slaves"] == replicas, nil
		})
		if err != nil {
			s.t.Fatalf("sentinel %s does not know its world: %v: %v\n%s", node.Addr, err, out.master(node), node.Log(10))
		}
	}
	return out
}

func (s *Server) sentinel(name string, quorum int) *Server {
	s.t.Helper()
	host, port, _ := net.SplitHostPort(s.Addr)
	own := freePort(s.t)
	dir := s.t.TempDir()
	conf := fmt.Sprintf("port %s\nsentinel monitor %s %s %s %d\nsentinel down-after-milliseconds %s 500\n"+
		"sentinel failover-timeout %s 4000\nsentinel parallel-syncs %s 2\n", own, name, host, port, quorum, name, name, name)
	if s.pass != "" {
		conf += fmt.Sprintf("sentinel auth-pass %s %s\n", name, s.pass)
	}
	path := filepath.Join(dir, "sentinel.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
	out := &Server{t: s.t, program: s.program, Dir: dir, Addr: net.JoinHostPort("127.0.0.1", own), args: []string{"--sentinel"}, conf: path}
	if err := out.run(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(out.Kill)
	// Their usual pace takes ten seconds until an old master is a replica.
	_, _ = out.Do("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 300, "INFO-PERIOD", 1000, "ASK-PERIOD", 300, "PING-PERIOD", 200)
	return out
}

func (s *Sentinels) master(node *Server) map[string]string {
	v, err := node.Do("SENTINEL", "MASTER", s.Name)
	if err != nil {
		return nil
	}
	list, _ := v.([]any)
	out := map[string]string{}
	for i := 0; i+1 < len(list); i += 2 {
		out[fmt.Sprint(list[i])] = fmt.Sprint(list[i+1])
	}
	return out
}

// URL is where a store reaches the master through them.
func (s *Sentinels) URL() string {
	var hosts []string
	for _, n := range s.Nodes {
		hosts = append(hosts, n.Addr)
	}
	return "redis+sentinel://" + strings.Join(hosts, ",") + "/" + s.Name + "/0"
}

// Master gives the address of whom the first sentinel takes for the master.
func (s *Sentinels) Master() string {
	v, err := s.Nodes[0].Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.Name)
	list, _ := v.([]any)
	if err != nil || len(list) != 2 {
		return ""
	}
	return net.JoinHostPort(fmt.Sprint(list[0]), fmt.Sprint(list[1]))
}

// Failover has a replica take over. It only starts it.
func (s *Sentinels) Failover() error {
	_, err := s.Nodes[0].Do("SENTINEL", "FAILOVER", s.Name)
	return err
}

// Cluster is a Redis Cluster.
type Cluster struct {
	Masters  []*Server
	Replicas []*Server // the first ones are of the first master
	t        testing.TB
}

// StartCluster starts n masters with so many replicas each, and waits until
// every one of them finds the cluster whole. A node counts as gone after 1 s.
func StartCluster(t testing.TB, n, replicas int, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for i := range n * (1 + replicas) {
		bus := freePort(t)
		s := Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "1000",
			"--cluster-replica-validity-factor", "0"}, args...)...)
		s.bus = bus
		s.Must("CLUSTER", "SET-CONFIG-EPOCH", i+1)
		if i < n {
			s.Must("CLUSTER", "ADDSLOTSRANGE", 16384*i/n, 16384*(i+1)/n-1)
			c.Masters = append(c.Masters, s)
			continue
		}
		c.Replicas = append(c.Replicas, s)
	}
	all := c.Nodes()
	for _, s := range all[1:] {
		host, port, _ := net.SplitHostPort(s.Addr)
		all[0].Must("CLUSTER", "MEET", host, port, s.bus)
	}
	c.wait("know each other", func(s *Server) bool { return c.info(s, "cluster_known_nodes") == fmt.Sprint(len(all)) })
	for i, r := range c.Replicas {
		id := c.Masters[i/replicas].Must("CLUSTER", "MYID")
		if err := poll(startTime, func() (bool, error) {
			_, err := r.Do("CLUSTER", "REPLICATE", id)
			return err == nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.wait("are whole", func(s *Server) bool { return c.info(s, "cluster_state") == "ok" })
	for _, r := range c.Replicas {
		if err := poll(startTime, func() (bool, error) { return r.Info("master_link_status") == "up", nil }); err != nil {
			t.Fatalf("replica %s: link to its master: %v", r.Addr, err)
		}
	}
	return c
}

func (c *Cluster) wait(what string, ok func(*Server) bool) {
	c.t.Helper()
	for _, s := range c.Nodes() {
		if err := poll(startTime, func() (bool, error) { return ok(s), nil }); err != nil {
			c.t.Fatalf("cluster: nodes that %s: %s: %v\n%s", what, s.Addr, err, s.Log(10))
		}
	}
}

func (c *Cluster) info(s *Server, field string) string {
	v, err := s.Do("CLUSTER", "INFO")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut("\n"+v.(string), "\n"+field+":")
	val, _, _ := strings.Cut(rest, "\r")
	return val
}

// Nodes are all of them, masters first.
func (c *Cluster) Nodes() []*Server {
	return append(append([]*Server{}, c.Masters...), c.Replicas...)
}

// URL is where a store reaches the cluster.
func (c *Cluster) URL() string {
	var hosts []string
	for _, n := range c.Nodes() {
		hosts = append(hosts, n.Addr)
	}
	return "redis+cluster://" + strings.Join(hosts, ",")
}

// Owner gives the node that has a key, as far as it runs: it answers for it and
// is a master.
func (c *Cluster) Owner(key string) *Server {
	for _, s := range c.Nodes() {
		if _, err := s.Do("EXISTS", key); err == nil {
			return s
		}
	}
	return nil
}
