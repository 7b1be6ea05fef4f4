package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"crossfade/admin"
)

// checkLog follows the chain of an audit log; needs no relay.
func (c *auditCmd) checkLog(a *app) error {
	want, err := headOf(c.Head)
	if err != nil {
		return usageError(err, "as GET /v1/audit and the log of the relay give it")
	}
	check, err := admin.CheckAuditLog(c.Log, c.Key, want)
	if err != nil {
		return usageError(err, "")
	}
	if c.JSON {
		if err := a.printJSON(check); err != nil {
			return err
		}
	}
	for _, note := range check.Notes {
		fmt.Fprintln(a.stderr, "note: "+clean(note))
	}
	if check.Bad != nil {
		return &commandError{code: exitFailed, err: errors.New(check.Bad.String()), hint: "lines behind it were not judged: keep the files as they are, and compare them with a backup"}
	}
	if c.JSON {
		return nil
	}
	fmt.Fprintf(a.stdout, "%s, %d to %d, are what was written; the last is %s\n", count(check.Lines, "line", "lines"), check.First.Seq, check.Last.Seq, check.Last)
	for _, key := range check.Keys {
		fmt.Fprintf(a.stdout, "signed with %s\n", clean(key))
	}
	if check.Unsigned > 0 {
		fmt.Fprintf(a.stderr, "%s not signed: who can write the file could have made them anew\n", count(check.Unsigned, "line is", "lines are"))
	}
	if c.Key == "" && len(check.Keys) > 0 {
		fmt.Fprintln(a.stderr, "whether that key is the installation's has to be known from elsewhere: --key PUB compares it")
	}
	return nil
}

// headOf reads SEQ:HASH.
func headOf(text string) (h admin.AuditHead, err error) {
	if text == "" {
		return h, nil
	}
	seq, hash, ok := strings.Cut(text, ":")
	if h.Seq, err = strconv.ParseUint(seq, 10, 64); err != nil || !ok || h.Seq == 0 || len(hash) != 64 {
		return h, fmt.Errorf("audit: --head %q is not NUMBER:SHA256", text)
	}
	h.Hash = strings.ToLower(hash)
	return h, nil
}
