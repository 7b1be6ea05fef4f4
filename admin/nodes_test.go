package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// memNodes are nodes in memory.
type memNodes struct {
	drained map[string]string
	err     error
}

func (m *memNodes) Nodes(context.Context) ([]Node, error) {
	return []Node{{Name: "a/1", State: "alive", Self: true, Since: time.Now(), DrainedBy: m.drained["a/1"]}}, m.err
}

func (m *memNodes) Drain(_ context.Context, name, by string) error {
	if name != "a/1" {
		return fmt.Errorf("%w: %s", ErrNoNode, name)
	}
	m.drained[name] = by
	return m.err
}

func (m *memNodes) Undrain(ctx context.Context, name string) error { return m.Drain(ctx, name, "") }

func TestNodes(t *testing.T) {
	n := &memNodes{drained: map[string]string{}}
	r := newRig(t, func(c *Config) { c.Nodes = n })
	reader, operator := r.client(readToken), r.client(operateToken)
	list, err := reader.Nodes(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "a/1" || !list[0].Self {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = reader.DrainNode(t.Context(), "a/1")
	wantProblem(t, err, ProblemForbidden)
	if len(n.drained) != 0 {
		t.Errorf("a reader drained a node: %+v", n.drained)
	}
	if list, err = operator.DrainNode(t.Context(), "a/1"); err != nil || list[0].DrainedBy != "olga" {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = operator.UndrainNode(t.Context(), "a/1"); err != nil || list[0].DrainedBy != "" {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = operator.DrainNode(t.Context(), "b")
	wantProblem(t, err, ProblemNoNode)
	n.err = fmt.Errorf("drain: %w", ErrOneNode)
	_, err = operator.DrainNode(t.Context(), "a/1")
	if p := wantProblem(t, err, ProblemRefused); !strings.Contains(p.Hint, "Redis") {
		t.Errorf("hint: %s", p.Hint)
	}
	n.err = errors.New("the store is away")
	_, err = operator.Nodes(t.Context())
	wantProblem(t, err, ProblemInternal)
	var did []string
	for _, rec := range r.records() {
		did = append(did, rec.Action+" "+rec.Object+" "+rec.Result)
	}
	if got := strings.Join(did, ", "); !strings.Contains(got, "drain-node a/1 ok") || !strings.Contains(got, "undrain-node a/1 ok") || !strings.Contains(got, "drain-node b failed") {
		t.Errorf("the audit log has %s", got)
	}
}

func TestNoBooksOfNodes(t *testing.T) {
	r := newRig(t, nil)
	_, err := r.client(readToken).Nodes(t.Context())
	wantProblem(t, err, ProblemRefused)
}
