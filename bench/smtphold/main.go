//go:build ignore

// Command smtphold opens many SMTP connections and keeps them: idle, dripping one byte a second into a message, or
// piled up as a flood; or it counts TLS handshakes. It is what bench/idle.sh and bench/load.sh load a
// relay with.
//
//	go run ./bench/smtphold/main.go -mode idle  -n 10000 -addr 127.0.0.1:2525        until it is interrupted
//	go run ./bench/smtphold/main.go -mode shake -c 8 -for 10s -addr 127.0.0.1:2525   prints handshakes a second
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	addr  = flag.String("addr", "127.0.0.1:2525", "server")
	mode  = flag.String("mode", "idle", "idle, tls (idle under TLS), drip, flood or shake")
	n     = flag.Int("n", 1000, "connections")
	c     = flag.Int("c", 8, "connections that are opened at once")
	nets  = flag.Int("nets", 200, "networks (/24 below 127.0.0.0/8) that they come from")
	hold  = flag.Duration("for", 0, "end after this; 0: when interrupted")
	rcpt  = flag.String("rcpt", "u1@bench.test", "recipient of what drips")
	count struct{ open, turned, failed, cut, shook atomic.Int64 }
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *hold > 0 {
		ctx, stop = context.WithTimeout(ctx, *hold)
		defer stop()
	}
	began := time.Now()
	if *mode == "shake" {
		shake(ctx)
		took := time.Since(began).Seconds()
		fmt.Printf("HANDSHAKES %s: %.0f a second (%d in %.1f s, %d failed)\n", *addr, float64(count.shook.Load())/took, count.shook.Load(), took, count.failed.Load())
		return
	}
	var held sync.WaitGroup
	opening := make(chan int)
	var openers sync.WaitGroup
	for range *c {
		openers.Go(func() {
			for i := range opening {
				if conn := open(i); conn != nil {
					held.Go(func() { keep(ctx, conn) })
				}
			}
		})
	}
	for i := 0; i < *n && ctx.Err() == nil; i++ {
		opening <- i
	}
	close(opening)
	openers.Wait()
	fmt.Printf("OPEN %d of %d (%d turned away with 421, %d failed) after %.1f s\n", count.open.Load(), *n, count.turned.Load(), count.failed.Load(), time.Since(began).Seconds())
	<-ctx.Done()
	held.Wait()
	fmt.Printf("END %d were cut by the server\n", count.cut.Load())
}

// client is one connection.
type client struct {
	net.Conn
	r *bufio.Reader
}

// open brings connection i to where it is kept. Each network has hosts of its own.
func open(i int) *client {
	host := net.IPv4(127, byte(1+i%*nets/250), byte(i%*nets%250), byte(1 + i / *nets % 250))
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: host}, Timeout: 20 * time.Second, KeepAlive: -1}
	conn, err := d.Dial("tcp", *addr)
	if err != nil {
		count.failed.Add(1)
		return nil
	}
	cl := &client{Conn: conn, r: bufio.NewReaderSize(conn, 256)}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	switch err := cl.prepare(); {
	case err == nil:
		_ = conn.SetDeadline(time.Time{})
		count.open.Add(1)
		return cl
	case strings.HasPrefix(err.Error(), "421"):
		count.turned.Add(1)
	default:
		count.failed.Add(1)
	}
	_ = conn.Close()
	return nil
}

func (c *client) prepare() error {
	if err := c.say("", "220"); err != nil {
		return err
	}
	if *mode == "flood" {
		return nil
	}
	if err := c.say("EHLO hold.test", "250"); err != nil {
		return err
	}
	if *mode == "tls" {
		return c.startTLS(nil)
	}
	if *mode != "drip" {
		return nil
	}
	for _, step := range [][2]string{{"MAIL FROM:<drip@hold.test>", "250"}, {"RCPT TO:<" + *rcpt + ">", "250"}, {"DATA", "354"}} {
		if err := c.say(step[0], step[1]); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) startTLS(cache tls.ClientSessionCache) error {
	if err := c.say("STARTTLS", "220"); err != nil {
		return err
	}
	t := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, ClientSessionCache: cache}) // what is measured is the server's work
	if err := t.Handshake(); err != nil {
		return err
	}
	c.Conn, c.r = t, bufio.NewReaderSize(t, 256)
	return nil
}

// say sends a line, unless it is empty, and wants a reply.
func (c *client) say(line, want string) error {
	if line != "" {
		if _, err := io.WriteString(c.Conn, line+"\r\n"); err != nil {
			return err
		}
	}
	for {
		reply, err := c.r.ReadString('\n')
		if err != nil {
			return err
		}
		if len(reply) > 3 && reply[3] == '-' {
			continue
		}
		if !strings.HasPrefix(reply, want) {
			return errors.New(strings.TrimSpace(reply))
		}
		return nil
	}
}

// keep holds a connection, and drips where that is the mode.
func keep(ctx context.Context, c *client) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if *mode == "drip" {
		go func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for range tick.C {
				if _, err := io.WriteString(c.Conn, "x"); err != nil {
					return
				}
			}
		}()
	}
	_, _ = io.Copy(io.Discard, c.r)
	if ctx.Err() == nil {
		count.cut.Add(1)
	}
}

// shake counts full TLS handshakes, each on a connection of its own.
func shake(ctx context.Context) {
	var all sync.WaitGroup
	for range *c {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := shakeOnce(); err != nil {
					count.failed.Add(1)
					continue
				}
				count.shook.Add(1)
			}
		})
	}
	all.Wait()
}

func shakeOnce() error {
	conn, err := net.DialTimeout("tcp", *addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	cl := &client{Conn: conn, r: bufio.NewReaderSize(conn, 256)}
	if err := cl.say("", "220"); err != nil {
		return err
	}
	if err := cl.say("EHLO hold.test", "250"); err != nil {
		return err
	}
	if err := cl.startTLS(nil); err != nil {
		return err
	}
	return cl.say("QUIT", "221")
}
