package backfill

import (
	"context"
	"log/slog"
	"time"

	"crossfade/backfill/imapconn"
)

// Job names one mailbox and where it lies on both sides.
type Job struct {
	User   string // key of the ledger: the user's address
	Source imapconn.Account
	Dest   imapconn.Account
	// From is what is read instead of Source, when the old mailbox is not reached
	// over IMAP; nil means Source.
	From Source
	// Gmail says what becomes of labels when Source is a Gmail mailbox, which its
	// server tells by itself (X-GM-EXT-1). It means nothing elsewhere.
	Gmail GmailLabels
	// Host is our own host name: messages that carry a Received line of ours
	// with the same queue id are one message delivered to both sides.
	Host string
	// Settled tells that the user reads the destination: what he deletes there is
	// his, and not missing. Without it he reads the source.
	Settled bool
}

// Options are how a pass is made. Together, Options.Back and Job.Settled say what
// kind of pass it is:
//
//	           the user reads the source     the user reads the destination (Settled)
//	forth      copies, the tail, a flip      a sweep of the old mailbox after the flip
//	Back       a sweep of the new mailbox    a rollback, and what keeps old current
//	           before the flip               after the flip (a mirror)
//
// A pass from the side that is read carries the user's will: with Deletions what
// he deleted and moved, with Restore what is gone from the other side, and where a
// flag is not the same his side wins. A sweep, from the side that is not read,
// carries new mail, and a changed flag where the reader's side still has the flags
// that both sides agreed on last; never a deletion, a move or the flag \Deleted.
// Deletions, AllowDeletions and Restore contradict a sweep: [ErrNotRead].
type Options struct {
	// Back turns the pass round: it copies from Job.Dest to Job.Source, which has
	// to be a mailbox over IMAP that is not Gmail's ([ErrNoWayBack], and
	// Job.WayBack for what can be told before). It works on the same pairs: nothing
	// that one direction copied comes back with the other. In its report, its
	// progress and its errors "source" is where it read, which is Job.Dest;
	// DayLimit alone names the sides as the Job does. Copier.Filter does not count.
	Back bool
	// Final asks for a walk that trusts no shortcut: every folder is looked at.
	Final bool
	// RetryRefused offers the messages again that the destination refused in
	// earlier passes. Without it they are offered again after 1, 2, 4, 8, then
	// every 16 passes.
	RetryRefused bool
	// Restore copies messages again that were copied and are gone from the
	// destination since: what is in the mailbox that is read is to be in the other
	// one on the day the user is moved.
	Restore bool
	// Deletions carries over what was deleted on the source: copies whose message
	// is gone there are deleted on the destination, as far as
	// [Copier.DeleteCeiling] goes. Back, that is the message of which ours was the
	// copy: the user deleted it in the mailbox that he reads.
	Deletions bool
	// AllowDeletions says that an operator has looked: in this pass there is no
	// ceiling. It means nothing without Deletions.
	AllowDeletions bool
	// MayDelete, when there is one, is asked once more right before anything is
	// deleted, or copied again (Restore): a pass may take hours, and meanwhile the
	// user may have come to read the other side. Its error ends the pass, which has
	// copied everything by then.
	MayDelete func(context.Context) error
	// Prompt is for a small pass that somebody waits for, such as one for a user who
	// is ready: it may use what first copies leave of the daily limits, a twentieth.
	// Final passes count, and no daily limit of ours stops them.
	Prompt bool
	// Insist says that an operator asked for this pass: that a server said earlier
	// that a limit is used up does not count. Without it, and without Final, a pass
	// ends with a [DayLimit] before it connects, until the server's time is over.
	Insist bool
	// Only, when it is not empty, names the folders of the source that the pass
	// looks at, as its server writes them; others stay as they are, and may differ.
	// When the ledger knows these folders nothing else is asked for, not even the
	// list of folders: that is the pass for a folder that a [Tail] has told of.
	Only []string
	// Progress is called from time to time, at most a few times a second.
	Progress func(Progress)
	// Arrived is called for each message that was appended, with the beginning of
	// its header, at most 8 KiB: where it came from can be read there. It must not
	// block, and not keep the octets.
	Arrived func(header []byte)
}

// Progress is how far a pass has come.
type Progress struct {
	Folder       string `json:"folder"`
	Folders      int    `json:"folders"`
	FoldersDone  int    `json:"folders_done"`
	Messages     int    `json:"messages"` // to copy in this pass, as far as known
	MessagesDone int    `json:"messages_done"`
	Bytes        int64  `json:"bytes"`
	BytesDone    int64  `json:"bytes_done"`
	// Copied are messages that this pass has appended so far, CopiedBytes their
	// octets, as the report counts them.
	Copied      int   `json:"copied,omitempty"`
	CopiedBytes int64 `json:"copied_bytes,omitempty"`
	// The rates are those of the last ten seconds.
	MessagesPerSecond float64 `json:"messages_per_second,omitempty"`
	BytesPerSecond    float64 `json:"bytes_per_second,omitempty"`
	// LimitWaits is how much of the time that is left goes by waiting for daily
	// limits.
	LimitWaits time.Duration `json:"limit_waits_ns,omitempty"`
}

// Problem is a message, a folder or a flag that could not be carried over as
// it is. It is never skipped silently: the report has all of them.
type Problem struct {
	Folder string `json:"folder"`
	UID    uint32 `json:"uid,omitempty"` // on the source
	// UIDs are several messages with the same problem, as in "3:7,9"; Count is how
	// many.
	UIDs  string `json:"uids,omitempty"`
	Count int    `json:"count,omitempty"`
	Class string `json:"class"` // one of the Class constants
	Text  string `json:"text"`  // the server's words, or what happened
}

// Report is the result of a pass.
type Report struct {
	Folders  int   `json:"folders"`
	Messages int   `json:"messages"` // on the source, when it was looked at
	Copied   int   `json:"copied"`   // appended to the destination
	Adopted  int   `json:"adopted"`  // found there already, by content key, and paired
	Flagged  int   `json:"flagged"`  // flags brought over after the copy
	Deleted  int   `json:"deleted"`  // on the destination, because they are gone from the source
	Moved    int   `json:"moved"`    // and because they came to another folder
	Wrapped  int   `json:"wrapped"`  // carried as an attachment, of those that were refused
	Filtered int   `json:"filtered"` // left out by the filter, on the source
	Bytes    int64 `json:"bytes"`    // appended
	// Left are messages that a sweep saw and did not carry: those of its problems that
	// the destination refuses or the source does not hand out, and when it ended with
	// an error what it did not come to.
	Left     int           `json:"left,omitempty"`
	Problems []Problem     `json:"problems,omitempty"`
	Took     time.Duration `json:"took"`
	// Throttled is how long the pass waited because a server wanted it to.
	Throttled time.Duration `json:"throttled,omitempty"`
}

// Clean tells whether the pass found nothing to copy and nothing wrong that a
// further pass could mend.
func (r Report) Clean() bool {
	if r.Copied+r.Adopted+r.Flagged+r.Wrapped+r.Deleted+r.Moved > 0 {
		return false
	}
	for _, p := range r.Problems {
		if p.Class == ClassUnreadable {
			return false
		}
	}
	return true
}

// The classes of a Problem.
const (
	ClassRefused    = "refused"    // the destination does not take the message
	ClassUnreadable = "unreadable" // the source does not hand it out
	ClassVanished   = "vanished"   // gone from the source meanwhile
	ClassFlag       = "flag"       // a keyword that the destination cannot keep
	ClassName       = "name"       // a folder name that had to change
	ClassDate       = "date"       // the internal date cannot be read on the source
	ClassAltered    = "altered"    // there, but changed by the server: NUL, bare CR, line ends at the end
	ClassMissing    = "missing"    // on the source and nowhere on the destination
	ClassMoved      = "moved"      // in another folder of the destination
	ClassDeleted    = "deleted"    // copied, and gone from the destination since
	ClassFiltered   = "filtered"   // left out by the Filter: one for each folder, with the count
	ClassWrapped    = "wrapped"    // refused by the destination, and carried as an attachment in a folder of ours
	ClassDeletions  = "deletions"  // deleted on the source and still on the destination, with the reason
	ClassQuota      = "quota"      // the source does not fit into the quota of the destination
	ClassACL        = "acl"        // a right of somebody else on a folder that was not carried over
)

// Classes gives all classes of problems.
func Classes() []string {
	return []string{
		ClassRefused, ClassUnreadable, ClassVanished, ClassFlag, ClassName, ClassDate, ClassAltered, ClassMissing, ClassMoved, ClassDeleted,
		ClassFiltered, ClassWrapped, ClassDeletions, ClassQuota, ClassACL,
	}
}

// Verification is the comparison of both sides, by content key as a multiset.
type Verification struct {
	User     string        `json:"user"`
	At       time.Time     `json:"at"` // when it began
	Took     time.Duration `json:"took_ns,omitempty"`
	Source   string        `json:"source,omitempty"` // the server, host:port, or what else the mail was read from
	Dest     string        `json:"dest,omitempty"`
	Folders  []FolderCheck `json:"folders"`
	Missing  int           `json:"missing"`  // on the source and not on the destination
	Wrapped  int           `json:"wrapped"`  // on the source, and on the destination as an attachment
	Filtered int           `json:"filtered"` // on the source and left out by the filter: not compared
	Problems []Problem     `json:"problems,omitempty"`
	// Holds is all that the destination held, folders without a counterpart on
	// the source too: what a later look can be compared with.
	Holds   []Holding `json:"holds,omitempty"`
	History []Point   `json:"history,omitempty"` // of the copy
}

// OK tells whether nothing of the source is missing on the destination.
func (v Verification) OK() bool { return v.Missing == 0 }

// FolderCheck compares one folder.
type FolderCheck struct {
	Source   string `json:"source"`
	Dest     string `json:"dest"`
	OnSource int    `json:"on_source"`
	OnDest   int    `json:"on_dest"`
	Matched  int    `json:"matched"`
	// Extra are on the destination without a counterpart on the source: mail that
	// was delivered there, for one. Twice are those of them whose content is that
	// of a message that has one.
	Extra    int      `json:"extra,omitempty"`
	Twice    int      `json:"twice,omitempty"`
	Wrapped  int      `json:"wrapped,omitempty"`  // on the destination as an attachment, in a folder of ours
	Filtered int      `json:"filtered,omitempty"` // on the source, not compared, not in OnSource
	Missing  []uint32 `json:"missing,omitempty"`  // UIDs on the source
	// Classes count the messages of the source with a problem, by its class.
	Classes map[string]int `json:"classes,omitempty"`
	// Validity is the UIDVALIDITY of the source, Digest the sum over its content
	// keys, as in Holding, and Bytes its octets.
	Validity uint32 `json:"validity,omitempty"`
	Digest   string `json:"digest,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"`
}

// Copier makes passes. Its methods may run at once for different users, never
// for the same user.
type Copier struct {
	Ledger Ledger
	Log    *slog.Logger // nil: silent
	// BatchMessages and BatchBytes bound what is in flight for one user; zero
	// means 100 messages and 8 MiB.
	BatchMessages int
	BatchBytes    int64
	// MemoryBytes bounds the octets of messages in memory, of all passes
	// together; zero means 64 MiB.
	MemoryBytes int64
	// Connections bounds how many folders of one mailbox are copied at once, each
	// over one connection to the source and up to two to the destination; zero
	// means 4, and up to 6 in a first copy over a distance. More than one are used
	// where there is enough to copy, and more than two only where the second brought
	// something, or where a server is so distant that the pass mostly waits. Several
	// mailboxes that are copied at the same time share them, each having one at
	// least, unless a server is distant.
	Connections int
	// SourceRates and DestRates bound what is read and what is appended.
	SourceRates, DestRates Rates
	// Daily bounds what is read and appended for each user in a day. A pass that
	// comes to it ends with a [DayLimit].
	Daily Daily
	// Shared is for a Copier that takes over from another one: it has the memory
	// and the rates of all users instead of MemoryBytes and Rates.All. Nil: what
	// these say.
	Shared *Shared
	// Patience is how long a pass waits in all for a server that throttles it;
	// zero means 5 minutes.
	Patience time.Duration
	// TempDir is where messages over 1 MiB wait between the two servers; empty
	// means the system's. Nothing is left there, however the process ends.
	TempDir string
	// Filter leaves out folders and messages of the source.
	Filter Filter
	// DeleteCeiling is the part of a folder's paired messages that one pass may
	// delete on the destination because they are gone from the source; 0 means
	// 0.10, and below zero deletions are not carried over at all. Ten messages are
	// always within it. More than that deletes none of them, and is reported.
	DeleteCeiling float64
	// Dialer opens the connections; the zero value does.
	Dialer imapconn.Dialer
	// Settle is how long a destination may still be writing a batch after the
	// connection that brought it is gone. A pass that finds such a batch not
	// there yet waits that long, counted from the append, before it appends it
	// again. Zero means 5 seconds.
	Settle time.Duration
	// CrashPoint is called at named points of a pass, for tests that kill the
	// process there: [CrashPoints].
	CrashPoint func(name string)

	shared shared
}

// CrashPoints gives the names with which Copier.CrashPoint is called, in the
// order of a pass.
func CrashPoints() []string {
	return []string{"after-create", "after-recover", "after-fetch", "after-adopt", "after-journal", "after-append", "after-record", "after-flags", "after-wrap", "after-expunge", "between-folders"}
}
