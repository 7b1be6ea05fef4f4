package relay

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"crossfade/mail"
	"crossfade/router"
)

// discardQueue reads and forgets: what is measured is the way to the queue.
type discardQueue struct{}

func (discardQueue) Put(_ context.Context, env *mail.Envelope, body io.Reader) error {
	n, err := io.Copy(io.Discard, body)
	env.Size = n
	return err
}

func (discardQueue) Room(int64) error { return nil }

// BenchmarkReceive takes 4 KiB messages; a number holds both ends of the
// connection, so halve it for the server alone.
func BenchmarkReceive(b *testing.B) {
	body := "Subject: bench\r\nMessage-ID: <1@bench>\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 52) + ".\r\n"
	text := "MAIL FROM:<a@client.example>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n"
	for name, kept := range map[string]bool{"kept": true, "connection-each": false} {
		b.Run(name, func(b *testing.B) {
			s := newSite(b, router.PolicyReject, func(c *ServerConfig) { c.Queue, c.Logger = discardQueue{}, nil })
			b.ReportAllocs()
			var conn net.Conn
			var br *bufio.Reader
			expect := func(code string) {
				for {
					line, err := br.ReadSlice('\n')
					if err != nil || string(line[:3]) != code {
						b.Fatalf("%q, %v", line, err)
					}
					if line[3] == ' ' {
						return
					}
				}
			}
			write := func(s string) {
				if _, err := io.WriteString(conn, s); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if conn == nil {
					var err error
					if conn, err = net.Dial("tcp", s.addr); err != nil {
						b.Fatal(err)
					}
					br = bufio.NewReader(conn)
					expect("220")
					write("EHLO client.example\r\n")
					expect("250")
				}
				write(text)
				expect("250")
				expect("250")
				expect("354")
				write(body)
				expect("250")
				if !kept {
					_ = conn.Close()
					conn = nil
				}
			}
			if conn != nil {
				_ = conn.Close()
			}
		})
	}
}
