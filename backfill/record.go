package backfill

import (
	"net/url"
	"slices"

	"crossfade/backfill/imapconn"
)

// record is what the ledger knows of one folder of the source and its place on
// the destination, as a pass sees it: the source is where the pass reads. The
// ledger keeps it as a pass from the job's source to its destination sees it,
// under the folder's name there; a pass back works on what inverted gives.
type record struct {
	Source      string `json:"source"` // the name on the wire of the source
	Dest        string `json:"dest"`   // the name on the wire of the destination
	SrcValidity uint32 `json:"src_validity"`
	DstValidity uint32 `json:"dst_validity"`
	// Pairs hold for both directions: what one copied the other finds paired.
	Pairs pairs `json:"pairs,omitempty"`
	// Theirs are messages of the destination that were there before they were
	// copied: not ours to delete.
	Theirs     uidSet `json:"theirs,omitempty"`
	Subscribed bool   `json:"subscribed,omitempty"`
	half
	// Back is the half of the passes in the other direction.
	Back *half `json:"back,omitempty"`
	// Attic is for the record of the wrapped messages only.
	Attic []kept `json:"attic,omitempty"`

	back bool // it is seen by a pass back
}

// half is what one direction keeps of a folder for itself.
type half struct {
	// Foreign are messages of the destination with a UID below Seen that are in
	// no pair.
	Foreign uidSet `json:"foreign,omitempty"`
	Seen    uint32 `json:"seen,omitempty"`
	// Mark is the state of the source with which the folder was last finished.
	Mark    imapconn.Status     `json:"mark"`
	Refused map[uint32]*refusal `json:"refused,omitempty"`
	// Filtered is how many messages the filter left out when the folder was last
	// looked at, and Sift which filter that was.
	Filtered int    `json:"filtered,omitempty"`
	Sift     string `json:"sift,omitempty"`
	// Unread counts the passes in which a message could not be read.
	Unread  map[uint32]int `json:"unread,omitempty"`
	Pending *journal       `json:"pending,omitempty"`
	// Readopt says that the pairs were voided: until the folder is finished the
	// messages of the destination are looked at one by one.
	Readopt bool `json:"readopt,omitempty"`
	// Gone are the messages of pairs that the source did not list when the folder
	// was last looked at, and Stays why their copies are still there.
	// Watched tells that somebody wanted to know then.
	Gone    uidSet `json:"gone,omitempty"`
	Stays   *stays `json:"stays,omitempty"`
	Watched bool   `json:"watched,omitempty"`
	// Missed tells that the source did not list the folder in the last pass. Absent
	// tells that a final pass ended for that, and looked no further.
	Missed bool    `json:"missed,omitempty"`
	Absent bool    `json:"absent,omitempty"`
	Anchor *anchor `json:"anchor,omitempty"`
	// Carried is the highest UID of the source that was paired when deletions were
	// last carried over: what is gone from another folder since may have come here
	// behind it.
	Carried uint32 `json:"carried,omitempty"`
	// Orphans are messages of the destination that were copied out of a folder of the
	// source that had this name, and are in no pair.
	Orphans uidSet   `json:"orphans,omitempty"`
	Rights  *granted `json:"rights,omitempty"`
	// Doomed are the messages of pairs that were marked as deleted on the source
	// then.
	Doomed uidSet `json:"doomed,omitempty"`
	// Known are messages of the source that a sweep must not copy, and that have no
	// pair: the reader had them, and did away with their folder, or another message
	// has what was their part. A pass from the reader's side does not ask.
	Known uidSet `json:"known,omitempty"`
	// Unkept are the flags that the destination was found not to keep: that they
	// are missing there says nothing.
	Unkept []string `json:"unkept,omitempty"`
	// Untaken are the flags that the destination did not take for single messages, by
	// their UIDs on the source, though it keeps such flags.
	Untaken map[string]uidSet `json:"untaken,omitempty"`
	// Unproven are messages of the source whose flags were sent to the destination, and
	// not read there since.
	Unproven uidSet `json:"unproven,omitempty"`
}

// inverted is the record as a pass in the other direction sees it. Nothing that
// changes later is in both.
func (r *record) inverted() *record {
	mine := r.half
	v := &record{
		Source: r.Dest, Dest: r.Source, SrcValidity: r.DstValidity, DstValidity: r.SrcValidity,
		Pairs: r.Pairs.inverted(), Subscribed: r.Subscribed, Attic: r.Attic, Back: &mine, back: !r.back,
	}
	if r.Back != nil {
		v.half = *r.Back
	}
	for _, d := range r.Theirs {
		if s, ok := v.Pairs.dest(d); ok {
			v.Theirs = append(v.Theirs, s)
		}
	}
	slices.Sort(v.Theirs)
	return v
}

// other is the half of the other direction.
func (r *record) other() *half {
	if r.Back == nil {
		r.Back = &half{}
	}
	return r.Back
}

// void forgets what is said of UIDs that mean other messages now: the pairs, and
// in both directions what rests on them.
func (r *record) void(srcChanged, dstChanged bool) {
	was := r.SrcValidity != 0
	o := r.other()
	if dstChanged {
		r.Orphans = nil
	} else {
		r.orphan()
	}
	if srcChanged {
		o.Orphans = nil
	}
	r.Pairs = nil
	if dstChanged || srcChanged && r.back {
		r.Theirs = nil // the messages are matched again, and may be copies of ours
	}
	for _, h := range []*half{&r.half, o} {
		h.Untaken, h.Unproven = nil, nil
		h.Foreign, h.Seen, h.Mark = nil, 0, imapconn.Status{}
		h.Gone, h.Doomed, h.Stays, h.Anchor, h.Carried = nil, nil, nil, nil, 0
		h.Readopt = h.Readopt || was
	}
	if srcChanged {
		r.Refused, r.Unread, r.Pending, r.Known, o.Pending = nil, nil, nil, nil, nil
	}
	if dstChanged {
		r.Pending, o.Refused, o.Unread, o.Pending, o.Known = nil, nil, nil, nil, nil
	}
}

// paired notes a pair, and what the messages are known by on both sides.
func (r *record) paired(src, dst uint32, atSrc, atDst key) {
	o := r.other()
	r.Pairs.add(src, dst)
	r.anchor(dst, atDst)
	o.anchor(src, atSrc)
	o.Carried = max(o.Carried, dst) // it came to that folder by us
	r.Orphans.remove(dst)
}

// anchor notes the message of a pair where the direction's copies are.
func (h *half) anchor(uid uint32, loose key) {
	if h.Anchor == nil || uid > h.Anchor.UID {
		h.Anchor = &anchor{uid, loose}
	}
}

// refusal is a message that the destination did not take.
type refusal struct {
	Text  string `json:"text"`
	Tries int    `json:"tries"`
	Skip  int    `json:"skip"` // passes until it is tried again
	// Wrapped tells that it is carried as an attachment.
	Wrapped bool `json:"wrapped,omitempty"`

	waiting bool // not to be tried in this pass
	fresh   bool // refused in this pass, and not in the report yet
	tooBig  bool // so is every mail that carries it
}

// journal is a batch about to be appended. It is written first, so that after a
// crash only the destination's UIDs from UIDNext on have to be looked at.
type journal struct {
	Validity uint32  `json:"validity"`
	UIDNext  uint32  `json:"uidnext"`
	Entries  []entry `json:"entries"`
	At       int64   `json:"at"` // when it was written, in milliseconds of Unix time

	told []uint32 // UIDs that the destination told and that are not believed
}

type entry struct {
	UID   uint32 `json:"uid"` // on the source
	Exact key    `json:"exact"`
	Loose key    `json:"loose"`
	// Munged is zero for most messages.
	Munged key   `json:"munged,omitzero"`
	Size   int64 `json:"size,omitempty"` // octets that went into Exact
}

const (
	folderPrefix = "folder/"
	flagsPrefix  = "flags/"
)

// recordName is printable whatever the server calls its folders.
func recordName(prefix, wire string) string { return prefix + url.PathEscape(wire) }
