package attack

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
)

// milterFault is where a scanner goes wrong, by the command of the protocol that it
// hears then, and what it does instead of answering. first says that it takes no
// session at all, cheap that nobody waits for it.
type milterFault struct {
	name         string
	at           byte
	do           func(net.Conn)
	first, cheap bool
}

// The commands of the milter protocol.
var milterPhases = []struct {
	at   byte
	name string
}{
	{'O', "negotiation"}, {'C', "the client's address"}, {'H', "the client's name"}, {'M', "the sender"}, {'R', "a recipient"}, {'L', "a header field"},
	{'N', "the end of the header"}, {'B', "the body"}, {'E', "the end of the message"},
}

// hangs reads and says nothing until the other side is gone.
func hangs(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// says writes a packet, and hangs.
func says(packet string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, packet)
		hangs(c)
	}
}

// milterFaults are all of them.
func milterFaults() (out []milterFault) {
	for _, p := range milterPhases {
		out = append(out, milterFault{"hangs at " + p.name, p.at, hangs, p.at == 'O', false}, milterFault{"hangs up at " + p.name, p.at, func(net.Conn) {}, p.at == 'O', true})
	}
	progress := func(c net.Conn) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte{0, 0, 0, 1, 'p'}); err != nil {
				return
			}
		}
	}
	return append(out,
		milterFault{"speaks SMTP", 'O', says("220 scanner.test ESMTP\r\n"), true, true},
		milterFault{"says nothing of use, without end", 'E', progress, false, false},
		milterFault{"announces a packet of 4 GiB", 'E', says("\xff\xff\xff\xffc"), false, true},
		milterFault{"sends a packet without a command", 'E', says("\x00\x00\x00\x00"), false, true},
		milterFault{"answers what is no answer", 'E', says("\x00\x00\x00\x02?\x00"), false, true},
	)
}

// brokenScanner is a milter that does well until a fault is put in.
type brokenScanner struct {
	addr  string
	fault atomic.Pointer[milterFault]
}

func startScanner(t *testing.T) *brokenScanner {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &brokenScanner{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(patience))
				s.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return s
}

func (s *brokenScanner) serve(conn net.Conn) {
	br := bufio.NewReader(conn)
	for {
		var head [5]byte
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return
		}
		data := make([]byte, max(int(binary.BigEndian.Uint32(head[:]))-1, 0))
		if _, err := io.ReadFull(br, data); err != nil {
			return
		}
		if f := s.fault.Load(); f != nil && f.at == head[4] {
			f.do(conn)
			return
		}
		answer := []byte("\x00\x00\x00\x01c")
		switch head[4] {
		case 'D', 'A':
			continue // macros, and the end of a message, have no answer
		case 'Q':
			return
		case 'O':
			answer = append([]byte("\x00\x00\x00\x0dO"), data[:4]...) // its version; no changes; every step
			answer = append(answer, make([]byte, 8)...)
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// TestFaultsMilter: a scanner that hangs, hangs up or talks nonsense, wherever it
// does: mail is put off or taken as it is, as configured, within the time allowed;
// the next message is judged as if nothing had been. When nothing is judged any more
// /readyz says so.
func TestFaultsMilter(t *testing.T) {
	t.Parallel()
	type run struct {
		mode   string
		faults []milterFault
	}
	var runs []run
	for _, mode := range []string{"tempfail", "accept"} {
		quick := run{mode: mode}
		for _, f := range milterFaults() {
			switch {
			case !f.first && f.cheap:
				quick.faults = append(quick.faults, f)
			case long() || f.first && !f.cheap || f.at == 'B' || f.at == 'E' && mode == "tempfail":
				runs = append(runs, run{mode, []milterFault{f}})
			}
		}
		runs = append(runs, quick)
	}
	atOnce(t, runs, func(r run) string { return r.mode + ", " + r.faults[0].name }, func(t *testing.T, r run) {
		s := startScannedFront(t, r.mode)
		if r.faults[0].first {
			s.neverWell(&r.faults[0])
		} else {
			s.oneByOne(r.faults)
		}
		s.arrived()
	})
	figure(t, "%d faults of a scanner, with on_failure tempfail and accept", len(milterFaults()))
}

// oneByOne has the scanner fail with single messages, and at last with all.
func (s *scannedFront) oneByOne(faults []milterFault) {
	s.t.Helper()
	for _, fault := range faults {
		s.mustGive("a good scanner", "250")
		s.scanner.fault.Store(&fault)
		began := time.Now()
		s.mustGive(fault.name, s.when)
		if took := time.Since(began); took > 15*time.Second {
			s.t.Errorf("%s: it took %v", fault.name, took)
		}
		s.scanner.fault.Store(nil)
	}
	s.mustGive("a good scanner", "250")
	if status, w := s.f.readyz(); status != 200 || w != "" {
		s.t.Errorf("single messages that failed: %d, %q", status, w)
	}
	s.scanner.fault.Store(&milterFault{at: 'M', do: func(net.Conn) {}})
	for range 10 {
		s.mustGive("a scanner that judges nothing", s.when)
	}
	s.warned("a scanner that judges nothing")
}

// neverWell has it take no session, until it is mended.
func (s *scannedFront) neverWell(fault *milterFault) {
	s.t.Helper()
	s.scanner.fault.Store(fault)
	s.mustGive(fault.name, s.when)
	s.warned(fault.name)
	s.scanner.fault.Store(nil)
	until(s.t, 20*time.Second, "the scanner to be asked again", func() error {
		s.mustGive("a scanner that may be mended", "")
		if _, w := s.f.readyz(); w != "" {
			return fmt.Errorf("%s", w)
		}
		return nil
	})
}

// scannedFront is a relay with a scanner.
type scannedFront struct {
	t       *testing.T
	f       *front
	scanner *brokenScanner
	sink    *mailtest.Sink
	mode    string
	when    string // the beginning of the reply to a message that was not judged
	taken   map[string]string
	n       int
}

func startScannedFront(t *testing.T, mode string) *scannedFront {
	t.Helper()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	s := &scannedFront{t: t, scanner: startScanner(t), sink: sink, mode: mode, when: "250", taken: map[string]string{}}
	if mode == "tempfail" {
		s.when = "451 4.7.1"
	}
	s.f = startFront(t, sink.URL(""), fmt.Sprintf(", filter: {milter: %q, on_failure: %s, timeout: 3s}", "inet:"+s.scanner.addr, mode), "")
	return s
}

// mustGive sends a message, whose reply must begin with want.
func (s *scannedFront) mustGive(what, want string) {
	s.t.Helper()
	s.n++
	id := fmt.Sprintf("scanned-%03d", s.n)
	msg := letterOf("client.test", id)
	reply, err := give(s.f.smtp, "ann@client.test", msg, nil)
	if err != nil || !strings.HasPrefix(reply, want) || reply[0] == '5' {
		s.t.Errorf("%s: %s, %v; want %s", what, reply, err, want)
	}
	if strings.HasPrefix(reply, "250") {
		s.taken[id] = msg
	}
}

// warned wants to find the scanner's failure where operators look.
func (s *scannedFront) warned(what string) {
	s.t.Helper()
	words := map[string]string{"tempfail": "and mail is put off", "accept": "and mail is accepted without being looked at"}[s.mode]
	if status, w := s.f.readyz(); status != 200 || !strings.Contains(w, "the content filter inet:"+s.scanner.addr+" has not worked since") || !strings.Contains(w, words) {
		s.t.Errorf("%s: readyz says %d, %q", what, status, w)
	}
	if !s.f.counts(`crossfade_filter_messages_total{result="failed"}`) {
		s.t.Errorf("%s: the metrics do not count it", what)
	}
}

// arrived wants to find at the backend what was taken, as it was sent, and nothing
// else.
func (s *scannedFront) arrived() {
	s.t.Helper()
	got, err := s.sink.Wait(s.t.Context(), len(s.taken))
	if err != nil || len(got) != len(s.taken) {
		s.t.Fatalf("%d were taken, %d arrived: %v", len(s.taken), len(got), err)
	}
	for _, m := range got {
		if _, err := asSent(m.Body, s.taken[subject(append([]byte("\r\n"), m.Body...))]); err != nil {
			s.t.Errorf("%v: %q", err, m.Body)
		}
	}
}

// TestFaultsPeer does the same to a Postfix in our place, with the default of Debian
// for milters that fail (milter_default_action = tempfail), in shorter times than its
// 30 s for a command and 300 s for the message; and gives it a certificate that has
// ended. Nothing is demanded of it.
func TestFaultsPeer(t *testing.T) {
	t.Parallel()
	s := startScanner(t)
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	files := issueFiles(t, ca, time.Now().Add(-90*day), time.Now().Add(-time.Hour))
	p := startPeer(t, "smtpd_milters = inet:"+s.addr+"\nmilter_connect_timeout = 1s\nmilter_command_timeout = 1s\nmilter_content_timeout = 1s\n"+
		"smtpd_tls_security_level = may\nsmtpd_tls_cert_file = "+files.Cert+"\nsmtpd_tls_key_file = "+files.Key+"\n")
	letter := letterOf("client.test", "scanned")
	// It proves the scanner of this test too: without a fault mail passes.
	reply, err := give(p.Addr, "ann@client.test", letter, &tls.Config{InsecureSkipVerify: true})
	if err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("%s, %v", reply, err)
	}
	log, err := os.ReadFile(p.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	figure(t, "Postfix of Debian 12, a certificate that has ended: %.3s under TLS; its log speaks of it: %t", reply, strings.Contains(strings.ToLower(string(log)), "expire"))
	count, n := map[string]int{}, 0
	for _, f := range milterFaults() {
		if !long() && !f.cheap && f.at != 'M' {
			continue
		}
		n++
		s.fault.Store(&f)
		reply, err := give(p.Addr, "ann@client.test", letter, nil)
		if err != nil {
			reply = "the connection ends"
		}
		t.Logf("%s: %s", f.name, reply)
		reply, _, _ = strings.Cut(reply, " ")
		count[reply]++
	}
	figure(t, "Postfix of Debian 12, %d faults of a scanner: %v", n, count)
}
