package wire

import (
	"bufio"
	"net"
	"strings"
	"testing"
)

// TestListenersShareLimits: smtp.listen with two addresses has one limit, not
// two.
func TestListenersShareLimits(t *testing.T) {
	shared := &Counts{}
	dial := func() (client net.Conn, accepted chan net.Conn) {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := NewListener(inner, Config{Counts: shared, MaxConns: 1})
		accepted = make(chan net.Conn, 1)
		go func() {
			defer close(accepted)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		t.Cleanup(func() { l.Close(); <-accepted })
		client, err = net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		return client, accepted
	}
	_, one := dial()
	first := <-one
	second, _ := dial()
	line, err := bufio.NewReader(second).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "421 4.7.0") {
		t.Fatalf("the second listener greeted with %q, %v: it counts by itself", line, err)
	}
	first.Close()
	third, two := dial()
	_ = third
	if c := <-two; c == nil {
		t.Fatal("the place was not given back")
	} else {
		c.Close()
	}
}
