package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSTARTTLSRefusedWaits: whatever stands between us and a backend under
// smtp+starttls:// says, to refuse STARTTLS for good too, the mail waits.
func TestSTARTTLSRefusedWaits(t *testing.T) {
	t.Parallel()
	_, conf := clientAndServer(t)
	var names []string
	for name := range smtpImpostors {
		if long() || strings.Contains(name, "for good") || strings.Contains(name, "354") || strings.Contains(name, "HELO") {
			names = append(names, name)
		}
	}
	atOnce(t, names, func(n string) string { return n }, func(t *testing.T, n string) {
		s := startObliging(t, conf, smtpImpostors[n])
		f := startFront(t, "smtp+starttls://"+s.addr, "", "")
		if reply, err := give(f.smtp, attacker, letterOf("client.test", "waits"), nil); err != nil || !strings.HasPrefix(reply, "250") {
			t.Fatalf("%s, %v", reply, err)
		}
		until(t, 30*time.Second, "the message to be put back", func() error {
			if f.counts(`crossfade_delivery_recipients_total{result="bounced"`) {
				t.Fatal("it went back to its sender")
			}
			if !f.counts(`crossfade_delivery_recipients_total{result="deferred"`) {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	})
}
