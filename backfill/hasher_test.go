package backfill

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// slowIdentity says octet by octet what a hasher has to find line by line.
func slowIdentity(p []byte) identity {
	var id identity
	var exact, loose []byte
	var prev byte
	newlines := 0
	for _, c := range p {
		if prev == '\r' && c != '\n' {
			id.Fragile = true
		}
		if c == '\n' && prev != '\r' {
			exact = append(exact, '\r')
		}
		exact = append(exact, c)
		prev = c
		switch c {
		case '\n':
			newlines++
			continue
		case '\r':
			id.CRs++
			continue
		case 0:
			id.Fragile, id.NUL = true, true
			c = 0x80
		}
		for ; newlines > 0; newlines-- {
			loose = append(loose, "\r\n"...)
		}
		loose = append(loose, c)
	}
	id.Fragile = id.Fragile || len(p) > 0 && prev != '\n'
	munged, at := bytes.Clone(loose), len(loose)
	if whole := append(bytes.Clone(loose), bytes.Repeat(crlf, newlines)...); bytes.HasPrefix(whole, crlf) {
		at = 0
	} else if i := bytes.Index(whole, []byte("\r\n\r\n")); i >= 0 {
		at = i
	}
	for i, c := range munged[:at] {
		if c >= 0x80 {
			munged[i] = 'X'
			id.Fragile = true
		}
	}
	if !bytes.Equal(munged, loose) {
		id.Munged = sha256.Sum256(munged)
	}
	id.Exact, id.Loose, id.Size = sha256.Sum256(exact), sha256.Sum256(loose), int64(len(exact))
	return id
}

// fastIdentity writes p in pieces that rnd chooses.
func fastIdentity(h *hasher, p []byte, rnd *rand.Rand) identity {
	h.reset()
	for len(p) > 0 {
		n := 1 + rnd.IntN(min(len(p), 1+rnd.IntN(48<<10)))
		_, _ = h.Write(p[:n])
		p = p[n:]
	}
	return h.end()
}

func TestIdentityLineByLine(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	h := newHasher("")
	for range 2000 {
		p := make([]byte, rnd.IntN(60))
		for i := range p {
			p[i] = "a\r\n\x00\r\n\xfca"[rnd.IntN(8)]
		}
		if got, want := fastIdentity(h, p, rnd), slowIdentity(p); got != want {
			t.Fatalf("%q: %+v, want %+v", p, got, want)
		}
	}
	for range 20 { // beyond the size of the blocks
		p := make([]byte, rnd.IntN(96<<10))
		for i := range p {
			p[i] = 'x'
			if rnd.IntN(16<<10) < 4 {
				p[i] = "\r\n\x00\n\xfc\xe4"[rnd.IntN(6)]
			}
		}
		if got, want := fastIdentity(h, p, rnd), slowIdentity(p); got != want {
			t.Fatalf("%d octets: %+v, want %+v", len(p), got, want)
		}
	}
}

func FuzzHasher(f *testing.F) {
	f.Add([]byte("a: b\r\n\r\nc\n\r\x00\r\n\n"), uint64(1))
	f.Add([]byte("a: \xfc\r\n\r\n\xfc\n"), uint64(1))
	h := newHasher("")
	f.Fuzz(func(t *testing.T, p []byte, seed uint64) {
		if got, want := fastIdentity(h, p, rand.New(rand.NewPCG(seed, 0))), slowIdentity(p); got != want {
			t.Errorf("%q: %+v, want %+v", p, got, want)
		}
	})
}

func BenchmarkHasher(b *testing.B) {
	line := []byte("The quick brown fox jumps over the lazy dog, and then over the other dog.\r\n")
	p := append(bytes.Repeat([]byte("X-Header: of an ordinary length, as most of them have it\r\n"), 40), crlf...)
	for len(p) < 1<<20 {
		p = append(p, line...)
	}
	h := newHasher("mx.example.org")
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		h.reset()
		for at := 0; at < len(p); at += 32 << 10 {
			_, _ = h.Write(p[at:min(at+32<<10, len(p))])
		}
		h.end()
	}
}
