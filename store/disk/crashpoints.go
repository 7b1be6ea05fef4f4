package disk

// CrashPoints lists the names with which Options.CrashPoint is called, in the
// order of a message's life.
func CrashPoints() []string {
	return []string{
		"put.before-body-sync", "put.before-segment-write", "put.after-segment-write", "put.after-segment-sync",
		"put.before-commit", "put.after-commit", "segment.roll",
		"claim", "renew.sending",
		"settle.before-commit", "settle.after-commit", "segment.remove",
		"crash.before-commit", "crash.after-commit",
		"user.before-commit", "user.after-commit", "import.before-commit", "import.after-commit",
		"file.before-commit", "file.after-commit", "refile.before-commit", "refile.after-commit",
		"apply.before-commit", "apply.after-commit", "ledger.before-commit", "ledger.after-commit",
		"compact.before-commit", "compact.after-commit", "compact.done", "checkpoint",
		"forget.before-commit", "forget.after-commit", "journal.sealed",
	}
}
