package find

import (
	"fmt"
	"slices"
	"testing"
)

// TestMemoryIsBounded: what was not used for the longest time goes first.
func TestMemoryIsBounded(t *testing.T) {
	m := &Memory{}
	const each = remembered / 4
	ids := map[uint32]string{}
	for uid := range uint32(each) {
		ids[uid+1] = fmt.Sprint(uid)
	}
	for n := range 4 {
		m.add(fmt.Sprint(n), ids)
	}
	m.add("0", ids) // again: nothing new, and used
	likely, unknown := m.split("0", []uint32{1, 2, each + 7}, "1")
	if !slices.Equal(likely, []uint32{2}) || !slices.Equal(unknown, []uint32{each + 7}) {
		t.Errorf("likely %v, unknown %v", likely, unknown)
	}
	m.add("4", map[uint32]string{1: "x"})
	if m.count > remembered || len(m.boxes) != 4 || m.boxes["1"] != nil {
		t.Errorf("%d messages in %d folders", m.count, len(m.boxes))
	}
}
