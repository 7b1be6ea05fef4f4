package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"crossfade/mail"
)

// DoubtfulDelivery is a recipient that was leased when the process was killed.
type DoubtfulDelivery struct {
	ID      mail.ID
	N       int // index in Envelope.Recipients
	Route   mail.Route
	Sending bool // the final dot may have been sent: it may be in the mailbox
	At      time.Time

	closed bool // the store was closed in good order, and this was never recorded
}

// InDoubt lists the deliveries that were under way when the process before
// this one was killed. Each came back as queued with its crashes counted up
// (Item.Crashes), or was parked; where Sending is set, it is in doubt
// (Item.Doubt). A clean Close leaves only what was being sent and never recorded,
// and counts no crash for it.
func (s *Store) InDoubt() []DoubtfulDelivery {
	return append([]DoubtfulDelivery(nil), s.doubtful...)
}

// The doubt file has a slot of 64 octets for each leased recipient:
//
//	state (0 free, 1 leased, 2 sending, 3 sending at the end) | lane | 2 zero | n uint32 | boot uint64 | id, 26 octets |
//	Unix milliseconds of the claim uint64 | 10 zero | CRC-32C of octets 1 to 59
//
// It is written and not synced: it is for a process that was killed, and the
// kernel keeps it then. So that a machine that loses its power forgets little, it
// is synced every second, beside everything else. Slots of another boot are void.
const (
	slotSize   = 64
	firstSlots = 1024
	slotFree   = 0
	slotLeased = 1
	slotSent   = 2
	slotClosed = 3
)

// doubtFile is guarded by Store.mu.
type doubtFile struct {
	f     *os.File
	boot  int64
	slots int
	spare []int
	news  bool // a dot was permitted since the last sync
}

func openDoubt(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "doubt"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the note of deliveries under way: %w", err)
	}
	return f, nil
}

// readDoubts gives the slots in use of a boot.
func readDoubts(f *os.File, boot int64) (list []DoubtfulDelivery, err error) {
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return nil, fmt.Errorf("read the note of deliveries under way: %w", err)
	}
	for ; len(b) >= slotSize; b = b[slotSize:] {
		if b[0] == slotFree || int64(binary.LittleEndian.Uint64(b[8:])) != boot ||
			binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[1:60], castagnoli) {
			continue
		}
		list = append(list, DoubtfulDelivery{
			ID: mail.ID(b[16 : 16+idSize]), N: int(binary.LittleEndian.Uint32(b[4:])),
			Route: lane(b[1]).route(), Sending: b[0] != slotLeased, closed: b[0] == slotClosed,
			At: fromMillis(int64(binary.LittleEndian.Uint64(b[16+idSize:]))),
		})
	}
	return list, nil
}

// newDoubt empties the file and gives it its first slots, so that a full disk
// does not keep mail from being delivered.
func newDoubt(f *os.File, boot int64) (*doubtFile, error) {
	d := &doubtFile{f: f, boot: boot}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("empty the note of deliveries under way: %w", err)
	}
	return d, d.grow(firstSlots)
}

func (d *doubtFile) grow(n int) error {
	if _, err := d.f.WriteAt(make([]byte, n*slotSize), int64(d.slots)*slotSize); err != nil {
		return fmt.Errorf("make room in %s: %w", d.f.Name(), err)
	}
	for i := n - 1; i >= 0; i-- {
		d.spare = append(d.spare, d.slots+i)
	}
	d.slots += n
	return nil
}

// note takes a slot for a leased recipient.
func (d *doubtFile) note(id mail.ID, n int, l lane, at int64) (int, error) {
	if len(d.spare) == 0 {
		if err := d.grow(d.slots); err != nil {
			return 0, err
		}
	}
	slot := d.spare[len(d.spare)-1]
	var b [slotSize]byte
	b[0], b[1] = slotLeased, byte(l)
	binary.LittleEndian.PutUint32(b[4:], uint32(n))
	binary.LittleEndian.PutUint64(b[8:], uint64(d.boot))
	copy(b[16:], id)
	binary.LittleEndian.PutUint64(b[16+idSize:], uint64(at))
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[1:60], castagnoli))
	if _, err := d.f.WriteAt(b[:], int64(slot)*slotSize); err != nil {
		return 0, fmt.Errorf("write to %s: %w", d.f.Name(), err)
	}
	d.spare = d.spare[:len(d.spare)-1]
	return slot, nil
}

// sending notes that the final dot may follow.
func (d *doubtFile) sending(slots []int) error {
	d.news = true
	return d.set(slots, slotSent)
}

func (d *doubtFile) set(slots []int, state byte) error {
	for _, slot := range slots {
		if _, err := d.f.WriteAt([]byte{state}, int64(slot)*slotSize); err != nil {
			return fmt.Errorf("write to %s: %w", d.f.Name(), err)
		}
	}
	return nil
}

// free gives slots back. A slot that cannot be cleared counts one doubt too
// many after a kill, which is on the safe side.
func (d *doubtFile) free(slots []int) {
	for _, slot := range slots {
		if _, err := d.f.WriteAt([]byte{slotFree}, int64(slot)*slotSize); err != nil {
			continue
		}
		d.spare = append(d.spare, slot)
	}
}

// clean ends the file in good order. What is left of the leases at the end,
// because their outcome could not be recorded, was not a crash; what of it was
// being sent is in doubt.
func (d *doubtFile) clean(left []*lease) error {
	sending := 0
	for _, ls := range left {
		if !ls.sending {
			d.free(ls.slots)
			continue
		}
		sending += len(ls.slots)
		if err := d.set(ls.slots, slotClosed); err != nil {
			return err
		}
	}
	if sending > 0 {
		return nil
	}
	if err := d.f.Truncate(0); err != nil {
		return fmt.Errorf("empty the note of deliveries under way: %w", err)
	}
	return nil
}

func (d *doubtFile) close() error { return d.f.Close() }
