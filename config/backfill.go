package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Backfill says how past mail is copied.
type Backfill struct {
	UsersAtOnce   int            `yaml:"users_at_once" reload:"restart" min:"0" max:"1000" doc:"Users copied or flipped at the same time; 0 means cutover.concurrency. With fewer connections than they need (max_imap_connections of both backends) there are fewer."`
	Connections   int            `yaml:"connections" min:"0" max:"16" doc:"Folders of one mailbox that are copied at once, each over one connection to old and up to two to new; 0 means 4, and up to 6 in a first copy over a distance. More than one are used where there is enough to copy, and only while each brings something."`
	Memory        Size           `yaml:"memory" reload:"restart" min:"1MiB" doc:"Octets of messages in memory, of all users together. A message over 1 MiB waits in a file."`
	Patience      Duration       `yaml:"patience" min:"1s" max:"1d" doc:"How long a pass waits in all for a server that wants less to be asked of it; then it ends, and the next one goes on where it stopped."`
	TailInterval  Duration       `yaml:"tail_interval" reload:"restart" min:"1s" max:"1d" doc:"Time between two looks at all folders of a mailbox that is kept up with: of a user who is ready and waits for the flip, and of the mailbox that a user does not read."`
	TailConns     int            `yaml:"tail_connections" reload:"restart" min:"0" max:"10000" doc:"Connections to each side that listen for new mail, beside those of max_imap_connections: of users who are ready, and in mailboxes that their users do not read. It is copied within seconds, and what one of them cannot listen for is asked for each minute. 0 means that nothing listens between two looks."`
	DeleteCeiling Share          `yaml:"delete_ceiling" doc:"The part of a folder that one pass may delete on new because it was deleted on old; more needs an operator's word and is reported. Ten messages are always within it. Never: what was copied stays."`
	Filter        BackfillFilter `yaml:"filter" doc:"What of old is left out. What is left out is counted, named in plans, reports and certificates, and does not keep a user from being flipped."`
	Rates         BackfillRates  `yaml:"rates" doc:"The most that is asked of a server in a second. 0 is no bound: then the servers' own speed is one, and what they say when it is too much."`
	Daily         BackfillDaily  `yaml:"daily" doc:"The most that is moved of one user's mail in 24 hours, for providers that lock an account which moves more. At the limit his copy waits, and goes on by itself; a twentieth is left for new mail of users who are ready and for flips. Gmail: old 2500MB, new 500MB, less what the user's own programs need."`
}

// BackfillDaily bounds what is moved of one user's mail in any 24 hours; 0 is no bound.
type BackfillDaily struct {
	Old Size `yaml:"old" min:"0" doc:"Octets of messages that are read from old in 24 hours, of each user; 0 means no bound."`
	New Size `yaml:"new" min:"0" doc:"Octets of messages that are appended on new in 24 hours, of each user; 0 means no bound."`
}

// smallDay is a daily limit that large messages alone come near to.
const smallDay = 50 * MiB

// BackfillFilter says what of the old mailboxes is left out.
type BackfillFilter struct {
	Since   Date     `yaml:"since" doc:"First day that is copied, such as 2019-01-01, by the date on which the old server took the message (UTC). Empty means all."`
	Before  Date     `yaml:"before" doc:"First day that is not copied any more. Empty means all."`
	MaxSize Size     `yaml:"max_size" min:"0" doc:"Largest message that is copied; 0 means any."`
	Folders []string `yaml:"folders" doc:"Patterns of the folders to copy, as the old server writes their names; * stands for any text, separators too. Empty means all."`
	Exclude []string `yaml:"exclude" doc:"Patterns of folders to leave out, whatever folders says."`
}

// Active reports whether anything is left out.
func (f BackfillFilter) Active() bool {
	return !f.Since.IsZero() || !f.Before.IsZero() || f.MaxSize > 0 || len(f.Folders) > 0 || len(f.Exclude) > 0
}

// BackfillRates are the rates of both sides.
type BackfillRates struct {
	Old BackfillRate `yaml:"old" doc:"Of what is read from old."`
	New BackfillRate `yaml:"new" doc:"Of what is appended on new."`
}

// BackfillRate bounds what is asked of one side in a second; 0 is no bound.
type BackfillRate struct {
	Bytes        Size `yaml:"bytes" min:"0" doc:"Octets of messages in a second, of all users together; 0 means no bound."`
	Messages     int  `yaml:"messages" min:"0" max:"1000000" doc:"Messages in a second, of all users together; 0 means no bound."`
	UserBytes    Size `yaml:"user_bytes" min:"0" doc:"Octets of messages in a second, of each user; 0 means no bound."`
	UserMessages int  `yaml:"user_messages" min:"0" max:"1000000" doc:"Messages in a second, of each user; 0 means no bound."`
}

func defaultBackfill() Backfill {
	return Backfill{Memory: 64 * MiB, Patience: Duration(5 * time.Minute), TailInterval: Duration(time.Minute), TailConns: 50, DeleteCeiling: Share{Percent: 10}}
}

// UsersAtOnce is how many users are worked on at the same time: backfill.users_at_once, or else cutover.concurrency.
func (c *Config) UsersAtOnce() int {
	if c.Backfill.UsersAtOnce > 0 {
		return c.Backfill.UsersAtOnce
	}
	return c.Cutover.Concurrency
}

// each calls f for both sides.
func (r *BackfillRates) each(f func(key string, r BackfillRate)) {
	f("backfill.rates.old", r.Old)
	f("backfill.rates.new", r.New)
}

// namedSize is a size with the last part of its key.
type namedSize struct {
	name string
	size Size
}

func (r BackfillRate) sizes() []namedSize {
	return []namedSize{{"bytes", r.Bytes}, {"user_bytes", r.UserBytes}}
}

// backfill checks what the tags cannot say. A rate below a message's usual size is a unit forgotten ("bytes: 5" for 5
// MiB): it would look like a copy that hangs.
func (k *checker) backfill() {
	k.c.Backfill.Rates.each(func(key string, r BackfillRate) {
		for _, v := range r.sizes() {
			if v.size > 0 && v.size < KiB {
				k.fail(key+"."+v.name, "%s in a second is less than one small message: write a unit, such as 5MiB, or 0 for no bound", v.size)
			}
		}
	})
	for key, size := range map[string]Size{"old": k.c.Backfill.Daily.Old, "new": k.c.Backfill.Daily.New} {
		if size > 0 && size < MiB {
			k.fail("backfill.daily."+key, "%s in a day is less than many single messages: write a unit, such as 2500MB, or 0 for no bound", size)
		}
	}
	f := k.c.Backfill.Filter
	if !f.Since.IsZero() && !f.Before.IsZero() && !f.Since.Time().Before(f.Before.Time()) {
		k.fail("backfill.filter.before", "%s is not after since (%s): nothing would be copied", f.Before, f.Since)
	}
	k.patterns("backfill.filter.folders", f.Folders)
	k.patterns("backfill.filter.exclude", f.Exclude)
}

// patterns refuses what matches no folder, or would be taken for something else.
func (k *checker) patterns(key string, patterns []string) {
	for i, p := range patterns {
		at := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case p == "":
			k.fail(at, "an empty pattern matches no folder: remove it")
		case strings.ContainsFunc(p, unicode.IsControl) || !utf8.ValidString(p):
			k.fail(at, "%q is not the name of a folder: write it in UTF-8, without control characters", p)
		}
	}
}

// slowRate is a rate at which a mailbox of a GiB takes more than a day.
const slowRate = 12 * KiB

// backfillWarnings lists values that make the backfill slow, or have no effect.
func (c *Config) backfillWarnings() []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	b := &c.Backfill
	b.Rates.each(func(key string, r BackfillRate) {
		if r.Bytes > 0 && r.UserBytes > r.Bytes {
			warn("%s.user_bytes: %s has no effect: all users together have %s", key, r.UserBytes, r.Bytes)
		}
		if r.Messages > 0 && r.UserMessages > r.Messages {
			warn("%s.user_messages: %d has no effect: all users together have %d", key, r.UserMessages, r.Messages)
		}
		for _, v := range r.sizes() {
			if v.size > 0 && v.size < slowRate {
				warn("%s.%s: at %s in a second a mailbox of 1GiB takes %s", key, v.name, v.size, Duration((time.Duration(GiB/v.size) * time.Second).Truncate(time.Hour)))
			}
		}
	})
	for _, day := range []namedSize{{"old", b.Daily.Old}, {"new", b.Daily.New}} {
		if day.size > 0 && day.size < smallDay {
			warn("backfill.daily.%s: at %s in a day a mailbox of 1GiB takes %d days", day.name, day.size, (GiB+day.size-1)/day.size)
		}
	}
	if f := b.Filter; f.Active() {
		for _, p := range append(slices.Clone(f.Folders), f.Exclude...) {
			if strings.ContainsAny(p, "?%") {
				warn("backfill.filter: in %q only * stands for any text; ? and %% are themselves", p)
			}
		}
		warn("backfill.filter: what it leaves out is on old alone: users do not see it after the flip")
		if f.MaxSize > 0 && f.MaxSize < MiB {
			warn("backfill.filter.max_size: %s leaves out most messages with an attachment", f.MaxSize)
		}
	}
	if b.DeleteCeiling.Percent > 50 {
		warn("backfill.delete_ceiling: with %s an old mailbox that was emptied by mistake is emptied on new too", b.DeleteCeiling)
	}
	if !c.Backends.Old.Readable() || c.Backends.New.IMAP.IsZero() {
		return out
	}
	most := max(min(c.Backends.Old.MaxIMAPConnections, c.Backends.New.MaxIMAPConnections/2), 1)
	if n := c.UsersAtOnce(); n > most {
		warn("backfill.users_at_once: %d users need more than backends.old.max_imap_connections (%d) and backends.new.max_imap_connections (%d) allow: %d at a time",
			n, c.Backends.Old.MaxIMAPConnections, c.Backends.New.MaxIMAPConnections, most)
	}
	if wait := time.Duration(b.TailInterval); wait > time.Hour {
		warn("backfill.tail_interval: mail that arrived on old within %s before a flip is copied while the user's mail is held", b.TailInterval)
	}
	if time.Duration(b.Patience) > time.Duration(c.Cutover.MaxHold) {
		warn("backfill.patience: %s is longer than cutover.max_hold (%s): a flip is given up before a throttled pass is", b.Patience, c.Cutover.MaxHold)
	}
	return out
}
