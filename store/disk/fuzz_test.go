package disk

import (
	"bytes"
	"io"
	"testing"

	"crossfade/mail"
)

// FuzzSegment: no octets make a scan or a read panic, run away or read beyond.
func FuzzSegment(f *testing.F) {
	id := mail.NewID()
	body := []byte("hello")
	one := header{int64(len(body)), 0, id}.append(nil)
	f.Add(append(one, body...), int64(0), int64(5))
	f.Add(bytes.Repeat(append(one, body...), 3), int64(53), int64(5))
	f.Add(one[:40], int64(0), int64(0))
	f.Add([]byte{}, int64(-1), int64(1<<62))
	f.Fuzz(func(t *testing.T, b []byte, pos, size int64) {
		r := bytes.NewReader(b)
		last := int64(0)
		end, err := scanSegment(r, int64(len(b)), func(rec record) error {
			if rec.pos != last || rec.size < 0 || rec.pos+headerSize+rec.size > int64(len(b)) {
				t.Fatalf("record %+v behind %d of %d", rec, last, len(b))
			}
			last = rec.pos + headerSize + rec.size
			if br, err := openRecord(r, rec.pos, rec.id, rec.size); err == nil {
				if n, _ := io.Copy(io.Discard, br); n != rec.size {
					t.Fatalf("read %d of %d", n, rec.size)
				}
			}
			return nil
		})
		if err != nil || end != last || end > int64(len(b)) {
			t.Fatalf("stopped at %d behind %d: %v", end, last, err)
		}
		if pos < 0 {
			return
		}
		if br, err := openRecord(r, pos, id, size); err == nil {
			io.Copy(io.Discard, br)
		}
	})
}

// FuzzEnvelope: no blob makes the decoder panic or allocate without bound.
func FuzzEnvelope(f *testing.F) {
	f.Add(encodeEnvelope(envelope(f, "a@example.org", "b@example.org")))
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		env, err := decodeEnvelope("x", 1, b)
		if err != nil {
			return
		}
		again, err := decodeEnvelope("x", 1, encodeEnvelope(env))
		if err != nil || len(again.Recipients) != len(env.Recipients) {
			t.Fatalf("it does not come back: %v", err)
		}
	})
}
