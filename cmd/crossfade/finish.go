package main

import (
	"fmt"

	"crossfade/audit"
)

type finishCmd struct {
	jsonFlag
}

// Run lists what must be true before the old system may be switched off. Exit 0:
// all is; 3: not yet.
func (c *finishCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	f, err := client.Finish(a.ctx)
	if err != nil {
		return fmt.Errorf("asking whether all is at its end: %w", err)
	}
	if c.JSON {
		if err := a.printJSON(f); err != nil {
			return err
		}
	} else {
		a.printFinish(&f)
	}
	if !f.Ready {
		return partly("the old system may not be switched off yet")
	}
	return nil
}

func (a *app) printFinish(f *audit.Finish) {
	for i := range f.Conditions {
		x := &f.Conditions[i]
		fmt.Fprintf(a.stdout, "%-8s %s: %s\n", x.Status, x.Name, clean(x.Text))
		for _, e := range x.Evidence {
			fmt.Fprintf(a.stdout, "           %s\n", clean(e))
		}
		if x.Status != audit.StatusOK && x.Hint != "" {
			fmt.Fprintf(a.stdout, "           hint: %s\n", clean(x.Hint))
		}
	}
	fmt.Fprintln(a.stdout, "afterwards:")
	for i, text := range f.Afterwards {
		fmt.Fprintf(a.stdout, "  %d. %s\n", i+1, text)
	}
}
