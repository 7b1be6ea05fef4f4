package faults

var served struct{ dir string }
