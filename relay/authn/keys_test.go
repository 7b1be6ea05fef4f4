package authn

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"crossfade/relay/authn/dkim"
)

// TestKeyCache: a key that was read is not read again, what is none is never kept, and there is an end to what is kept.
func TestKeyCache(t *testing.T) {
	var c keyCache
	good := "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
	first, err := c.parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.parse(good); err != nil || again != first {
		t.Errorf("it was read again: %v", err)
	}
	if _, err := c.parse("v=DKIM1; p="); !errors.Is(err, dkim.ErrKeyRevoked) {
		t.Errorf("a revoked key: %v", err)
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range maxKeys {
				if _, err := c.parse(fmt.Sprintf("%s; n=%d-%d", good, i, n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if len(c.known) != maxKeys {
		t.Errorf("%d keys are kept, want %d", len(c.known), maxKeys)
	}
}
