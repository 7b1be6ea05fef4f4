// Package systemd speaks with the service manager that started this process: it
// takes sockets that were bound for us, tells when we are ready, reload and stop,
// and that we are alive (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)). It
// knows nothing of what is served. Without a manager everything here does nothing.
//
// Start reading at [FromEnv].
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is the service manager, as the environment describes it. A nil Manager is
// none.
type Manager struct {
	socket   string        // for notices; empty: nobody listens
	watchdog time.Duration // 0: nobody watches
	sockets  map[string][]*os.File
}

// firstSocket is the number of the first descriptor that is passed.
const firstSocket = 3

// maxSockets bounds what LISTEN_FDS may say.
const maxSockets = 1000

// FromEnv reads what the manager put into the environment, and takes it out, so that
// programs which this one starts do not take it for theirs.
func FromEnv() (*Manager, error) {
	get := func(name string) string {
		v := os.Getenv(name)
		os.Unsetenv(name) // fails for a bad name alone
		return v
	}
	m := &Manager{socket: get("NOTIFY_SOCKET")}
	if pid, usec := get("WATCHDOG_PID"), get("WATCHDOG_USEC"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		if n, err := strconv.ParseInt(usec, 10, 64); err == nil && n > 0 {
			m.watchdog = time.Duration(n) * time.Microsecond
		}
	}
	pid, count, names := get("LISTEN_PID"), get("LISTEN_FDS"), get("LISTEN_FDNAMES")
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return m, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxSockets {
		return nil, fmt.Errorf("sockets of the service manager: LISTEN_FDS is %q", count)
	}
	m.take(n, strings.Split(names, ":"))
	return m, nil
}

// take makes files of the descriptors that were passed.
func (m *Manager) take(n int, names []string) {
	m.sockets = map[string][]*os.File{}
	for i := range n {
		name := "unknown" // as sd_listen_fds_with_names calls it
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		fd := firstSocket + i
		syscall.CloseOnExec(fd)
		m.sockets[name] = append(m.sockets[name], os.NewFile(uintptr(fd), name))
	}
}

// Sockets are the listening sockets that were passed, by name (FileDescriptorName=).
func (m *Manager) Sockets() map[string][]*os.File {
	if m == nil {
		return nil
	}
	return m.sockets
}

// Watchdog is how often the manager wants to hear of us at the latest; 0: never.
func (m *Manager) Watchdog() time.Duration {
	if m == nil {
		return 0
	}
	return m.watchdog
}

// The notices.
const (
	Ready     = "READY=1"
	Reloading = "RELOADING=1"
	Stopping  = "STOPPING=1"
	Alive     = "WATCHDOG=1"
)

// Extend asks for more time to start or to stop.
func Extend(d time.Duration) string { return fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()) }

// Notify sends notices. Without a manager that listens it does nothing.
func (m *Manager) Notify(notices ...string) error {
	if m == nil || m.socket == "" {
		return nil
	}
	name := m.socket
	if name[0] == '@' {
		name = "\x00" + name[1:] // an abstract socket
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	if _, err := c.Write([]byte(strings.Join(notices, "\n"))); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}

// Monotonic is the clock by which Reloading is told, in microseconds since the machine
// was started; the notice needs it as MONOTONIC_USEC.
func Monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot be: the clock is there
	}
	return ts.Nano() / 1000
}
