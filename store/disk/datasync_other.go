//go:build !linux

package disk

import "os"

// dataSync makes a file's content durable.
func dataSync(f *os.File) error { return f.Sync() }

// allocate takes octets of the file system for an empty file.
func allocate(f *os.File, octets int64) error { return allocateByWriting(f, octets) }
