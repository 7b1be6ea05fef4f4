package config

import (
	"reflect"
	"slices"
)

// Changed lists the keys whose values differ between two configurations, in the order of the reference page. A list
// counts as one key.
func Changed(before, after *Config) []string {
	return changed(before, after, func(leaf) bool { return true })
}

// Diff lists the changed keys that a reload cannot apply (the store, our name, listen addresses and what belongs to
// them): they take effect at the next start. Everything else is safe to swap.
func Diff(before, after *Config) []string {
	return changed(before, after, func(l leaf) bool { return l.tag.Get("reload") == "restart" })
}

func changed(before, after *Config, want func(leaf) bool) []string {
	old := make(map[string]leaf)
	for _, l := range leaves(reflect.ValueOf(before).Elem(), "") {
		old[l.key] = l
	}
	var keys []string
	for _, l := range leaves(reflect.ValueOf(after).Elem(), "") {
		was, had := old[l.key]
		delete(old, l.key)
		if want(l) && (!had && !l.value.IsZero() || had && !sameValue(was.value, l.value)) {
			keys = append(keys, l.key)
		}
	}
	// What is left belongs to optional sections that the new configuration lacks.
	var gone []string
	for key, l := range old {
		if want(l) && !l.value.IsZero() {
			gone = append(gone, key)
		}
	}
	slices.Sort(gone)
	return append(keys, gone...)
}

// sameValue compares as the file would: an empty list is an absent one.
func sameValue(a, b reflect.Value) bool {
	if a.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}
