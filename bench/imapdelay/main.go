//go:build ignore

// Command imapdelay hands TCP connections on and delays every octet by half of a
// round trip, in both directions, without bounding the bandwidth. It is no part
// of Crossfade.
//
//	imapdelay -rtt 40ms LISTEN=TARGET...
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

type piece struct {
	at time.Time
	b  []byte
}

func pump(dst, src net.Conn, half time.Duration) {
	pieces := make(chan piece, 4096)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				pieces <- piece{time.Now().Add(half), b[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.at))
		if _, err := dst.Write(p.b); err != nil {
			break
		}
	}
	dst.Close()
	src.Close()
	for range pieces { // until the reader is over
	}
}

func main() {
	rtt := flag.Duration("rtt", 40*time.Millisecond, "round trip")
	flag.Parse()
	for _, arg := range flag.Args() {
		listen, target, _ := strings.Cut(arg, "=")
		l, err := net.Listen("tcp", listen)
		if err != nil {
			fmt.Fprintln(os.Stderr, "imapdelay:", err)
			os.Exit(1)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					s, err := net.Dial("tcp", target)
					if err != nil {
						c.Close()
						return
					}
					go pump(s, c, *rtt/2)
					pump(c, s, *rtt/2)
				}()
			}
		}()
	}
	select {}
}
