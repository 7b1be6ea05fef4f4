package backfill

// Unwrap is for tests from outside.
var Unwrap = unwrap
