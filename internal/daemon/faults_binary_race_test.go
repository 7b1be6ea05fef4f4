//go:build race

package daemon

const underRace = true
