package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Hash is the SHA-256 of a block.
type Hash [sha256.Size]byte

// String gives it in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText gives it in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads hexadecimal.
func (h *Hash) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(h) {
		return fmt.Errorf("%q is no SHA-256 in hexadecimal", b)
	}
	copy(h[:], raw)
	return nil
}

// Info is what a block says about itself.
type Info struct {
	Number      uint64    // from 1
	First, Last uint64    // batches of the outbox that are in it
	From, To    time.Time // when it was made: of the oldest and the newest line, about
	Entries     int
	Raw         int  // octets of the lines
	Prev        Hash // of the block before
}

// Block is a number of lines, sealed: compressed, with a checksum, the hash of
// the block before and an index. Its octets are a skippable frame of Zstandard
// (RFC 8878, 3.1.2) with the header and the index, and a frame with the lines: a
// file of blocks can be read with zstdcat.
type Block struct {
	Info
	Data []byte
}

// Hash is what the block after this one refers to.
func (b Block) Hash() Hash { return sha256.Sum256(b.Data) }

// The layout of a block, in octets: the frame's magic number and size (little
// endian, as Zstandard has it), then, big endian: magic, checksum, Info, the
// lengths of index and payload, the index, and behind the skippable frame the
// payload.
const (
	frameMagic  = 0x184D2A5C
	frameHead   = 8
	blockMagic  = "cfj1"
	headerSize  = 104
	prefixSize  = frameHead + headerSize
	sumFrom     = frameHead + 8 // what the checksum covers begins here
	maxRaw      = 64 << 20
	maxPayload  = 80 << 20
	keySize     = 4 // octets of a key of the index
	maxIndex    = 16 << 20
	offChecksum = frameHead + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged is what reading a block answers that is not what was written.
var errDamaged = errors.New("the block is damaged")

// seal makes a block of lines. prev is the newest block there is; the zero value
// when this is the first.
func seal(lines []byte, first, last uint64, prev Head) (Block, error) {
	b := Block{Info: Info{Number: prev.Number + 1, First: first, Last: last, Prev: prev.Hash, Raw: len(lines)}}
	index := b.describe(lines)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return b, fmt.Errorf("seal a block of the journal: %w", err)
	}
	defer enc.Close()
	head := make([]byte, prefixSize, prefixSize+len(index)+len(lines)/4+64)
	data := enc.EncodeAll(lines, append(head, index...))
	payload := len(data) - prefixSize - len(index)
	binary.LittleEndian.PutUint32(data, frameMagic)
	binary.LittleEndian.PutUint32(data[4:], uint32(headerSize+len(index)))
	copy(data[frameHead:], blockMagic)
	h := data[sumFrom:]
	for i, v := range []uint64{b.Number, b.First, b.Last, uint64(b.From.UnixMilli()), uint64(b.To.UnixMilli()), uint64(b.Entries), uint64(b.Raw)} {
		binary.BigEndian.PutUint64(h[8*i:], v)
	}
	binary.BigEndian.PutUint32(h[56:], uint32(len(index)))
	binary.BigEndian.PutUint32(h[60:], uint32(payload))
	copy(h[64:], b.Prev[:])
	binary.BigEndian.PutUint32(data[offChecksum:], crc32.Checksum(data[sumFrom:], castagnoli))
	b.Data = data
	return b, nil
}

// describe counts the lines, and gives the index over them. A line that makes no sense
// is kept as it is: it must not hold up those behind it, and whoever reads it says so.
func (b *Block) describe(lines []byte) []byte {
	var keys []uint32
	for line := range bytes.Lines(lines) {
		b.Entries++
		g, err := glanceAt(line)
		if err != nil {
			continue
		}
		keys = append(keys, key(g.id))
		if g.messageID != "" {
			keys = append(keys, key(plainMessageID(g.messageID)))
		}
		if b.From.IsZero() || g.at.Before(b.From) {
			b.From = g.at
		}
		if g.at.After(b.To) {
			b.To = g.at
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	index := make([]byte, 0, keySize*len(keys))
	for _, k := range keys {
		index = binary.BigEndian.AppendUint32(index, k)
	}
	return index
}

// key is what an index has of a queue id or a Message-ID. Two may have the same:
// whoever finds a key looks at the lines.
func key(id string) uint32 {
	h := fnv.New64a()
	h.Write([]byte(id))
	sum := h.Sum64()
	return uint32(sum ^ sum>>32)
}

// plainMessageID takes the angle brackets away, which people leave out.
func plainMessageID(id string) string { return strings.Trim(strings.TrimSpace(id), "<>") }

// extent is what the beginning of a block tells about its length.
type extent struct {
	Info
	index, payload int
}

func (x extent) size() int64 { return int64(prefixSize + x.index + x.payload) }

// parseHeader reads the first prefixSize octets of a block. It says nothing about
// the rest.
func parseHeader(data []byte) (x extent, err error) {
	if len(data) < prefixSize {
		return x, fmt.Errorf("%w: it is cut short", errDamaged)
	}
	size := int(binary.LittleEndian.Uint32(data[4:]))
	if binary.LittleEndian.Uint32(data) != frameMagic || string(data[frameHead:frameHead+4]) != blockMagic {
		return x, fmt.Errorf("%w: it does not begin like one", errDamaged)
	}
	h := data[sumFrom:]
	u := func(i int) uint64 { return binary.BigEndian.Uint64(h[8*i:]) }
	x.Number, x.First, x.Last = u(0), u(1), u(2)
	x.From, x.To = time.UnixMilli(int64(u(3))).UTC(), time.UnixMilli(int64(u(4))).UTC()
	x.Entries, x.Raw = int(u(5)), int(u(6))
	x.index, x.payload = int(binary.BigEndian.Uint32(h[56:])), int(binary.BigEndian.Uint32(h[60:]))
	copy(x.Prev[:], h[64:])
	if x.Raw < 0 || x.Raw > maxRaw || x.payload > maxPayload || x.index > maxIndex || x.index%keySize != 0 || size != headerSize+x.index {
		return x, fmt.Errorf("%w: its lengths make no sense", errDamaged)
	}
	return x, nil
}

// OpenBlock reads a block and checks it.
func OpenBlock(data []byte) (Block, error) {
	x, err := parseHeader(data)
	if err != nil {
		return Block{}, err
	}
	if int64(len(data)) != x.size() {
		return Block{}, fmt.Errorf("%w: %d octets of %d are there", errDamaged, len(data), x.size())
	}
	if crc32.Checksum(data[sumFrom:], castagnoli) != binary.BigEndian.Uint32(data[offChecksum:]) {
		return Block{}, fmt.Errorf("%w: its checksum does not fit", errDamaged)
	}
	return Block{Info: x.Info, Data: data}, nil
}

// Lines gives the text of a block that [OpenBlock] has checked.
func (b Block) Lines() ([]byte, error) {
	x, err := parseHeader(b.Data)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw+1))
	if err != nil {
		return nil, fmt.Errorf("read a block of the journal: %w", err)
	}
	defer dec.Close()
	lines, err := dec.DecodeAll(b.Data[prefixSize+x.index:], make([]byte, 0, b.Raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if len(lines) != b.Raw {
		return nil, fmt.Errorf("%w: %d octets of %d came out", errDamaged, len(lines), b.Raw)
	}
	return lines, nil
}

// Split parts a block into its head, with the index, and its payload: a shelf that
// keeps them apart can answer [Want.Skips] without the payload.
func (b Block) Split() (head, payload []byte) {
	x, err := parseHeader(b.Data)
	if err != nil {
		return b.Data, nil // it was never sealed, and nobody reads it again
	}
	at := prefixSize + x.index
	return b.Data[:at], b.Data[at:]
}

// ParseInfo reads what the head of a block says; nothing of it is checked by a
// sum.
func ParseInfo(head []byte) (Info, error) {
	x, err := parseHeader(head)
	return x.Info, err
}

// mayHold tells whether an index has a key.
func mayHold(index []byte, k uint32) bool {
	lo, hi := 0, len(index)/keySize
	for lo < hi {
		mid := (lo + hi) / 2
		switch v := binary.BigEndian.Uint32(index[keySize*mid:]); {
		case v == k:
			return true
		case v < k:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// entries gives the lines one by one, with what is wrong with one.
func entries(lines []byte) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for line := range bytes.Lines(lines) {
			if !yield(ParseEntry(line)) {
				return
			}
		}
	}
}
