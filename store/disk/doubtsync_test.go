package disk

import (
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
)

// TestDoubtIsSynced: a delivery that was permitted its dot is noted on stable storage within seconds, and found there by
// the store that opens what was synced; a store without deliveries syncs nothing.
func TestDoubtIsSynced(t *testing.T) {
	var mu sync.Mutex
	var synced [][]byte // the file at each sync, which is what a power failure leaves
	s := open(t, t.TempDir(), Options{syncDoubt: func(f *os.File) error {
		b, err := os.ReadFile(f.Name())
		mu.Lock()
		defer mu.Unlock()
		synced = append(synced, b)
		return err
	}})
	syncs := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(synced)
	}
	deliver := func() mail.ID {
		t.Helper()
		if _, err := tryPut(t, s, 100, "a@example.org"); err != nil {
			t.Fatal(err)
		}
		l, err := s.Claim(t.Context(), mail.Old, 1)
		if err != nil {
			t.Fatal(err)
		}
		if n := syncs(); n != 0 {
			t.Errorf("%d syncs before a dot was permitted", n)
		}
		if err := s.Renew(t.Context(), l, true); err != nil {
			t.Fatal(err)
		}
		return l.Envelope.ID
	}
	id := deliver()
	deadline := time.Now().Add(10 * time.Second)
	for syncs() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the note is never synced")
		}
		<-time.After(10 * time.Millisecond)
	}
	f, err := os.Create(t.TempDir() + "/doubt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mu.Lock()
	_, err = f.Write(synced[0])
	mu.Unlock()
	if _, serr := f.Seek(0, io.SeekStart); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	list, err := readDoubts(f, s.doubt.boot)
	if err != nil || !slices.ContainsFunc(list, func(d DoubtfulDelivery) bool { return d.ID == id && d.Sending }) {
		t.Errorf("what was synced has %+v, %v", list, err)
	}
	n := syncs()
	<-time.After(2*doubtSync + doubtSync/2)
	if syncs() != n {
		t.Error("a store that delivers nothing syncs the note")
	}
}
