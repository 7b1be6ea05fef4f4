package backfill

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"crossfade/backfill/imapconn"
)

// Plan is what a pass would meet, found without changing anything.
type Plan struct {
	User     string       `json:"user"`
	Folders  []PlanFolder `json:"folders"`
	Messages int          `json:"messages"` // on the source, in all folders that are copied
	Filtered int          `json:"filtered"` // of them and of other folders, left out by the filter
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
	Bytes    int64  `json:"bytes"`              // 0 when the server does not tell
	Paired   int    `json:"paired"`             // messages that the ledger knows on both sides
	Filtered int    `json:"filtered,omitempty"` // messages that the filter leaves out
}

// Plan logs in to both sides and says which folders a pass would copy, and
// where to. It writes nothing, neither to a mailbox nor to the ledger.
func (c *Copier) Plan(ctx context.Context, job Job) (Plan, error) {
	plan := Plan{User: job.User}
	p, err := c.start(ctx, job, Options{}, false)
	if err != nil {
		return plan, fmt.Errorf("plan %s: %w", job.User, err)
	}
	defer p.close()
	if err := p.srcSide.statuses(p.srcBox, sourceWires(p.pairings, p.outside)); err != nil {
		return plan, fmt.Errorf("plan %s: source: %w", job.User, err)
	}
	stats, errs := p.srcSide.status, p.srcSide.errs
	for _, pr := range p.outside {
		n := countOf(stats, pr)
		plan.Filtered += max(n, 0)
		p.leaveOut(pr, n)
	}
	plan.Problems = p.report.Problems
	if c.Filter.messages() {
		p.src = p.srcBox.NewReader()
	}
	for _, pr := range p.pairings {
		if err := errs[pr.src.Wire]; err != nil {
			plan.Problems = append(plan.Problems, Problem{Folder: pr.src.Name, Class: ClassUnreadable, Text: err.Error()})
		}
		f, err := p.planFolder(pr, stats[pr.src.Wire])
		if err != nil {
			return plan, fmt.Errorf("plan %s: folder %q: %w", job.User, pr.src.Name, err)
		}
		if f.Filtered > 0 {
			plan.Problems = append(plan.Problems, omitted(pr.src.Name, f.Filtered, false))
		}
		plan.Folders = append(plan.Folders, f)
		plan.Filtered += f.Filtered
		plan.Messages += f.Messages
		plan.Bytes += f.Bytes
	}
	return plan, nil
}

// planFolder says what becomes of a folder. To count what the filter leaves out
// of it takes a list of its messages.
func (p *pass) planFolder(pr pairing, st imapconn.Status) (PlanFolder, error) {
	f := PlanFolder{Source: pr.src.Name, Dest: pr.name, Create: !pr.exists, Messages: int(st.Messages), Bytes: st.Size}
	rec, err := p.book.record(pr.src.Wire)
	if err != nil {
		return f, err
	}
	f.Paired = rec.Pairs.count()
	if p.src == nil || st.Messages == 0 {
		return f, nil
	}
	sel, err := p.src.Select(pr.src)
	if err != nil {
		return f, inside("source", err)
	}
	metas, _, err := p.src.ListAll(p.c.Filter.items(imapconn.Items{}))
	if err != nil {
		return f, inside("source", err)
	}
	known := rec.Pairs
	if sel.UIDValidity != rec.SrcValidity {
		known = nil
	}
	_, f.Filtered = p.left(metas, known)
	return f, nil
}

func sourceWires(ps ...[]pairing) []string {
	var out []string
	for _, p := range slices.Concat(ps...) {
		out = append(out, p.src.Wire)
	}
	return out
}

// survey asks one side for its folders, and for the status of those that are
// known from earlier passes where that spares a round trip.
func survey(s folderLister, known []string) (looked, error) {
	there, err := ask(s, known)
	if err != nil {
		return looked{}, err
	}
	folders := there.Folders
	// Asked once more before it is believed: every mailbox has an INBOX.
	if !slices.ContainsFunc(folders, isInbox) {
		if folders, err = s.List(); err != nil {
			return looked{}, err
		}
		if !slices.ContainsFunc(folders, isInbox) {
			folders = append(folders, imapconn.Folder{Name: "INBOX", Wire: "INBOX", Delim: there.Namespaces.Delim})
		}
	}
	return looked{side{there.Namespaces, folders}, there.Status, there.Errs}, nil
}

// ask asks for all of it at once where it can be.
func ask(s folderLister, known []string) (there imapconn.Survey, err error) {
	if at, ok := s.(interface {
		Survey(known []string) (imapconn.Survey, error)
	}); ok {
		return at.Survey(known)
	}
	there.Status, there.Errs = map[string]imapconn.Status{}, map[string]error{}
	if there.Namespaces, err = s.Namespaces(); err != nil {
		return there, err
	}
	there.Folders, err = s.List()
	return there, err
}

func isInbox(f imapconn.Folder) bool { return f.Name == "INBOX" }

// statuses completes what the survey found with the folders that it was not
// asked about.
func (sd *looked) statuses(s folderLister, wires []string) error {
	var rest []string
	for _, w := range wires {
		if _, ok := sd.status[w]; !ok && sd.errs[w] == nil {
			rest = append(rest, w)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	status, errs, err := s.Statuses(rest)
	if sd.status == nil {
		sd.status, sd.errs = map[string]imapconn.Status{}, map[string]error{}
	}
	maps.Copy(sd.status, status)
	maps.Copy(sd.errs, errs)
	return err
}
