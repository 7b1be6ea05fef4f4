package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const tagNodes = "nodes"

// ErrNoNode is in the error of a [NodesAPI] for a node that it does not know,
// or that has left.
var ErrNoNode = errors.New("no such node")

// ErrOneNode is in the error of a [NodesAPI] for what needs a store that nodes
// share.
var ErrOneNode = errors.New("the store is this node's own")

// NodesAPI is what the API asks of the books of nodes.
type NodesAPI interface {
	Nodes(ctx context.Context) ([]Node, error)
	// Drain takes a node out of service; by is who does.
	Drain(ctx context.Context, name, by string) error
	Undrain(ctx context.Context, name string) error
}

// Node is one of the nodes that share the work.
type Node struct {
	Name      string    `json:"name"`
	State     string    `json:"state" doc:"alive, draining (takes nothing new), drained (has nothing any more: it may be stopped), gone (not heard of for 15 s) or left (ended in good order)."`
	Self      bool      `json:"self,omitempty" doc:"The node that answers."`
	Host      string    `json:"host"`
	PID       int       `json:"pid"`
	Version   string    `json:"version"`
	Admin     string    `json:"admin" doc:"Where its API listens."`
	Since     time.Time `json:"since" doc:"Its start."`
	Seen      time.Time `json:"seen" doc:"Its last sign of life."`
	DrainedBy string    `json:"drained_by,omitempty"`
	Leases    int       `json:"leases" doc:"Deliveries that it has claimed."`
	Sending   int       `json:"sending" doc:"Recipients whose final dot may be under way."`
	Users     int       `json:"users" doc:"Users on whom its conductor works."`
}

// NodeList lists the nodes, by name.
type NodeList struct {
	Nodes []Node `json:"nodes"`
}

type nodeInput struct {
	Name string `path:"name" maxLength:"256"`
}

func (s *Server) registerNodes() {
	register(s, op{method: http.MethodGet, path: "/v1/nodes", id: "list-nodes", tag: tagNodes, role: RoleRead,
		summary: "The nodes that share queue, users and work"}, s.listNodes)
	register(s, op{method: http.MethodPost, path: "/v1/nodes/{name}/drain", id: "drain-node", tag: tagNodes, role: RoleOperate, status: http.StatusAccepted,
		summary: "Take a node out of service", detail: "It takes no mail and claims none, ends what it has, and gives its users to other nodes. " +
			"GET shows when it is drained. A node that is started anew is in service."}, s.drainNode)
	register(s, op{method: http.MethodPost, path: "/v1/nodes/{name}/undrain", id: "undrain-node", tag: tagNodes, role: RoleOperate, status: http.StatusAccepted,
		summary: "Put a node back into service"}, s.undrainNode)
}

func (s *Server) nodes() (NodesAPI, error) {
	if s.cfg.Nodes != nil {
		return s.cfg.Nodes, nil
	}
	return nil, refused(ProblemRefused, "this relay keeps no books of nodes", "")
}

func (s *Server) listNodes(ctx context.Context, _ *struct{}) (*body[NodeList], error) {
	n, err := s.nodes()
	if err != nil {
		return nil, err
	}
	list, err := n.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the nodes: %w", err)
	}
	return &body[NodeList]{NodeList{Nodes: append([]Node{}, list...)}}, nil
}

func (s *Server) drainNode(ctx context.Context, in *nodeInput) (*body[NodeList], error) {
	return s.changeNode(ctx, "drain-node", in.Name, func(ctx context.Context, n NodesAPI) error {
		return n.Drain(ctx, in.Name, callerOf(ctx).name)
	})
}

func (s *Server) undrainNode(ctx context.Context, in *nodeInput) (*body[NodeList], error) {
	return s.changeNode(ctx, "undrain-node", in.Name, func(ctx context.Context, n NodesAPI) error {
		return n.Undrain(ctx, in.Name)
	})
}

// changeNode makes a change under the eyes of the audit log, and answers how
// the nodes do then.
func (s *Server) changeNode(ctx context.Context, action, name string, do func(context.Context, NodesAPI) error) (*body[NodeList], error) {
	n, err := s.nodes()
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, Record{Action: action, Object: name}, func(ctx context.Context, _ *Record) error {
		return nodeError(do(ctx, n))
	})
	if err != nil {
		return nil, err
	}
	return s.listNodes(ctx, nil)
}

func nodeError(err error) error {
	switch {
	case errors.Is(err, ErrNoNode):
		return &Problem{Type: ProblemNoNode, Title: "no such node", Status: http.StatusNotFound, Detail: err.Error(), Hint: "GET /v1/nodes lists them"}
	case errors.Is(err, ErrOneNode):
		return refused(ProblemRefused, err.Error(), "nodes share a store in Redis: see `store` in the configuration, and `crossfade store copy` for the way there")
	}
	return err
}

// Nodes lists the nodes, by name.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var out NodeList
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/nodes"}, nil, &out)
	return out.Nodes, err
}

// DrainNode takes a node out of service.
func (c *Client) DrainNode(ctx context.Context, name string) ([]Node, error) {
	var out NodeList
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/nodes/" + part(name) + "/drain"}, nil, &out)
	return out.Nodes, err
}

// UndrainNode puts a node back into service.
func (c *Client) UndrainNode(ctx context.Context, name string) ([]Node, error) {
	var out NodeList
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/nodes/" + part(name) + "/undrain"}, nil, &out)
	return out.Nodes, err
}
