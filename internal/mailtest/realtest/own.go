package realtest

import (
	"os/user"
	"testing"
)

// ownNames returns the names of the user and group that run the test.
func ownNames(t testing.TB) (userName, groupName string) {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatalf("who am I: %v", err)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		t.Fatalf("my group: %v", err)
	}
	return u.Username, g.Name
}
