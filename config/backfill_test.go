package config

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBackfill(t *testing.T) {
	c := mustParse(t, minimal+`
backfill:
  users_at_once: 12
  connections: 2
  memory: 128MiB
  patience: 90s
  rates:
    old: {bytes: 20MiB, messages: 500, user_bytes: 5MiB}
    new: {user_messages: 100}
`)
	if c.UsersAtOnce() != 12 || int64(c.Backfill.Memory) != 128<<20 || time.Duration(c.Backfill.Patience) != 90*time.Second {
		t.Errorf("%+v", c.Backfill)
	}
	want := BackfillRates{Old: BackfillRate{Bytes: 20 * MiB, Messages: 500, UserBytes: 5 * MiB}, New: BackfillRate{UserMessages: 100}}
	if diff := cmp.Diff(want, c.Backfill.Rates); diff != "" {
		t.Error(diff)
	}
	if d := Default(); d.UsersAtOnce() != d.Cutover.Concurrency {
		t.Errorf("without users_at_once %d users", d.UsersAtOnce())
	}
}

// TestBackfillReload says which of the keys a reload puts into force.
func TestBackfillReload(t *testing.T) {
	before := mustParse(t, minimal)
	after := mustParse(t, minimal+`
backfill: {users_at_once: 2, connections: 1, memory: 1GiB, patience: 1m, tail_interval: 2m, tail_connections: 9, rates: {old: {bytes: 1MiB}}}
`)
	want := []string{"backfill.users_at_once", "backfill.memory", "backfill.tail_interval", "backfill.tail_connections"}
	if got := Diff(before, after); !cmp.Equal(got, want) {
		t.Errorf("a restart is needed for %q, want %q", got, want)
	}
}

func TestBackfillWarnings(t *testing.T) {
	imap := `hostname: mx.example.org
domains: [example.org]
backends:
  old: {smtp: "smtp://old.internal", imap: "imaps://old.internal", imap_login: {user: m, password_env: PW}, max_imap_connections: 6}
  new: {smtp: "smtp://new.internal", imap: "imaps://new.internal", imap_login: {user: m, password_env: PW}}
`
	for _, tt := range []struct {
		name, section string
		want          []string
	}{
		{"defaults", "", nil},
		{"users", "backfill: {users_at_once: 9}", []string{
			"backfill.users_at_once: 9 users need more than backends.old.max_imap_connections (6) and backends.new.max_imap_connections (40) allow: 6 at a time"}},
		{"tail", "backfill: {tail_interval: 2h}", []string{
			"backfill.tail_interval: mail that arrived on old within 2h before a flip is copied while the user's mail is held"}},
		{"patience", "backfill: {patience: 20m}", []string{
			"backfill.patience: 20m is longer than cutover.max_hold (10m): a flip is given up before a throttled pass is"}},
		{"no effect", "backfill: {rates: {old: {bytes: 1MiB, user_bytes: 2MiB, messages: 5, user_messages: 10}}}", []string{
			"backfill.rates.old.user_bytes: 2MiB has no effect: all users together have 1MiB",
			"backfill.rates.old.user_messages: 10 has no effect: all users together have 5"}},
		{"slow", "backfill: {rates: {new: {user_bytes: 2KiB}}}", []string{
			"backfill.rates.new.user_bytes: at 2KiB in a second a mailbox of 1GiB takes 6d1h"}},
		{"filter", "backfill: {delete_ceiling: 80%, filter: {max_size: 100KiB, exclude: ['[Gmail]/Spam', 'Junk%']}}", []string{
			`backfill.filter: in "Junk%" only * stands for any text; ? and % are themselves`,
			"backfill.filter: what it leaves out is on old alone: users do not see it after the flip",
			"backfill.filter.max_size: 100KiB leaves out most messages with an attachment",
			"backfill.delete_ceiling: with 80% an old mailbox that was emptied by mistake is emptied on new too"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, mustParse(t, imap+tt.section).Warnings()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDate(t *testing.T) {
	var d Date
	for _, text := range []string{"2019-02-28", ""} {
		if err := d.UnmarshalText([]byte(text)); err != nil || d.String() != text {
			t.Errorf("%q: %v, %q", text, err, d)
		}
	}
	for _, text := range []string{"2019-02-30", "2019", "28.02.2019", "2019-02-28T00:00:00Z", "yesterday", "0000-00-00"} {
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %s", text, d)
		}
	}
}

func TestShare(t *testing.T) {
	for text, want := range map[string]Share{"10%": {Percent: 10}, "100%": {Percent: 100}, "1 %": {Percent: 1}, "never": {}} {
		var s Share
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %v, %+v", text, err, s)
		}
	}
	for _, text := range []string{"", "10", "0%", "101%", "-1%", "0.1", "0.5%", "always"} {
		var s Share
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %s", text, s)
		}
	}
}

func TestBackfillFilter(t *testing.T) {
	c := mustParse(t, minimal+`
backfill:
  delete_ceiling: never
  filter: {since: 2019-01-01, before: 2026-01-01, max_size: 50MB, folders: [INBOX, "Arbeit*"], exclude: ["*Spam*"]}
`)
	f := c.Backfill.Filter
	if f.Since.Time() != time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC) || f.MaxSize != 50e6 || len(f.Folders) != 2 || !f.Active() || c.Backfill.DeleteCeiling.Percent != 0 {
		t.Errorf("%+v", c.Backfill)
	}
	if Default().Backfill.Filter.Active() {
		t.Error("the defaults leave something out")
	}
}
