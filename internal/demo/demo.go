package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/cutover"
	"crossfade/internal/daemon"
	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/router"
)

// Options of a demonstration. Zero values get the defaults named.
type Options struct {
	Users    int       // 12; the last two stay on old
	PastMail int       // 40 messages per user
	Keep     bool      // leave all of it running when done, until ctx ends
	Out      io.Writer // what people read
	Log      *slog.Logger
}

const (
	domain   = "company.example"
	password = "demo"
	staying  = 2 // users who are not moved
	// window is how long old is swept after a flip here; a week is usual.
	window = 8 * time.Second
)

// ErrNotAll means that the count at the end did not come out even.
var ErrNotAll = errors.New("the count does not come out even: see the table")

// show is one demonstration under way.
type show struct {
	o         Options
	dir       string
	users     []string
	templates [][]byte
	book      *book
	sides     *sides
	old, new  *mailtest.Mailsystem
	cfg       *config.Config
	daemon    *daemon.Daemon
	client    *admin.Client
	began     time.Time
}

// Run shows a migration and counts at the end. ErrNotAll means that the
// product failed; other errors that the demonstration could not be held.
func Run(ctx context.Context, o Options) error {
	if o.Users <= staying {
		o.Users = 12
	}
	if o.PastMail <= 0 {
		o.PastMail = 40
	}
	s := &show{o: o, book: newBook(), began: time.Now()}
	dir, err := os.MkdirTemp("", "crossfade-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	s.dir = dir
	defer os.RemoveAll(dir)
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

func (s *show) say(format string, args ...any) {
	fmt.Fprintf(s.o.Out, "%6.2fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

func (s *show) run(ctx context.Context) error {
	if err := s.startSystems(); err != nil {
		return err
	}
	defer s.old.Close()
	defer s.new.Close()
	if err := s.configure(); err != nil {
		return err
	}
	dctx, stopDaemon := context.WithCancel(context.Background())
	defer stopDaemon()
	ended := make(chan error, 1)
	go func() { ended <- s.daemon.Run(dctx) }()
	select {
	case <-s.daemon.Started():
	case err := <-ended:
		return fmt.Errorf("the relay did not start: %w", err)
	}
	s.say("the relay is up: SMTP on %s, API on %s, store in %s", s.daemon.SMTPAddrs()[0], s.daemon.AdminURL(), s.cfg.Store)
	err := s.migrate(ctx)
	if s.o.Keep && ctx.Err() == nil {
		s.say("left running; look around with crossfade COMMAND --url %s --token-file %s (audit, why, finish, status); end with Ctrl-C", s.daemon.AdminURL(), s.cfg.Admin.TokenFile)
		<-ctx.Done()
	}
	stopDaemon()
	return errors.Join(err, <-ended)
}

// startSystems starts the old and the new mail system and fills the old one.
func (s *show) startSystems() (err error) {
	if s.templates, err = templates(); err != nil {
		return err
	}
	sys := mailtest.MailsystemConfig{Name: "old." + domain, MasterUser: "master", MasterPassword: password, Separator: '.', Prefix: "INBOX."}
	if s.old, err = mailtest.NewMailsystem(sys); err != nil {
		return err
	}
	sys.Name, sys.Separator, sys.Prefix = "new."+domain, '/', ""
	if s.new, err = mailtest.NewMailsystem(sys); err != nil {
		return err
	}
	for i := range s.o.Users {
		user := fmt.Sprintf("user%02d@%s", i+1, domain)
		s.users = append(s.users, user)
		if err := errors.Join(s.old.AddUser(user, password), s.new.AddUser(user, password), s.fill(user)); err != nil {
			return err
		}
	}
	s.say("two mail systems are up; the old one holds %d messages of %d users", s.book.total(s.book.past), s.o.Users)
	return nil
}

// fill puts past mail into a user's old mailbox.
func (s *show) fill(user string) error {
	folders := []string{"INBOX", "INBOX", "INBOX.Sent", "INBOX.Archive.2025", "INBOX.Projekte & Pläne"}
	flags := [][]string{{`\Seen`}, {}, {`\Seen`, `\Answered`}, {`\Flagged`, "$Important"}}
	when := time.Date(2025, 3, 1, 8, 0, 0, 0, time.UTC)
	for n := range s.o.PastMail {
		token := fmt.Sprintf("past-%s-%04d", strings.SplitN(user, "@", 2)[0], n)
		body := render(s.templates[n%len(s.templates)], user, token)
		if _, err := s.old.Append(user, folders[n%len(folders)], flags[n%len(flags)], when.Add(time.Duration(n)*7*time.Hour), body); err != nil {
			return fmt.Errorf("filling the old mailbox of %s: %w", user, err)
		}
		s.book.expect(user, token, body, s.book.past)
	}
	return nil
}

// configure writes a configuration file as an operator would, and reads it as
// `crossfade serve` does.
func (s *show) configure() error {
	text := fmt.Sprintf(`hostname: mx.%[1]s
domains: [%[1]s]
store: ./data
smtp: {listen: ["127.0.0.1:0"], authentication: {verify: false}}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old:
    smtp: %[2]s
    imap: %[3]s
    imap_login: {user: master, password_file: ./password, as: "suffix:*"}
  new:
    smtp: %[4]s
    imap: %[5]s
    imap_login: {user: master, password_file: ./password, as: authzid}
backfill: {tail_interval: 1s}
cutover: {window: %[6]s}
queue: {min_free: 0}
`, domain, s.old.SMTPURL(), s.old.IMAPURL(), s.new.SMTPURL(), s.new.IMAPURL(), window)
	path := filepath.Join(s.dir, "crossfade.yaml")
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.WriteFile(filepath.Join(s.dir, "password"), []byte(password+"\n"), 0o600)); err != nil {
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	s.cfg = cfg
	s.daemon, err = daemon.New(cfg, s.o.Log, daemon.Options{Version: "demo"})
	return err
}

// migrate moves the users under a stream of mail, and counts.
func (s *show) migrate(ctx context.Context) error {
	tokens, err := admin.LoadTokens(s.cfg.Admin.TokenFile)
	if err != nil {
		return err
	}
	if s.client, err = admin.NewClient(s.daemon.AdminURL(), tokens[0].Value()); err != nil {
		return err
	}
	defer s.client.Close()
	table := "address,state\n" + strings.Join(s.users, ",old\n") + ",old\n"
	if _, err := s.client.ImportUsers(ctx, strings.NewReader(table), admin.ImportOptions{Reason: "demo"}); err != nil {
		return err
	}
	s.sides = newSides(s.users)
	tctx, stop := context.WithCancel(ctx)
	defer stop()
	t := &traffic{addr: s.daemon.SMTPAddrs()[0].String(), users: s.users, templates: s.templates, book: s.book}
	flows := make(chan error, 2)
	go func() { flows <- t.run(tctx) }()
	go func() { flows <- s.stray(tctx) }()
	s.say("mail begins to flow through the relay, and past it into the mailboxes that users do not read; neither pauses")
	moving := s.users[:len(s.users)-staying]
	if err := s.moveAll(ctx, moving); err != nil {
		return err
	}
	stop()
	if err := errors.Join(<-flows, <-flows); err != nil {
		return err
	}
	s.say("mail stops: %d messages accepted for %d recipients while users moved, none refused; %d went past the relay", t.n.Load(), s.book.total(s.book.sent), s.book.total(s.book.stray))
	if err := s.drain(ctx); err != nil {
		return err
	}
	if err := s.closeWindows(ctx, moving); err != nil {
		return err
	}
	if err := s.count(); err != nil {
		return err
	}
	return s.audit(ctx)
}

// moveAll moves users, takes the first one back in the middle, and forward again in
// the end.
func (s *show) moveAll(ctx context.Context, moving []string) error {
	for i, user := range moving {
		if err := s.move(ctx, user, fmt.Sprintf("%d of %d", i+1, len(moving))); err != nil {
			return err
		}
		if i == len(moving)/2 {
			if err := s.takeBack(ctx, moving[0]); err != nil {
				return err
			}
		}
	}
	return s.move(ctx, moving[0], "once more")
}

// takeBack rolls a user back as an operator does.
func (s *show) takeBack(ctx context.Context, user string) error {
	if _, err := s.client.StartRollback(ctx, user, "demo"); err != nil {
		return fmt.Errorf("rolling %s back: %w", user, err)
	}
	if err := s.until(ctx, user, router.StateOld); err != nil {
		return err
	}
	s.sides.set(user, mail.Old)
	s.say("%s changed his mind: what arrived on new went back with him, he reads old again", user)
	return nil
}

// closeWindows waits until old is not swept any more.
func (s *show) closeWindows(ctx context.Context, moved []string) error {
	s.say("both sides are swept until the windows of %s are over", window)
	found := 0
	for _, user := range s.users {
		if slices.Contains(moved, user) {
			if err := s.until(ctx, user, router.StateDone); err != nil {
				return err
			}
		}
		st, err := s.client.Move(ctx, user)
		if err == nil && st.Sweep != nil {
			found += st.Sweep.Old.Count + st.Sweep.New.Count
		}
	}
	s.say("the windows are closed: %d messages were found in mailboxes that their users did not read, and carried over", found)
	return nil
}

// until waits until a user is in a state.
func (s *show) until(ctx context.Context, user string, want router.State) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		u, err := s.client.User(ctx, user)
		if err != nil {
			return fmt.Errorf("asking about %s: %w", user, err)
		}
		if u.State == want {
			return nil
		}
		select {
		case <-ctx.Done():
			st, _ := s.client.Move(context.WithoutCancel(ctx), user)
			return fmt.Errorf("%s is %s and not %s: %s %s: %w", user, u.State, want, st.Phase, st.Err, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// move cuts one user over as an operator does, and waits for the end.
func (s *show) move(ctx context.Context, user, which string) error {
	if _, err := s.client.StartCutover(ctx, user, admin.MoveRequest{Reason: "demo"}); err != nil {
		return fmt.Errorf("cutting %s over: %w", user, err)
	}
	st, err := s.await(ctx, user)
	if err != nil {
		return err
	}
	s.sides.set(user, mail.New)
	s.say("%s is on new (%s): %d messages copied in %d passes, mail held for %s", user, which, st.Copied, st.Passes, st.HoldTime.Round(time.Millisecond))
	return nil
}

func (s *show) await(ctx context.Context, user string) (cutover.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := s.client.Move(ctx, user)
		if err != nil {
			return st, fmt.Errorf("asking about %s: %w", user, err)
		}
		switch st.Phase {
		case cutover.PhaseDone:
			return st, nil
		case cutover.PhaseFailed:
			return st, fmt.Errorf("cutting %s over: %s", user, st.Err)
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("%s is still in phase %s: %w", user, st.Phase, ctx.Err())
		case <-tick.C:
		}
	}
}

// drain waits until the queue is empty.
func (s *show) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		page, err := s.client.Queue(ctx, admin.QueueFilter{}, "", 1)
		if err != nil {
			return fmt.Errorf("asking for the queue: %w", err)
		}
		if len(page.Messages) == 0 && page.Next == "" { // a page in the middle is empty when its message was delivered meanwhile
			s.say("the queue is empty")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the queue does not empty: %+v", page.Messages)
		case <-tick.C:
		}
	}
}

// count audits the mailbox that each user reads.
func (s *show) count() error {
	rows := map[string]row{}
	for _, user := range s.users {
		side, _ := s.sides.of(user)
		sys := s.old
		if side == mail.New {
			sys = s.new
		}
		r, err := s.book.audit(user, side, sys)
		if err != nil {
			return err
		}
		rows[user] = r
	}
	fmt.Fprintln(s.o.Out)
	if !table(s.o.Out, rows) {
		return ErrNotAll
	}
	fmt.Fprintln(s.o.Out)
	s.say("every message is exactly once, unchanged, in the mailbox its user reads")
	return nil
}
