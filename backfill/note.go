package backfill

import (
	"encoding/json"
	"fmt"
)

// Note keeps what a source wants to know of a folder in the next pass, as JSON,
// beside the folder's numbers. It goes with them when they begin anew.
func (n *Numbers) Note(wire string, note json.RawMessage) error {
	head, err := n.head(wire)
	if err != nil || head.Validity == 0 || n.dry {
		return err
	}
	head.Note = note
	data, err := json.Marshal(head)
	if err != nil {
		return fmt.Errorf("note of folder %q: %w", wire, err)
	}
	return n.book.write(n.ctx, recordName(numbersPrefix, wire), data)
}

// Noted gives what was noted of a folder, nil when nothing was.
func (n *Numbers) Noted(wire string) (json.RawMessage, error) {
	head, err := n.head(wire)
	return head.Note, err
}

func (n *Numbers) head(wire string) (numberHead, error) {
	w := &numbering{n: n, wire: wire}
	data := n.book.known(recordName(numbersPrefix, wire))
	if len(data) == 0 {
		return w.head, nil
	}
	if err := json.Unmarshal(data, &w.head); err != nil {
		return w.head, w.broken(err)
	}
	return w.head, nil
}
