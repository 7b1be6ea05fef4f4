package matrix

import (
	"testing"
)

// TestCompareSeesWhatIsAltered, whoever read the messages: one that was read by
// mbsync, whose octets are not known, is compared by what is left of it.
func TestCompareSeesWhatIsAltered(t *testing.T) {
	read := func(byMbsync bool, texts ...string) (out []seen) {
		for _, text := range texts {
			m := look([]byte("Subject: x\r\n\r\n" + text + "\r\n"))
			if byMbsync {
				m.exact = unknown
			}
			out = append(out, m)
		}
		return out
	}
	for _, byMbsync := range []bool{false, true} {
		d := compare("x", read(byMbsync, "one", "two", "three"), read(byMbsync, "three", "one", "2wo"))
		if len(d.lost) != 1 || len(d.duplicated) != 1 {
			t.Errorf("by mbsync %v: lost %q, more %q", byMbsync, d.lost, d.duplicated)
		}
		if d = compare("x", read(byMbsync, "one", "one", "two"), read(byMbsync, "two", "one", "two")); len(d.lost) != 1 || len(d.duplicated) != 1 {
			t.Errorf("by mbsync %v: lost %q, more %q", byMbsync, d.lost, d.duplicated)
		}
		if d = compare("x", read(byMbsync, "one", "two\r\n"), read(byMbsync, "two", "one")); len(d.lost)+len(d.duplicated) != 0 {
			t.Errorf("by mbsync %v: lost %q, more %q", byMbsync, d.lost, d.duplicated)
		}
	}
}
