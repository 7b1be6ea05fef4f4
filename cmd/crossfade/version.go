package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker for a release; otherwise the build information
// of Go is asked.
var version string

type versionCmd struct {
	jsonFlag
}

// buildInfo is what `version --json` prints.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Run prints the version.
func (c *versionCmd) Run(a *app) error {
	b := readBuild()
	if c.JSON {
		return a.printJSON(b)
	}
	rev := ""
	if b.Revision != "" {
		rev = fmt.Sprintf(" (%.12s)", b.Revision)
	}
	fmt.Fprintf(a.stdout, "crossfade %s%s %s %s\n", b.Version, rev, b.Go, b.Platform)
	return nil
}

func readBuild() buildInfo {
	b := buildInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}
