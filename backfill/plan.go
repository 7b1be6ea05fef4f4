package backfill

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"crossfade/backfill/imapconn"
)

// Plan is what a pass would meet, found without changing anything.
type Plan struct {
	User     string       `json:"user"`
	Folders  []PlanFolder `json:"folders"`
	Messages int          `json:"messages"` // on the source, in all folders that are copied
	Filtered int          `json:"filtered"` // of them and of other folders, left out by the filter
	Bytes    int64        `json:"bytes"`    // of Messages
	// Copy are those that a pass would copy, as far as that is known before they
	// are read: what lies on the destination already is recognised by content.
	Copy      int   `json:"copy"`
	CopyBytes int64 `json:"copy_bytes"`
	// Refused are messages that the destination does not take, by what it
	// announces or by what it said in an earlier pass; a pass wraps them.
	Refused int `json:"refused"`
	// QuotaLeft is how many octets the quota of the destination still takes (RFC
	// 9208); nil when it has none, or does not tell.
	QuotaLeft *int64 `json:"quota_left,omitempty"`
	// LimitWaits is how long daily limits make CopyBytes wait, beside the copying.
	LimitWaits time.Duration `json:"limit_waits_ns,omitempty"`
	Problems   []Problem     `json:"problems,omitempty"`
}

// PlanFolder is a folder and its place on the destination.
type PlanFolder struct {
	Source    string `json:"source"`
	Dest      string `json:"dest"`
	Create    bool   `json:"create"` // it is not there yet
	Messages  int    `json:"messages"`
	Bytes     int64  `json:"bytes"`
	Copy      int    `json:"copy"`
	CopyBytes int64  `json:"copy_bytes"`
	Refused   int    `json:"refused,omitempty"`
	Paired    int    `json:"paired"`             // messages that the ledger knows on both sides
	Filtered  int    `json:"filtered,omitempty"` // messages that the filter leaves out
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
	p.src = p.srcBox.NewReader()
	for _, pr := range p.pairings {
		if err := errs[pr.src.Wire]; err != nil {
			plan.Problems = append(plan.Problems, Problem{Folder: pr.src.Name, Class: ClassUnreadable, Text: err.Error()})
		}
		f, problems, err := p.planFolder(pr, stats[pr.src.Wire])
		if skippable(err) {
			plan.Problems = append(plan.Problems, Problem{Folder: pr.src.Name, Class: ClassUnreadable, Text: err.Error()})
		} else if err != nil {
			return plan, fmt.Errorf("plan %s: folder %q: %w", job.User, pr.src.Name, err)
		}
		if f.Filtered > 0 {
			plan.Problems = append(plan.Problems, omitted(pr.src.Name, f.Filtered, false))
		}
		plan.Problems = append(plan.Problems, problems...)
		plan.Folders = append(plan.Folders, f)
		plan.Filtered += f.Filtered
		plan.Copy += f.Copy
		plan.CopyBytes += f.CopyBytes
		plan.Refused += f.Refused
		plan.Messages += f.Messages
		plan.Bytes += f.Bytes
	}
	if err := p.quota(&plan); err != nil {
		return plan, fmt.Errorf("plan %s: %w", job.User, err)
	}
	plan.LimitWaits = p.day.waits(plan.CopyBytes, 0)
	return plan, nil
}

// planFolder says what becomes of a folder. It takes a list of its messages, as a
// pass over it would.
func (p *pass) planFolder(pr pairing, st imapconn.Status) (PlanFolder, []Problem, error) {
	f := PlanFolder{Source: pr.src.Name, Dest: pr.name, Create: !pr.exists, Messages: int(st.Messages), Bytes: st.Size}
	rec, err := p.book.record(pr.src.Wire)
	if err != nil {
		return f, nil, err
	}
	f.Paired = rec.Pairs.count()
	if st.Messages == 0 {
		return f, nil, nil
	}
	sel, err := p.src.Select(pr.src)
	if err != nil {
		return f, nil, inside("source", err)
	}
	metas, _, err := p.src.ListAll(p.filter.items(imapconn.Items{Size: true}))
	if err != nil {
		return f, nil, inside("source", err)
	}
	var known pairs
	refused := map[uint32]*refusal{}
	if sel.UIDValidity == rec.SrcValidity {
		known, refused = rec.Pairs, rec.Refused
	}
	f.Messages, f.Bytes = len(metas), 0
	for _, m := range metas {
		f.Bytes += m.Size
	}
	metas, f.Filtered = p.left(metas, known)
	problems := newGroups(pr.src.Name)
	limit := p.dst.Limit()
	for _, m := range metas {
		if _, paired := known.dest(m.UID); paired {
			continue
		}
		text := unfit(m.Size, limit)
		if r := refused[m.UID]; r != nil {
			text = r.Text
		}
		if text != "" {
			f.Refused++
			problems.add(m.UID, ClassRefused, text)
			continue
		}
		f.Copy++
		f.CopyBytes += m.Size
	}
	return f, problems.list, nil
}

func sourceWires(ps ...[]pairing) []string {
	var out []string
	for _, p := range slices.Concat(ps...) {
		out = append(out, p.src.Wire)
	}
	return out
}

// survey asks one side for its folders, and for the status of those that are
// known from earlier passes, or of all, where that spares a round trip.
func survey(s folderLister, known []string, all bool) (looked, error) {
	there, err := ask(s, known, all)
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
func ask(s folderLister, known []string, all bool) (there imapconn.Survey, err error) {
	if at, ok := s.(interface {
		Survey(known []string, all bool) (imapconn.Survey, error)
	}); ok {
		return at.Survey(known, all)
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
