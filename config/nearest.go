package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// knownKeys lists the keys of each section, by the section's key ("" is the top), in the order of the reference page.
func knownKeys() map[string][]string {
	sections := make(map[string][]string)
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for i := range t.NumField() {
			name := t.Field(i).Tag.Get("yaml")
			if name == "" {
				continue
			}
			sections[prefix] = append(sections[prefix], name)
			ft := t.Field(i).Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			key := strings.TrimPrefix(prefix+"."+name, ".")
			if sectionList(ft) {
				walk(ft.Elem(), key+"[]")
			}
			if isSection(ft) {
				walk(ft, key)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	return sections
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// nearest returns the candidate with the least edit distance to word, or "" when none is near enough to be meant.
func nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return ""
	}
	word = strings.ReplaceAll(strings.ToLower(word), "-", "_")
	best, least := "", 4
	for _, c := range candidates {
		// A third of the letters may be wrong; otherwise short words are near to everything.
		if d := editDistance(word, c); d < least && d <= max(1, max(len(word), len(c))/3) {
			best, least = c, d
		}
	}
	return best
}

// editDistance is the optimal string alignment distance: insert, delete, replace, and swap of neighbours cost 1 each.
func editDistance(a, b string) int {
	var before []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
