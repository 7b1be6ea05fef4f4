package imapconn

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/emersion/go-imap/v2"
)

const (
	// attempts are made for one message before it counts as unreadable.
	attempts = 3
	// hopeless is the number of unreadable messages in a row at which the
	// server, and not the messages, is what is broken.
	hopeless = 20
)

// ErrOmitted says that a server answered OK and left a message out.
var ErrOmitted = errors.New("the server answered OK and did not hand it out")

// Failure is a message that the server did not hand out.
type Failure struct {
	UID uint32
	// Gone tells that the server no longer lists it; else it is listed and
	// cannot be read.
	Gone bool
	Err  error
}

// Fetch hands messages (ascending UIDs of the open folder) to recv, in the
// order in which the server sends them, each once. Whatever does not come is
// asked for again, over a new connection if need be; a range that does not
// come at all is halved until the bad message is alone. What is left over is in
// failures, and an error is one of the connection or of recv.
func (r *Reader) Fetch(uids []uint32, it Items, recv Receiver) (failures []Failure, err error) {
	f := &fetching{r: r, it: it, recv: recv, got: map[uint32]bool{}}
	for chunk := range slices.Chunk(uids, 5000) {
		if err := f.fetch(chunk); err != nil {
			return nil, err
		}
	}
	if len(f.failures) == 0 {
		return nil, nil
	}
	return f.settle()
}

type fetching struct {
	r        *Reader
	it       Items
	recv     Receiver
	got      map[uint32]bool
	failures []Failure
	streak   int
}

// fetch asks for uids, and again for those that did not come.
func (f *fetching) fetch(uids []uint32) error {
	var last error
	for try := 0; len(uids) > 0; {
		err := f.r.fetchOnce(uidSet(uids), f.it, f.recv, f.got)
		left := slices.DeleteFunc(slices.Clone(uids), func(u uint32) bool { return f.got[u] })
		if fatal(err) {
			return err
		}
		if len(left) < len(uids) {
			uids, try, f.streak = left, 0, 0
			continue
		}
		if again, perr := f.r.slower(err); perr != nil {
			return perr
		} else if again {
			continue
		}
		if last = err; last == nil {
			last = ErrOmitted
		}
		// It dropped the connection, did not make sense, or left everything out.
		if try++; try < 2 || len(uids) == 1 && try < attempts {
			if err := f.refresh(err); err != nil {
				return err
			}
			continue
		}
		if len(uids) == 1 {
			return f.giveUp(uids[0], last)
		}
		half := len(uids) / 2
		if err := f.fetch(uids[:half]); err != nil {
			return err
		}
		return f.fetch(uids[half:])
	}
	return nil
}

// refresh opens the folder anew after an answer that left messages out. After
// an error there is a new connection anyway.
func (f *fetching) refresh(after error) error {
	if after != nil {
		return nil
	}
	if _, err := f.r.reselect(); fatal(err) {
		return err
	}
	return nil
}

// giveUp tries a message without what may be unreadable beside its body, and
// then notes it as failed.
func (f *fetching) giveUp(uid uint32, cause error) error {
	for _, without := range []Items{
		{Size: f.it.Size, Date: f.it.Date, Body: f.it.Body, Received: f.it.Received},
		{Size: f.it.Size, Flags: f.it.Flags, Body: f.it.Body, Received: f.it.Received},
		{Body: f.it.Body, Received: f.it.Received},
	} {
		if without == f.it || !isParse(cause) {
			continue
		}
		err := f.r.fetchOnce(uidSet([]uint32{uid}), without, f.recv, f.got)
		if fatal(err) {
			return err
		}
		if f.got[uid] {
			f.streak = 0
			return nil
		}
	}
	f.failures = append(f.failures, Failure{UID: uid, Err: cause})
	if f.streak++; f.streak >= hopeless {
		return fmt.Errorf("folder %q: %d messages in a row cannot be read, the last is UID %d: %w", f.r.folder.Name, f.streak, uid, cause)
	}
	return nil
}

// settle tells the failures that are gone from those that are still listed.
func (f *fetching) settle() ([]Failure, error) {
	if _, err := f.r.Again(); err != nil {
		return nil, err
	}
	for i := range f.failures {
		uid := imap.UID(f.failures[i].UID)
		if err := f.r.ensure(); err != nil {
			return nil, err
		}
		data, err := f.r.client.UIDSearch(&imap.SearchCriteria{UID: []imap.UIDSet{imap.UIDSetNum(uid)}}, nil).Wait()
		if err = f.r.failed("UID SEARCH", err); fatal(err) {
			return nil, err
		}
		f.failures[i].Gone = err == nil && !slices.Contains(data.AllUIDs(), uid)
	}
	return f.failures, nil
}

// fatal tells the errors that asking again does not mend.
func fatal(err error) bool {
	if err == nil {
		return false
	}
	var flt *fault
	var e *Error
	return !errors.As(err, &flt) && !errors.As(err, &e)
}

func isParse(err error) bool {
	var flt *fault
	return errors.As(err, &flt) && flt.parse
}

func uidSet(uids []uint32) imap.UIDSet {
	var set imap.UIDSet
	for i := 0; i < len(uids); {
		j := i
		for j+1 < len(uids) && uids[j+1] == uids[j]+1 {
			j++
		}
		set = append(set, imap.UIDRange{Start: imap.UID(uids[i]), Stop: imap.UID(uids[j])})
		i = j + 1
	}
	return set
}

// ErrShort says that the server lists fewer messages than it says there are.
var ErrShort = errors.New("the server lists fewer messages than it has")

// ListAll gives the messages of the open folder, ascending, with what it asks
// for, and the state of the folder that the list belongs to. A list that is
// shorter than EXISTS is asked for again.
func (r *Reader) ListAll(it Items) ([]Meta, Selected, error) {
	sel := r.selected
	var count int
	for try := 0; try < attempts; try++ {
		if try > 0 || sel.UIDValidity == 0 {
			var err error
			if sel, err = r.Again(); err != nil {
				return nil, sel, err
			}
		}
		if sel.Exists == 0 {
			return nil, sel, nil
		}
		metas, listed := r.takeAhead(it)
		var err error
		if !listed {
			metas, err = r.list(imap.UIDSet{{Start: 1, Stop: 0}}, it)
		}
		if fatal(err) {
			return nil, sel, err
		}
		if err != nil {
			metas, err = r.listCarefully(it)
			if err != nil {
				return nil, sel, err
			}
		}
		if count = len(metas); count >= int(sel.Exists) {
			return metas, sel, nil
		}
	}
	return nil, sel, fmt.Errorf("folder %q: %w: %d of %d", r.folder.Name, ErrShort, count, sel.Exists)
}

// UIDsFrom gives the UIDs of from or more, ascending.
func (r *Reader) UIDsFrom(from uint32) ([]uint32, error) {
	from = max(from, 1)
	all := []imap.UIDSet{{{Start: imap.UID(from), Stop: 0}}}
	var last error
	for try := 0; try < attempts; try++ {
		if err := r.ensure(); err != nil {
			return nil, err
		}
		data, err := r.client.UIDSearch(&imap.SearchCriteria{UID: all}, nil).Wait()
		if err = r.failed("UID SEARCH", err); err == nil {
			return atLeast(from, data.AllUIDs()), nil
		}
		if again, perr := r.slower(err); perr != nil {
			return nil, perr
		} else if again {
			try--
			continue
		}
		if last = err; fatal(err) {
			break
		}
	}
	return nil, fmt.Errorf("folder %q: %w", r.folder.Name, last)
}

// atLeast gives the UIDs of from or more, ascending: "n:*" has the last message
// too, whatever its UID (RFC 3501, 6.4.8).
func atLeast(from uint32, all []imap.UID) []uint32 {
	var uids []uint32
	for _, u := range all {
		if uint32(u) >= from {
			uids = append(uids, uint32(u))
		}
	}
	slices.Sort(uids)
	return uids
}

// ListThese gives what is known of some messages; those that are gone are
// missing in the answer.
func (r *Reader) ListThese(uids []uint32, it Items) ([]Meta, error) {
	c := &metaReceiver{}
	failures, err := r.Fetch(uids, it, c)
	for _, f := range failures {
		if !f.Gone {
			err = errors.Join(err, fmt.Errorf("folder %q: UID %d: %w", r.folder.Name, f.UID, f.Err))
		}
	}
	return sorted(c.metas), err
}

// Received gives the Received fields of some messages by UID, as they stand, and which
// messages the server did not hand out.
func (r *Reader) Received(uids []uint32) (map[uint32][]byte, []Failure, error) {
	c := &metaReceiver{fields: map[uint32]*fieldBuffer{}}
	failures, err := r.Fetch(uids, Items{Received: true}, c)
	if err != nil {
		return nil, failures, err
	}
	out := make(map[uint32][]byte, len(c.metas))
	for _, m := range c.metas {
		out[m.UID] = c.fields[m.UID].Bytes()
	}
	return out, failures, nil
}

func (r *Reader) list(set imap.UIDSet, it Items) ([]Meta, error) {
	c := &metaReceiver{}
	err := r.fetchOnce(set, it, c, map[uint32]bool{})
	return sorted(c.metas), err
}

// listCarefully lists a folder in which one message spoils the list: the UIDs
// come from SEARCH, what belongs to each from halved ranges.
func (r *Reader) listCarefully(it Items) ([]Meta, error) {
	uids, err := r.UIDsFrom(1)
	if err != nil {
		return nil, err
	}
	c := &metaReceiver{}
	failures, err := r.Fetch(uids, it, c)
	if err != nil {
		return nil, err
	}
	for _, f := range failures {
		if !f.Gone {
			c.metas = append(c.metas, Meta{UID: f.UID})
		}
	}
	return sorted(c.metas), nil
}

func sorted(metas []Meta) []Meta {
	slices.SortFunc(metas, func(a, b Meta) int { return cmp.Compare(a.UID, b.UID) })
	return slices.CompactFunc(metas, func(a, b Meta) bool { return a.UID == b.UID })
}
