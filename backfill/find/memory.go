package find

import (
	"fmt"
	"sync"

	"crossfade/backfill/imapconn"
)

// Memory keeps the queue ids of messages that were looked at, so that the next
// look at the same folder asks for what is new only: a server has to open each
// message whose Received fields are asked for. The zero value is ready for use, by
// several goroutines; nil remembers nothing.
type Memory struct {
	mu    sync.Mutex
	boxes map[string]*box
	count int    // messages in all boxes
	clock uint64 // of uses
}

// box is what is known of one folder under one UIDVALIDITY.
type box struct {
	ids  map[uint32]string // queue ids by UID; empty: it carries none of ours
	used uint64
}

// remembered bounds a Memory, in messages: some 100 octets each.
const remembered = 100_000

// key names a folder of an account.
func key(acct imapconn.Account, wire string, validity uint32) string {
	return fmt.Sprintf("%q %q %q %q %d", acct.Server.Address, acct.Login.User, acct.Login.Authz, wire, validity)
}

// split tells the messages that may carry an id, as far as is remembered, from those
// of which nothing is known.
func (m *Memory) split(key string, uids []uint32, id string) (likely, unknown []uint32) {
	if m == nil {
		return nil, uids
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[key]
	if b == nil {
		return nil, uids
	}
	m.clock++
	b.used = m.clock
	for _, uid := range uids {
		has, ok := b.ids[uid]
		switch {
		case !ok:
			unknown = append(unknown, uid)
		case has == id:
			likely = append(likely, uid)
		}
	}
	return likely, unknown
}

// add remembers what messages carry.
func (m *Memory) add(key string, ids map[uint32]string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boxes == nil {
		m.boxes = map[string]*box{}
	}
	b := m.boxes[key]
	if b == nil {
		b = &box{ids: make(map[uint32]string, len(ids))}
		m.boxes[key] = b
	}
	m.clock++
	b.used = m.clock
	m.count -= len(b.ids)
	for uid, id := range ids {
		b.ids[uid] = id
	}
	m.count += len(b.ids)
	for m.count > remembered {
		m.forget()
	}
}

// forget drops the folder that was not used for the longest time.
func (m *Memory) forget() {
	oldest := ""
	for key, b := range m.boxes {
		if oldest == "" || b.used < m.boxes[oldest].used {
			oldest = key
		}
	}
	m.count -= len(m.boxes[oldest].ids)
	delete(m.boxes, oldest)
}
