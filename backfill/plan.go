package backfill

import (
	"context"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// Plan is what a pass would meet, found without changing anything.
type Plan struct {
	User     string       `json:"user"`
	Folders  []PlanFolder `json:"folders"`
	Messages int          `json:"messages"` // on the source, in all folders
	// Bytes on the source; 0 when the server does not tell (RFC 8438).
	Bytes    int64     `json:"bytes"`
	Problems []Problem `json:"problems,omitempty"`
}

// PlanFolder is a folder and its place on the destination.
type PlanFolder struct {
	Source   string `json:"source"`
	Dest     string `json:"dest"`
	Create   bool   `json:"create"` // it is not there yet
	Messages int    `json:"messages"`
	Bytes    int64  `json:"bytes"`  // 0 when the server does not tell
	Paired   int    `json:"paired"` // messages that the ledger knows on both sides
}

// Plan logs in to both sides and says which folders a pass would copy, and
// where to. It writes nothing, neither to a mailbox nor to the ledger.
func (c *Copier) Plan(ctx context.Context, job Job) (Plan, error) {
	plan := Plan{User: job.User}
	p, err := c.start(ctx, job, Options{})
	if err != nil {
		return plan, fmt.Errorf("plan %s: %w", job.User, err)
	}
	defer p.close()
	stats, errs, err := p.srcBox.Statuses(sourceWires(p.pairings))
	if err != nil {
		return plan, fmt.Errorf("plan %s: source: %w", job.User, err)
	}
	plan.Problems = p.report.Problems
	for _, pr := range p.pairings {
		if err := errs[pr.src.Wire]; err != nil {
			plan.Problems = append(plan.Problems, Problem{Folder: pr.src.Name, Class: ClassUnreadable, Text: err.Error()})
		}
		st := stats[pr.src.Wire]
		rec, err := p.book.record(pr.src.Wire)
		if err != nil {
			return plan, err
		}
		f := PlanFolder{Source: pr.src.Name, Dest: pr.name, Create: !pr.exists, Messages: int(st.Messages), Bytes: st.Size}
		for _, r := range rec.Pairs {
			f.Paired += int(r.N)
		}
		plan.Folders = append(plan.Folders, f)
		plan.Messages += f.Messages
		plan.Bytes += f.Bytes
	}
	return plan, nil
}

func sourceWires(ps []pairing) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.src.Wire)
	}
	return out
}

// survey asks one side for its folders.
func survey(s folderLister) (side, error) {
	ns, err := s.Namespaces()
	if err != nil {
		return side{}, err
	}
	folders, err := s.List()
	if err != nil {
		return side{}, err
	}
	// Asked once more before it is believed: every mailbox has an INBOX.
	if !slices.ContainsFunc(folders, isInbox) {
		if folders, err = s.List(); err != nil {
			return side{}, err
		}
		if !slices.ContainsFunc(folders, isInbox) {
			folders = append(folders, imapconn.Folder{Name: "INBOX", Wire: "INBOX", Delim: ns.Delim})
		}
	}
	return side{ns: ns, folders: folders}, nil
}

func isInbox(f imapconn.Folder) bool { return f.Name == "INBOX" }
