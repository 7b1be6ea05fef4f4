// Package faults holds the suite that breaks what the queue stands on, over
// both stores, and counts: what was acknowledged has to be delivered or still
// be there, nothing may come from nowhere, and each second final dot has to be
// explained by a fault between the permission for the first and its record.
//
// load_test.go is a relay reduced to what a store sees of one: it puts, claims,
// flips users, and notes each step. It runs in this process, or as a node in
// a process of its own that can be killed and frozen (node_test.go). What was
// noted is judged in account_test.go. serve_test.go and flip_test.go do the same
// to whole `crossfade serve` processes. Each run is a row of the table that is
// printed in the end (table_test.go); docs/faults.md explains it.
package faults
