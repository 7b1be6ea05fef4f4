package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"crossfade/audit/seal"
)

// AuditHead names a line of the audit log, and with it all that come before.
type AuditHead struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash" doc:"SHA-256 of the line, in hexadecimal."`
}

// String gives SEQ:HASH.
func (h AuditHead) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.Hash) }

// noHash is the hash of the line before the first.
var noHash = hex.EncodeToString(make([]byte, sha256.Size))

// lineKind is what the signature of a line is a signature of.
const lineKind = "audit log line"

// The line that an audit log begins with whenever it is opened.
const actionOpenLog = "open-log"

// logItself is the author of lines about the log.
const logItself = "crossfade"

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// encodeLine gives the line, without its end, of a record behind head.
func encodeLine(r Record, head AuditHead, key seal.Key) ([]byte, AuditHead, error) {
	r.Seq, r.Prev, r.Sig = head.Seq+1, head.Hash, ""
	if r.Prev == "" {
		r.Prev = noHash
	}
	line, err := json.Marshal(r)
	if err != nil {
		return nil, head, fmt.Errorf("encoding a record of the audit log: %w", err)
	}
	if sig := key.SignText(lineKind, line); sig != "" {
		line = append(line[:len(line)-1], `,"sig":"`+sig+`"}`...)
	}
	return line, AuditHead{Seq: r.Seq, Hash: hashOf(line)}, nil
}

// decodeLine reads a line of a chain; false for any other.
func decodeLine(line []byte) (Record, bool) {
	var r Record
	err := json.Unmarshal(line, &r)
	return r, err == nil && r.Seq > 0 && len(r.Prev) == len(noHash)
}

// follows tells whether r is the line behind head.
func (r Record) follows(head AuditHead) bool {
	prev := head.Hash
	if prev == "" {
		prev = noHash
	}
	return r.Seq == head.Seq+1 && r.Prev == prev
}

// signedBy tells whether a line has a good signature of a public key.
func signedBy(line []byte, sig, public string) bool {
	text, ok := bytes.CutSuffix(line, []byte(`,"sig":"`+sig+`"}`))
	return ok && sig != "" && seal.CheckText(public, lineKind, append(bytes.Clone(text), '}'), sig)
}

// openDetail is the detail of an open-log line.
type openDetail struct {
	Node string `json:"node,omitempty"`
	Key  string `json:"key,omitempty"` // public, of the lines that follow
	// Outside is what lies in the file between the last line of the chain and this
	// one: lines from before there was a chain, or one that a crash cut short.
	Outside *outside `json:"outside,omitempty"`
	// Expected is the last line that is known to have been written, where the file
	// does not have it.
	Expected *AuditHead `json:"expected,omitempty"`
	Broken   string     `json:"broken,omitempty"` // what a look at the file found
}

// outside are octets that are no part of the chain, fixed by their hash.
type outside struct {
	Octets int64  `json:"octets"`
	SHA256 string `json:"sha256"`
}

// detail gives it as a Record has it.
func (d openDetail) detail() map[string]any {
	data, err := json.Marshal(d)
	out := map[string]any{}
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil { // it has nothing that cannot be encoded
		out["broken"] = err.Error()
	}
	return out
}

// openDetailOf reads what detail made.
func openDetailOf(r Record) (d openDetail) {
	if r.Action != actionOpenLog || r.By != logItself {
		return d
	}
	data, err := json.Marshal(r.Detail)
	if err != nil || json.Unmarshal(data, &d) != nil {
		return openDetail{}
	}
	return d
}
