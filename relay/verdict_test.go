package relay

import (
	"strings"
	"testing"
)

// Fields that strangers must not write go, however they write them; others stay,
// in pieces of any size.
func TestVerdictsAreTakenOut(t *testing.T) {
	const stays = "Subject: x\r\nX-Spambot: x\r\nXX-Spam: x\r\nX-Sp am y\r\n X-Spam: folded\r\n"
	for in, want := range map[string]string{
		"X-Spam: yes\r\n": "",
		"x-spam-score : 5\r\n\tmore\r\n  and more\r\n":       "",
		"X-SPAM-FLAG:\r\n no\r\n":                            "",
		"X-Rspamd-Server: a\r\nX-Rspamd: stays\r\n":          "X-Rspamd: stays\r\n",
		"X-\x00Spam: yes\r\n":                                "",
		"X-Spam\r\n: yes\r\n":                                ": yes\r\n",
		"X-Spam-" + strings.Repeat("a", 200_000) + ": x\r\n": "",
	} {
		for _, piece := range []int{1, 3, 64, 1 << 20} {
			f := &forgedFilter{own: "mx.example.org", verdicts: []string{"x-spam", "x-spam-*", "x-rspamd-*"}}
			var got strings.Builder
			text := stays + in + "\r\nX-Spam: in the body\r\n"
			for left := text; left != ""; {
				n := min(piece, len(left))
				got.Write(f.next([]byte(left[:n]), n == len(left)))
				left = left[n:]
			}
			if w := stays + want + "\r\nX-Spam: in the body\r\n"; got.String() != w {
				t.Errorf("%.60q in pieces of %d: %.300q, want %.300q", in, piece, got.String(), w)
			}
			if f.taken != 1 || f.removed != 0 {
				t.Errorf("%.60q: counted %d and %d", in, f.taken, f.removed)
			}
		}
	}
}
