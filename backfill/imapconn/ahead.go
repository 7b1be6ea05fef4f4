package imapconn

import (
	"errors"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// listing is a list of a folder's messages that was asked for together with the
// opening of the folder.
type listing struct {
	items Items
	done  chan struct{}
	metas []Meta
	err   error
}

func (l *listing) wait() {
	if l != nil {
		<-l.done
	}
}

// Expect says that the next Select is followed by ListAll for the same items, so
// that both are asked for in one round trip. It only makes that faster: when it
// does not work, ListAll asks by itself.
func (r *Reader) Expect(it Items) {
	if !it.literal() {
		r.expected = &it
	}
}

// Connect connects now instead of when the connection is first needed.
func (r *Reader) Connect() error {
	if r.client != nil {
		return nil
	}
	s, err := r.d.Open(r.ctx, r.acct)
	if err != nil {
		return err
	}
	r.adopt(s)
	return nil
}

// lookAhead asks for the list that is expected, behind the command that opens
// the folder and before its answer.
func (r *Reader) lookAhead() {
	r.ahead.wait() // that of a folder whose list nobody wanted
	r.ahead = nil
	if r.expected == nil {
		return
	}
	l := &listing{items: *r.expected, done: make(chan struct{})}
	cmd := r.client.Fetch(imap.UIDSet{{Start: 1, Stop: 0}}, l.items.options())
	r.ahead = l
	go func() {
		defer close(l.done)
		l.err = l.read(cmd)
	}()
}

func (l *listing) read(cmd *imapclient.FetchCommand) error {
	c, got := &metaReceiver{}, map[uint32]bool{}
	var r Reader // its part that reads a message without a body needs nothing of it
	for data := cmd.Next(); data != nil; data = cmd.Next() {
		if err := r.takeMessage(data, l.items, c, got); err != nil {
			return errors.Join(err, cmd.Close())
		}
	}
	l.metas = sorted(c.metas)
	return cmd.Close()
}

// takeAhead gives what lookAhead asked for, once.
func (r *Reader) takeAhead(it Items) ([]Meta, bool) {
	l := r.ahead
	r.ahead = nil
	l.wait()
	if l == nil || l.err != nil || l.items != it {
		if l != nil && l.err != nil {
			// NO and BAD leave the connection as it is; anything else ends it.
			_ = r.failed("UID FETCH", l.err)
		}
		return nil, false
	}
	return l.metas, true
}
