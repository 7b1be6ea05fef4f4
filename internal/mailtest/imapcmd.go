package mailtest

import (
	"fmt"
	"io"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

var errReadOnly = &imap.Error{Type: imap.StatusResponseTypeNo, Text: "folder is open read-only"}

// List answers LIST and LSUB from the folder tree.
func (s *imapSession) List(w *imapserver.ListWriter, ref string, patterns []string, options *imap.ListOptions) error {
	return s.guard(IMAPEvent{Command: "LIST"}, func() error { return s.user.list(w, ref, patterns, options) })
}

// Status answers STATUS.
func (s *imapSession) Status(folder string, options *imap.StatusOptions) (data *imap.StatusData, err error) {
	err = s.guard(IMAPEvent{Command: "STATUS", Folder: folder}, func() error {
		box, err := s.user.box(folder)
		if err == nil {
			data = box.status(folder)
		}
		return err
	})
	return data, err
}

// Create makes a folder and the levels above it.
func (s *imapSession) Create(name string, options *imap.CreateOptions) error {
	return s.guard(IMAPEvent{Command: "CREATE", Folder: name}, func() error { return s.user.create(name, options) })
}

// Delete removes a folder, not INBOX.
func (s *imapSession) Delete(name string) error { return s.user.delete(name) }

// Rename renames a folder with its subfolders.
func (s *imapSession) Rename(oldName, newName string, _ *imap.RenameOptions) error {
	return s.user.rename(oldName, newName)
}

// Subscribe marks a folder.
func (s *imapSession) Subscribe(name string) error { return s.user.subscribe(name, true) }

// Unsubscribe takes the mark away.
func (s *imapSession) Unsubscribe(name string) error { return s.user.subscribe(name, false) }

// Select opens a folder.
func (s *imapSession) Select(name string, options *imap.SelectOptions) (data *imap.SelectData, err error) {
	err = s.guard(IMAPEvent{Command: "SELECT", Folder: name}, func() error {
		box, err := s.user.box(name)
		if err != nil {
			return err
		}
		s.box, s.folder, s.readOnly = box, name, options.ReadOnly
		s.view, data = box.open()
		return nil
	})
	return data, err
}

// Unselect closes the folder.
func (s *imapSession) Unselect() error {
	if s.view != nil {
		s.view.Close()
	}
	s.view, s.box, s.folder = nil, nil, ""
	return nil
}

// Poll tells the client what happened in the folder.
func (s *imapSession) Poll(w *imapserver.UpdateWriter, allowExpunge bool) error {
	if s.view == nil {
		return nil
	}
	return s.view.Poll(w, allowExpunge)
}

// Idle does so until stop is closed.
func (s *imapSession) Idle(w *imapserver.UpdateWriter, stop <-chan struct{}) error {
	if s.view == nil {
		<-stop
		return nil
	}
	if err := s.view.Poll(w, true); err != nil { // the library's Idle waits for the next event before it looks
		return err
	}
	return s.view.Idle(w, stop)
}

// Append stores a message.
func (s *imapSession) Append(folder string, r imap.LiteralReader, options *imap.AppendOptions) (data *imap.AppendData, err error) {
	err = s.guard(IMAPEvent{Command: "APPEND", Folder: folder, Size: r.Size()}, func() error {
		box, err := s.user.destination(folder)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r)
		if err == nil && int64(len(body)) != r.Size() {
			err = io.ErrUnexpectedEOF // the library reports a connection cut inside a literal as its end
		}
		if err != nil {
			return fmt.Errorf("append to %s: read the literal: %w", folder, err)
		}
		data = box.append(body, options.Flags, options.Time)
		return nil
	})
	return data, err
}

// Fetch reads messages. After EXAMINE it does not set \Seen.
func (s *imapSession) Fetch(w *imapserver.FetchWriter, set imap.NumSet, options *imap.FetchOptions) error {
	return s.guard(IMAPEvent{Command: "FETCH", Folder: s.folder}, func() error {
		markSeen := false
		for _, section := range options.BodySection {
			markSeen = markSeen || !section.Peek && !s.readOnly
		}
		for _, v := range s.box.fetch(s.view, set, markSeen) {
			if err := writeFetch(w, v, options); err != nil {
				return err
			}
		}
		return nil
	})
}

// Search finds messages.
func (s *imapSession) Search(kind imapserver.NumKind, criteria *imap.SearchCriteria, _ *imap.SearchOptions) (data *imap.SearchData, err error) {
	err = s.guard(IMAPEvent{Command: "SEARCH", Folder: s.folder}, func() error {
		data = searchData(kind, s.box.search(s.view, criteria))
		return nil
	})
	return data, err
}

func searchData(kind imapserver.NumKind, found []viewed) *imap.SearchData {
	var (
		data imap.SearchData
		seqs imap.SeqSet
		uids imap.UIDSet
	)
	for _, v := range found {
		n := v.seq
		if kind == imapserver.NumKindUID {
			n = uint32(v.msg.uid)
		}
		seqs.AddNum(v.seq)
		uids.AddNum(v.msg.uid)
		if data.Count == 0 {
			data.Min = n
		}
		data.Max = n
		data.Count++
	}
	data.All = seqs
	if kind == imapserver.NumKindUID {
		data.All = uids
	}
	return &data
}

// Store changes flags, except after EXAMINE.
func (s *imapSession) Store(w *imapserver.FetchWriter, set imap.NumSet, flags *imap.StoreFlags, _ *imap.StoreOptions) error {
	if s.readOnly {
		return errReadOnly
	}
	return s.guard(IMAPEvent{Command: "STORE", Folder: s.folder}, func() error {
		s.box.store(s.view, set, flags)
		if flags.Silent {
			return nil
		}
		for _, v := range s.box.fetch(s.view, set, false) {
			if err := writeFetch(w, v, &imap.FetchOptions{UID: true, Flags: true}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Expunge removes messages with \Deleted. After EXAMINE it does nothing, without an error (RFC 3501, 6.4.2).
func (s *imapSession) Expunge(_ *imapserver.ExpungeWriter, uids *imap.UIDSet) error {
	if s.readOnly {
		return nil
	}
	return s.guard(IMAPEvent{Command: "EXPUNGE", Folder: s.folder}, func() error {
		s.box.expunge(func(m *boxMessage) bool {
			v := viewed{msg: m}
			return hasFlag(m.flags, imap.FlagDeleted) && (uids == nil || inSet(*uids, v, v))
		})
		return nil
	})
}

// Copy copies messages with flags and INTERNALDATE.
func (s *imapSession) Copy(set imap.NumSet, dest string) (*imap.CopyData, error) {
	box, err := s.user.destination(dest)
	if err != nil {
		return nil, err
	}
	data := &imap.CopyData{UIDValidity: box.uidValidity}
	for _, v := range s.box.fetch(s.view, set, false) {
		data.SourceUIDs.AddNum(v.msg.uid)
		data.DestUIDs.AddNum(box.append(v.msg.body, v.msg.flags, v.msg.time).UID)
	}
	return data, nil
}

// Move moves messages, except after EXAMINE. The client hears of the removal with the next poll.
func (s *imapSession) Move(w *imapserver.MoveWriter, set imap.NumSet, dest string) error {
	if s.readOnly {
		return errReadOnly
	}
	data, err := s.Copy(set, dest)
	if err != nil {
		return err
	}
	if err := w.WriteCopyData(data); err != nil {
		return err
	}
	s.box.expunge(func(m *boxMessage) bool { return data.SourceUIDs.Contains(m.uid) })
	return nil
}
