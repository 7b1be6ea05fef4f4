package imapconn

import (
	"strings"
	"testing"
)

func TestQuota(t *testing.T) {
	for answer, want := range map[string]Quota{
		"":                              {-1, -1},
		"* QUOTA \"\" (STORAGE 10 512)": {502 << 10, -1},
		"* QUOTA u (MESSAGE 20 100 STORAGE 600 512)":         {0, 80},
		"* QUOTA a (STORAGE 1 9)\r\n* QUOTA b (STORAGE 1 3)": {2 << 10, -1},
		"* QUOTA u ()":                              {-1, -1},
		"* QUOTA u (STORAGE 1":                      {-1, -1},
		"* QUOTA u (ANNOTATION-STORAGE 1 2)":        {-1, -1},
		"* QUOTA u (STORAGE 0 9223372036854775807)": {(1<<63 - 1) >> 10 << 10, -1},
	} {
		f := newFake(t)
		f.caps += " QUOTA"
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if !strings.HasPrefix(cmd, "GETQUOTAROOT") {
				return false
			}
			c.say("* QUOTAROOT INBOX u\r\n%s\r\n%s OK done\r\n", strings.TrimPrefix(answer+"\r\n* 0 RECENT", "\r\n"), tag)
			return true
		}
		s, err := (&Dialer{}).Open(t.Context(), f.account())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Quota("INBOX"); got != want || err != nil {
			t.Errorf("%q: %+v, %v", answer, got, err)
		}
		s.Close()
	}
}
