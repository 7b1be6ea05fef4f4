package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Info is what a node tells of itself.
type Info struct {
	Version string `json:"version,omitempty"`
	Admin   string `json:"admin,omitempty"` // where its API answers
}

// process is where and what a node runs as, so that another on the same machine
// can tell that it is dead.
type process struct {
	Info
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Space names the kernel and the space of process ids, in which PID means
	// one process and no other; empty: not known.
	Space string `json:"space,omitempty"`
	Start string `json:"start,omitempty"` // when the process began, in the kernel's words
}

func thisProcess(info Info) process {
	p := process{Info: info, PID: os.Getpid()}
	p.Host, _ = os.Hostname()
	kernel, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, err2 := os.Readlink("/proc/self/ns/pid")
	if err == nil && err2 == nil {
		p.Space = strings.TrimSpace(string(kernel)) + " " + space
		p.Start, _, _ = processState(p.PID)
	}
	return p
}

func (p process) encode() string {
	b, err := json.Marshal(p)
	if err != nil {
		return "{}" // it is made of strings and a number
	}
	return string(b)
}

func processOf(text string) process {
	var p process
	if json.Unmarshal([]byte(text), &p) != nil {
		return process{}
	}
	return p
}

func (p process) String() string { return fmt.Sprintf("host %s (pid %d)", p.Host, p.PID) }

// dead tells whether p has certainly ended: it ran on this machine, in this
// space of process ids, and is no more.
func (p process) dead() bool {
	here := thisProcess(Info{})
	if p.PID <= 0 || here.Space == "" || p.Space != here.Space || p.Host != here.Host {
		return false
	}
	if errors.Is(syscall.Kill(p.PID, 0), syscall.ESRCH) {
		return true
	}
	start, zombie, err := processState(p.PID)
	return err == nil && (zombie || p.Start != "" && start != p.Start)
}

// processState reads when a process began and whether it has ended and only
// its parent has not looked yet.
func processState(pid int) (start string, zombie bool, err error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", false, err
	}
	// pid (name) state ...; the name may hold anything. Field 22 is the start.
	_, rest, _ := strings.Cut(string(stat[max(strings.LastIndexByte(string(stat), ')'), 0):]), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return "", false, fmt.Errorf("process %d: its state cannot be read", pid)
	}
	return f[19], f[0] == "Z" || f[0] == "X", nil
}
