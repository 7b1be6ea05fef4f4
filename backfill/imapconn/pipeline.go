package imapconn

import (
	"errors"
	"fmt"
	"time"
)

// What is on its way to a server before its answers are read has to fit into
// the buffers on the way: nobody reads meanwhile.
const (
	pipelineCommands = 128
	pipelineOctets   = 16 << 10
)

// plain tells whether a command can be sent without waiting for the server in
// its middle.
func (c *command) plain(s *Session) bool {
	for _, p := range c.pieces {
		if p.wait || p.body != nil || p.literal && !s.nonSync(p.size) {
			return false
		}
	}
	return true
}

func (c *command) octets() (n int) {
	for _, p := range c.pieces {
		n += len(p.text)
	}
	return n
}

// pipeline runs commands in order without waiting for the answers in between,
// so that all of them cost one round trip. Data goes to onData with the number
// of the command that is being answered: servers that do not answer in order
// are none that send data for commands that may be reordered (RFC 3501, 5.5).
// There is an error for each command, of type *Error; err ended the session.
func (s *Session) pipeline(cmds []*command, onData func(i int, r *response)) (errs []error, err error) {
	if s.broken != nil {
		return nil, s.broken
	}
	errs = make([]error, len(cmds))
	for from := 0; from < len(cmds); {
		to, octets := from, 0
		for to < len(cmds) && to-from < pipelineCommands && octets < pipelineOctets && cmds[to].plain(s) {
			octets += cmds[to].octets()
			to++
		}
		if to == from { // one that has to wait for "+" goes alone
			runErr := s.run(cmds[from], func(r *response) { onData(from, r) })
			var refused *Error
			if runErr != nil && !errors.As(runErr, &refused) {
				return nil, runErr
			}
			errs[from] = runErr
			from++
			continue
		}
		if err := s.burst(cmds, from, to, onData, errs); err != nil {
			return nil, s.fail(err)
		}
		from = to
	}
	return errs, nil
}

// burst sends the commands from to to, and then reads their answers.
func (s *Session) burst(cmds []*command, from, to int, onData func(int, *response), errs []error) error {
	began := time.Now()
	tags := make([]string, 0, to-from)
	for i := from; i < to; i++ {
		tag, _, err := s.put(cmds[i], nil) // nothing in it waits, so nothing comes early
		if err != nil {
			return fmt.Errorf("%s: %w", cmds[i].name, s.reason(err, nil))
		}
		tags = append(tags, tag)
	}
	if err := s.bw.Flush(); err != nil {
		return fmt.Errorf("%s: %w", cmds[from].name, s.reason(err, nil))
	}
	for i := from; i < to; i++ {
		r, err := s.answer(tags[i-from], func(r *response) { onData(i, r) })
		if err != nil {
			return fmt.Errorf("%s: %w", cmds[i].name, err)
		}
		if i == from {
			s.heard(began)
		}
		errs[i] = r.err(cmds[i].name)
	}
	return nil
}

// heard notes how long the server took to answer.
func (s *Session) heard(since time.Time) {
	if took := time.Since(since); s.rtt == 0 || took < s.rtt {
		s.rtt = took
	}
}

// RoundTrip is the shortest time in which the server answered a command so far;
// 0 before the first one. It is an upper bound of the way there and back.
func (s *Session) RoundTrip() time.Duration { return s.rtt }

// FirstWait is the shorter of the times that the server took to greet and to
// take the login: what is known of its distance before any command. It is more
// than the way when the server is slow at both.
func (s *Session) FirstWait() time.Duration { return s.first }

// Survey is what a server holds, as [Session.Survey] finds it.
type Survey struct {
	Namespaces Namespaces
	Folders    []Folder
	// Status and Errs are of the folders that were asked about, by their names on
	// the wire; one that could not be looked into has its error.
	Status map[string]Status
	Errs   map[string]error
}

// Survey asks for the namespaces, for all folders, and for the status of those
// that are known from before, all in one round trip where it can be. With all it
// asks for the status of all folders where that takes no round trip more; those
// that the server does not tell of are missing then.
func (s *Session) Survey(known []string, all bool) (Survey, error) {
	ask := &asking{s: s}
	var out Survey
	var told map[string]Status
	if all && s.listsStatus() {
		told = map[string]Status{}
	}
	namespaces := ask.namespaces()
	list := ask.list(told)
	status := ask.status(known)
	if err := ask.run(); err != nil {
		return out, err
	}
	var err error
	if out.Namespaces, err = namespaces(); err != nil {
		return out, err
	}
	out.Folders, err = list()
	var refused *Error
	if told != nil && errors.As(err, &refused) {
		told = nil
		out.Folders, err = s.List() // one folder without a status may spoil the whole
	}
	if err != nil {
		return out, err
	}
	out.Status, out.Errs = status()
	for _, f := range out.Folders {
		if st, ok := told[f.Wire]; ok {
			out.Status[f.Wire] = st
		}
	}
	return out, nil
}

// asking gathers commands to run them in one pipeline. Each of its other methods
// adds some, and gives the function that tells what came of them.
type asking struct {
	s      *Session
	cmds   []*command
	onData []func(*response)
	errs   []error
}

// add gives a function for the command's error.
func (a *asking) add(c *command, onData func(*response)) func() error {
	n := len(a.cmds)
	a.cmds, a.onData = append(a.cmds, c), append(a.onData, onData)
	return func() error { return a.errs[n] }
}

func (a *asking) run() (err error) {
	a.errs, err = a.s.pipeline(a.cmds, func(i int, r *response) {
		if a.onData[i] != nil {
			a.onData[i](r)
		}
	})
	return err
}

// Making is a folder that is to be made on a server.
type Making struct {
	Wire      string // its name there
	Use       string // its special use, or ""
	Create    bool
	Subscribe bool
}

// Made is what came of it: nil, or the answer as *Error.
type Made struct{ Create, Subscribe error }

// Make makes folders and subscribes to them, in order, all in one round trip
// where it can be. A folder that is there already is no error. Where one cannot
// be made it is not subscribed to.
func (s *Session) Make(folders []Making) ([]Made, error) {
	ask := &asking{s: s}
	none := func() error { return nil }
	made := make([]Made, len(folders))
	created, subscribed := make([]func() error, len(folders)), make([]func() error, len(folders))
	for i, f := range folders {
		created[i], subscribed[i] = none, none
		if f.Create {
			c, err := createCommand(s, f.Wire, f.Use)
			if err != nil {
				return nil, err
			}
			created[i] = ask.add(c, nil)
		}
		if f.Subscribe {
			c := newCommand("SUBSCRIBE")
			if err := c.str(f.Wire); err != nil {
				return nil, err
			}
			subscribed[i] = ask.add(c, nil)
		}
	}
	if err := ask.run(); err != nil {
		return nil, err
	}
	var stray asking
	stray.s = s
	for i, f := range folders {
		made[i] = Made{existing(created[i]()), subscribed[i]()}
		// A server may subscribe to what is not there (RFC 3501, 6.3.6).
		if made[i].Create != nil && f.Subscribe && made[i].Subscribe == nil {
			c := newCommand("UNSUBSCRIBE")
			if err := c.str(f.Wire); err == nil {
				stray.add(c, nil)
			}
			made[i].Subscribe = made[i].Create
		}
	}
	return made, stray.run()
}

func createCommand(s *Session, wire, use string) (*command, error) {
	c := newCommand("CREATE")
	if err := c.str(wire); err != nil {
		return nil, err
	}
	if use != "" && s.Has("CREATE-SPECIAL-USE") {
		c.raw("(USE (" + use + "))")
	}
	return c, nil
}

// existing drops the error of a CREATE for a folder that is there.
func existing(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Code == "ALREADYEXISTS" {
		return nil
	}
	return err
}
