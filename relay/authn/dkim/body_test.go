package dkim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"
)

// plainCanon is the canonical form of a body, written down as RFC 6376, 3.4.3 and
// 3.4.4, say it, with the whole body in memory.
func plainCanon(c Canon, body string) string {
	if c == Relaxed {
		if !strings.HasSuffix(body, "\r\n") {
			body += "\r\n" // the end of the body ends its last line
		}
		body = regexp.MustCompile(`[ \t]+\r\n`).ReplaceAllString(body, "\r\n")
		body = regexp.MustCompile(`[ \t]+`).ReplaceAllString(body, " ")
	}
	for strings.HasSuffix(body, "\r\n") {
		body = strings.TrimSuffix(body, "\r\n")
	}
	if body == "" && c == Relaxed {
		return ""
	}
	return body + "\r\n"
}

func hashInPieces(c Canon, body string, sizes func() int) *BodyHash {
	h := NewBodyHash(c)
	for len(body) > 0 {
		n := min(max(sizes(), 1), len(body))
		h.Write([]byte(body[:n]))
		body = body[n:]
	}
	return h
}

func TestBodyHash(t *testing.T) {
	bodies := []string{
		"", "\r\n", "\r\n\r\n", "a", "a\r\n", "a\r\n\r\n\r\n", " ", " \t", " \r\n", "\t\r\n \r\n", "a \r\n", "a \t b\r\n", " a\r\n", "a  b  ", "a\r\n \r\nb",
		" C \r\nD \t E\r\n\r\n\r\n", // RFC 6376, 3.4.5
		"\r", "a\r", "a \r", "\r\r\n", "a\rb\r\n", "a\nb\r\n", "\n", "\r\n\r", " \r \r\n", "a\r\n\r\n b", strings.Repeat("\r\n", 5000) + "x", strings.Repeat(" ", 9000) + "x  ",
	}
	for _, body := range bodies {
		for _, c := range []Canon{Simple, Relaxed} {
			want := plainCanon(c, body)
			for _, size := range []int{1, 2, 3, 7, 1 << 20} {
				h := hashInPieces(c, body, func() int { return size })
				if got := sha256.Sum256([]byte(want)); !bytes.Equal(h.Sum(), got[:]) {
					t.Errorf("%s body %.40q in pieces of %d: not the hash of %.40q", c, body, size, want)
				}
			}
		}
	}
}

// TestBodyHashRFC: the hashes of bodies that RFC 6376, 3.4.3 and 3.4.4, print for
// an empty body.
func TestBodyHashRFC(t *testing.T) {
	for _, c := range []struct {
		form Canon
		want string
	}{{Simple, "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY="}, {Relaxed, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}} {
		want, err := Base64(c.want)
		if got := NewBodyHash(c.form).Sum(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the hash of an empty body is %x", c.form, got)
		}
	}
}

// FuzzBodyHash compares with the form as the RFC says it, in random pieces.
func FuzzBodyHash(f *testing.F) {
	f.Add("a \r\n\r\n b\t c\r\n\r\n", uint64(1))
	f.Add("\r\r\n \r", uint64(2))
	f.Fuzz(func(t *testing.T, body string, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		for _, c := range []Canon{Simple, Relaxed} {
			want := plainCanon(c, body)
			h := hashInPieces(c, body, func() int { return r.IntN(9) })
			if sum := sha256.Sum256([]byte(want)); !bytes.Equal(h.Sum(), sum[:]) {
				t.Fatalf("%s: %q is not hashed as %q", c, body, want)
			}
		}
	})
}

// TestBodyHashIsLinear: bodies that are quadratic work for others take time in
// proportion. The figure is printed.
func TestBodyHashIsLinear(t *testing.T) {
	for _, kind := range []struct {
		name, piece string
		size        int // octets
	}{
		{"blank lines", "\r\n", 50 << 20}, {"spaces", " ", 8 << 20}, {"tabs and line ends", "\t\r\n", 8 << 20}, {"CR", "\r", 8 << 20},
		{"letters", "the quick brown fox jumps over the lazy dog\r\n", 8 << 20},
	} {
		piece := []byte(strings.Repeat(kind.piece, 32<<10/len(kind.piece)))
		for _, c := range []Canon{Simple, Relaxed} {
			h := NewBodyHash(c)
			began := time.Now()
			for n := 0; n < kind.size; n += len(piece) {
				h.Write(piece)
			}
			h.Write([]byte("x")) // what was waited for has to be written after all
			h.Sum()
			took := time.Since(began)
			t.Logf("%s: %d MiB of %s in %s", c, kind.size>>20, kind.name, took.Round(time.Millisecond))
			if took > 20*time.Second {
				t.Errorf("%s: %d MiB of %s took %s", c, kind.size>>20, kind.name, took)
			}
		}
	}
	if n := testing.AllocsPerRun(10, func() { NewBodyHash(Relaxed).Write([]byte(strings.Repeat("\r\n", 1000))) }); n > 10 {
		t.Errorf("%v allocations for blank lines: they are kept", n)
	}
}

func BenchmarkBodyHash(b *testing.B) {
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog, twice or more\r\n", 1000))
	for _, c := range []Canon{Simple, Relaxed} {
		b.Run(fmt.Sprint(c), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				h := NewBodyHash(c)
				h.Write(text)
				h.Sum()
			}
		})
	}
}
