package disk

import (
	"testing"

	"crossfade/mail"

	"github.com/google/go-cmp/cmp"
)

// The end of an envelope is as long as what there is to say, and older ones are read.
func TestEnvelopeTail(t *testing.T) {
	way := mail.Passage{From: mail.Old, Hops: 3, Ours: 1, IDs: []string{"x"}, For: []string{"a@b.example"}}
	seen := map[int]bool{}
	for _, env := range []mail.Envelope{
		{}, {Passage: way}, {Trace: "A: b\r\n"}, {RequireTLS: true}, {TLSOptional: true}, {Passage: way, Trace: "A: b\r\n"}, {Passage: way, Trace: "A: b\r\n", RequireTLS: true},
	} {
		env.ID = mail.NewID()
		env.Recipients = []mail.Recipient{{Addr: mail.Address{Local: "a", Domain: "b.example"}}}
		blob := encodeEnvelope(&env)
		got, err := decodeEnvelope(env.ID, 0, blob)
		if err != nil {
			t.Fatal(err)
		}
		got.Received = env.Received
		if diff := cmp.Diff(&env, got, cmp.Comparer(func(a, b mail.Client) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		seen[len(blob)] = true
		if _, err := decodeEnvelope(env.ID, 0, blob[:len(blob)-1]); err == nil && !env.RequireTLS && !env.TLSOptional { // its one octet is a field of its own
			t.Errorf("an envelope that is cut short was read: %+v", env)
		}
	}
	if len(seen) < 5 {
		t.Errorf("only %d lengths", len(seen))
	}
}
