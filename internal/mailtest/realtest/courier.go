package realtest

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// courierCapability is IMAP_CAPABILITY as Debian's package has it.
const courierCapability = "IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE"

// CourierOptions says what kind of Courier to start. The zero value serves every user name with the password "secret".
type CourierOptions struct {
	Password string // default "secret"
	// Env is added to imapd's environment, which is its configuration: "IMAP_EMPTYTRASH=Trash:7".
	Env []string
}

// Courier is a running Courier IMAP server: its imapd for every connection, behind a login of ours. Courier's own login
// asks authdaemond, whose socket and configuration have one place on a machine; imapd itself takes everything from its
// environment, and speaks all of the protocol after the login.
//
// imapd wants to be told of changes in directories by a gam_server, which it would start itself, as a daemon that outlives
// the test: each Courier has one of its own.
type Courier struct {
	IMAP
	MailRoot string // below it: u-USER/Maildir
	Options  CourierOptions

	t        testing.TB
	path     string
	log      *os.File
	owner    *user.User // of the mail, and of all processes
	uid, gid int
	watcher  string // GAM_CLIENT_ID: part of the name of gam_server's socket

	mu   sync.Mutex
	live map[net.Conn]bool
	wg   sync.WaitGroup
}

// StartCourier starts a Courier. It is stopped, and its mail removed, when the test ends. Mailboxes are made at the first
// login.
func StartCourier(t testing.TB, o CourierOptions) *Courier {
	t.Helper()
	path := needServer(t, "courier-imap", "/usr/bin/imapd", "/usr/lib/courier/courier/imaplogin")
	o.Password = defaultTo(o.Password, "secret")
	dir := publicDir(t, "courier")
	c := &Courier{
		IMAP:     IMAP{Name: "courier", Password: o.Password, Separator: ".", Prefix: "INBOX."},
		MailRoot: filepath.Join(dir, "mail"), Options: o, t: t, path: path, watcher: filepath.Base(dir), live: map[net.Conn]bool{},
	}
	c.prepare(dir)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for courier: %v", err)
	}
	c.IMAPAddr = l.Addr().String()
	c.wg.Go(func() { c.accept(l) })
	stop := c.watch()
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		c.mu.Lock()
		for conn := range c.live {
			_ = conn.(*net.TCPConn).CloseRead() // imapd has it too, and ends when it reads
		}
		c.mu.Unlock()
		c.wg.Wait()
		_ = c.log.Close()
		if t.Failed() {
			t.Logf("courier printed:\n%s", logTail(c.log.Name()))
		}
	})
	return c
}

// prepare makes the directory of the mail and the log. Root gives all of it to nobody, who needs a name for gam_server.
func (c *Courier) prepare(dir string) {
	c.t.Helper()
	var err error
	if c.owner, err = user.Current(); err == nil && os.Getuid() == 0 {
		c.owner, err = user.Lookup("nobody")
	}
	if err != nil {
		c.t.Fatalf("find a user for courier: %v", err)
	}
	c.uid, _ = strconv.Atoi(c.owner.Uid) // numbers on every Unix
	c.gid, _ = strconv.Atoi(c.owner.Gid)
	if err = os.Mkdir(c.MailRoot, 0o755); err == nil {
		err = os.Chown(c.MailRoot, c.uid, c.gid)
	}
	if err == nil {
		c.log, err = os.Create(filepath.Join(dir, "log"))
	}
	if err != nil {
		c.t.Fatalf("make courier's directory: %v", err)
	}
}

// run starts a program as the owner of the mail and waits for its end. It gets SIGTERM when this process dies: that signal
// is bound to the thread that forked.
func (c *Courier) run(cmd *exec.Cmd, started chan<- error) {
	cmd.Stderr = c.log
	cmd.Env = append(cmd.Env, "GAM_CLIENT_ID="+c.watcher)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.gid)}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // imapd ends with an error when its client is gone
	}
}

// watch starts a gam_server and waits until it listens: an imapd that finds none starts one.
func (c *Courier) watch() (stop func()) {
	c.t.Helper()
	const path = "/usr/libexec/gam_server"
	if _, err := os.Stat(path); err != nil {
		return func() {} // imapd says that it watches nothing, which is no harm
	}
	cmd, started := exec.Command(path, "notimeout", c.watcher), make(chan error, 1)
	c.wg.Go(func() { c.run(cmd, started) })
	if err := <-started; err != nil {
		c.t.Fatalf("start gam_server: %v", err)
	}
	// An abstract socket whose name fills the whole of sun_path.
	socket := "@/tmp/fam-" + c.owner.Username + "-" + c.watcher
	socket += strings.Repeat("\x00", 108-len(socket))
	deadline := time.Now().Add(startTime)
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
			return func() { _ = cmd.Process.Signal(syscall.SIGTERM) }
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			c.t.Fatalf("gam_server does not listen: %v", err)
		}
		runtime.Gosched()
	}
}

func (c *Courier) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.live[conn] = true
		c.mu.Unlock()
		c.wg.Go(func() {
			defer func() {
				c.mu.Lock()
				delete(c.live, conn)
				c.mu.Unlock()
				_ = conn.Close()
			}()
			if name, tag, ok := c.login(conn); ok {
				c.serve(conn.(*net.TCPConn), name, tag)
			}
		})
	}
}

// login is what Courier's imaplogin says until somebody is logged in.
func (c *Courier) login(conn net.Conn) (name, tag string, ok bool) {
	br := bufio.NewReader(conn)
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(conn, format+"\r\n", args...) }
	say("* OK [CAPABILITY %s AUTH=PLAIN] Courier-IMAP ready. See COPYING for distribution information.", courierCapability)
	for {
		words, err := readWords(br, conn)
		if err != nil || len(words) < 2 {
			return "", "", false
		}
		tag = words[0]
		switch verb := strings.ToUpper(words[1]); {
		case verb == "CAPABILITY":
			say("* CAPABILITY %s AUTH=PLAIN", courierCapability)
			say("%s OK CAPABILITY completed", tag)
		case verb == "NOOP":
			say("%s OK NOOP completed", tag)
		case verb == "LOGOUT":
			say("* BYE Courier-IMAP server shutting down\r\n%s OK LOGOUT completed", tag)
			return "", "", false
		case verb == "LOGIN" && len(words) == 4:
			if words[3] == c.Password {
				return words[2], tag, br.Buffered() == 0 // what is in our buffer imapd would never see
			}
			say("%s NO Login failed.", tag)
		case verb == "AUTHENTICATE" && len(words) == 3 && strings.EqualFold(words[2], "PLAIN"):
			say("+ ")
			line, err := br.ReadString('\n')
			if err != nil {
				return "", "", false
			}
			plain, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
			if parts := strings.Split(string(plain), "\x00"); len(parts) == 3 && parts[2] == c.Password {
				return parts[1], tag, br.Buffered() == 0
			}
			say("%s NO Login failed.", tag)
		default:
			say("%s NO Error in IMAP command received by server.", tag)
		}
	}
}

// readWords reads a command of atoms, quoted strings and literals.
func readWords(br *bufio.Reader, conn net.Conn) ([]string, error) {
	var words []string
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, err
		}
		more, size, err := splitWords(strings.TrimRight(line, "\r\n"))
		if words = append(words, more...); err != nil || size < 0 {
			return words, err
		}
		if _, err := io.WriteString(conn, "+ Ready\r\n"); err != nil {
			return nil, err
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(br, b); err != nil {
			return nil, err
		}
		words = append(words, string(b))
	}
}

// splitWords takes a line apart; literal is the size of the literal that it ends with, negative when there is none.
func splitWords(line string) (words []string, literal int, err error) {
	for line = strings.TrimLeft(line, " "); line != ""; line = strings.TrimLeft(line, " ") {
		if size, isLiteral := strings.CutPrefix(line, "{"); isLiteral {
			n, err := strconv.Atoi(strings.TrimSuffix(size, "}"))
			if err != nil || n < 0 || n > 1000 {
				return nil, -1, fmt.Errorf("a literal that is none: %q", line)
			}
			return words, n, nil
		}
		var w string
		w, line = nextWord(line)
		words = append(words, w)
	}
	return words, -1, nil
}

// nextWord takes an atom or a quoted string off a line.
func nextWord(line string) (word, rest string) {
	if line[0] != '"' {
		word, rest, _ = strings.Cut(line, " ")
		return word, rest
	}
	var b strings.Builder
	for i := 1; i < len(line); i++ {
		switch {
		case line[i] == '"':
			return b.String(), line[i+1:]
		case line[i] == '\\' && i+1 < len(line):
			i++
		}
		b.WriteByte(line[i])
	}
	return b.String(), ""
}

// serve runs imapd on the connection until it ends.
func (c *Courier) serve(conn *net.TCPConn, name, tag string) {
	home, err := c.home(name)
	if err != nil {
		c.t.Errorf("make a mailbox of courier: %v", err)
		return
	}
	f, err := conn.File()
	if err != nil {
		return // it was closed: the test is over
	}
	defer func() { _ = f.Close() }()
	cmd, started := exec.Command(c.path, "Maildir"), make(chan error, 1)
	cmd.Dir, cmd.Stdin, cmd.Stdout = home, f, f
	cmd.Env = append([]string{
		"HOME=" + home, "AUTHENTICATED=" + name, "AUTHADDR=" + name, "IMAPLOGINTAG=" + tag, "PROTOCOL=IMAP", "HOSTNAME=courier.test",
		"TCPREMOTEIP=127.0.0.1", "TCPREMOTEPORT=1", "IMAP_CAPABILITY=" + courierCapability, "IMAP_KEYWORDS=1", "IMAP_ACL=1",
		"IMAP_MAILBOX_SANITY_CHECK=1", "IMAP_USELOCKS=1", "IMAP_IDLE_TIMEOUT=60", "IMAP_TRASHFOLDERNAME=Trash",
	}, c.Options.Env...)
	c.run(cmd, started)
	if err := <-started; err != nil {
		c.t.Errorf("start courier's imapd: %v", err)
	}
}

// home makes the home directory and the Maildir of a user, once.
func (c *Courier) home(name string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	home := filepath.Join(c.MailRoot, "u-"+strings.ReplaceAll(name, "/", "_"))
	for _, sub := range []string{"", "Maildir", "Maildir/cur", "Maildir/new", "Maildir/tmp"} {
		dir := filepath.Join(home, sub)
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.Chown(dir, c.uid, c.gid); err != nil {
			return "", err
		}
	}
	return home, nil
}
