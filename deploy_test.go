package crossfade_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"crossfade/config"
)

// TestDeploy: the configurations that are handed out with the compose file and
// the manifests are ones that the program takes.
func TestDeploy(t *testing.T) {
	nodes, err := filepath.Glob("deploy/compose/*.yaml")
	if err != nil || len(nodes) != 2 {
		t.Fatalf("found %v: %v", nodes, err)
	}
	compose := parseYAML(t, read(t, "docker-compose.yml"))[0]
	names := map[string]bool{}
	for _, file := range nodes {
		c, err := config.Load(file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		names[c.Node] = true
		if !strings.Contains(read(t, "docker-compose.yml"), "/etc/crossfade/"+filepath.Base(file)) {
			t.Errorf("docker-compose.yml does not use %s", file)
		}
	}
	if len(names) != len(nodes) {
		t.Errorf("the nodes are named %v: each needs its own name", names)
	}
	services, _ := compose["services"].(map[string]any)
	for _, want := range []string{"redis", "node-a", "node-b", "old", "new"} {
		if services[want] == nil {
			t.Errorf("docker-compose.yml has no %s", want)
		}
	}
	kinds := map[string]int{}
	for _, doc := range parseYAML(t, read(t, "deploy/kubernetes/crossfade.yaml")) {
		kind, _ := doc["kind"].(string)
		kinds[kind]++
		if kind != "ConfigMap" {
			continue
		}
		data, _ := doc["data"].(map[string]any)
		text, _ := data["crossfade.yaml"].(string)
		if _, err := config.Parse("deploy/kubernetes/crossfade.yaml", []byte(text)); err != nil {
			t.Errorf("the ConfigMap: %v", err)
		}
	}
	for _, want := range []string{"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"} {
		if kinds[want] == 0 {
			t.Errorf("there is no %s among the manifests", want)
		}
	}
}

func parseYAML(t *testing.T, text string) (docs []map[string]any) {
	t.Helper()
	for _, part := range strings.Split(text, "\n---\n") {
		var doc map[string]any
		if err := yaml.Unmarshal([]byte(part), &doc); err != nil {
			t.Fatal(err)
		}
		docs = append(docs, doc)
	}
	return docs
}
