package backfill_test

import (
	"bufio"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"crossfade/backfill/imapconn"
)

// gmail is a scripted server that answers as Google documents its extensions:
// X-GM-EXT-1, labels of the system as quoted strings with a backslash, All Mail,
// Spam and Trash in the user's language, CONDSTORE.
type gmail struct {
	t    *testing.T
	addr string
	wg   sync.WaitGroup

	mu       sync.Mutex
	root     string    // "[Gmail]", or "[Google Mail]"
	names    [3]string // All Mail, Spam, Trash on the wire
	labels   []string  // users' labels that are shown, on the wire
	chats    int
	modseq   uint64
	next     [3]uint32
	mail     []*gmailMail
	commands []string
	fetched  int // bodies
	drop     int // connections to end at the next list
}

type gmailMail struct {
	id     uint64
	uid    uint32
	place  int // 0 All Mail, 1 Spam, 2 Trash
	labels []string
	flags  []string
	body   string
}

func newGmail(t *testing.T) *gmail {
	g := &gmail{t: t, root: "[Gmail]", names: [3]string{"[Gmail]/All Mail", "[Gmail]/Spam", "[Gmail]/Trash"}, modseq: 100, next: [3]uint32{1, 1, 1}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	var mu sync.Mutex
	live := map[net.Conn]bool{}
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			live[c] = true
			mu.Unlock()
			g.wg.Go(func() { g.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range live {
			c.Close()
		}
		mu.Unlock()
		g.wg.Wait()
	})
	return g
}

// add puts a message into a place, with flags in front of a "|" and labels
// behind it.
func (g *gmail) add(place int, flags string, labels ...string) *gmailMail {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := len(g.mail) + 1
	m := &gmailMail{id: 1278455344230334865 + uint64(n), uid: g.next[place], place: place, labels: labels, flags: strings.Fields(flags),
		body: fmt.Sprintf("Subject: mail %d\r\n\r\nmail %d, once\r\n", n, n)}
	g.next[place]++
	g.modseq++
	g.mail = append(g.mail, m)
	return m
}

// change changes a message.
func (g *gmail) change(m *gmailMail, do func(m *gmailMail)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := m.place
	do(m)
	if m.place != was && m.place >= 0 {
		m.uid = g.next[m.place]
		g.next[m.place]++
	}
	g.modseq++
}

// asked gives the commands since the last call, and how many bodies were sent.
func (g *gmail) asked() (commands []string, bodies int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	commands, bodies = g.commands, g.fetched
	g.commands, g.fetched = nil, 0
	return commands, bodies
}

func (g *gmail) account() imapconn.Account { return account(g.addr, user, "secret") }

func (g *gmail) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	fmt.Fprint(c, "* OK Gimap ready for requests\r\n")
	at := -1
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		tag, cmd, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		g.mu.Lock()
		g.commands = append(g.commands, cmd)
		if g.drop > 0 && strings.Contains(cmd, "X-GM-MSGID") {
			g.drop--
			g.mu.Unlock()
			return
		}
		out, end := g.answer(cmd, &at), "OK Success"
		g.mu.Unlock()
		if out == "NO" {
			out, end = "", "NO [NONEXISTENT] Unknown Mailbox (Failure)"
		}
		if _, err := fmt.Fprintf(c, "%s%s %s\r\n", out, tag, end); err != nil {
			return
		}
	}
}

var mailboxArg = regexp.MustCompile(`^\w+ (?:"((?:[^"\\]|\\.)*)"|(\S+))`)

func (g *gmail) answer(cmd string, at *int) string {
	verb, rest, _ := strings.Cut(cmd, " ")
	name := ""
	if m := mailboxArg.FindStringSubmatch(cmd); m != nil {
		name = m[1] + m[2]
	}
	switch verb {
	case "CAPABILITY":
		return "* CAPABILITY IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 UIDPLUS ENABLE MOVE CONDSTORE ESEARCH LIST-STATUS SPECIAL-USE AUTH=PLAIN SASL-IR\r\n"
	case "NAMESPACE":
		return "* NAMESPACE ((\"\" \"/\")) NIL NIL\r\n"
	case "LIST", "LSUB":
		return g.list(verb)
	case "STATUS":
		return g.status(name)
	case "EXAMINE":
		if *at = slices.Index(g.names[:], name); *at < 0 {
			return "NO"
		}
		return fmt.Sprintf("* FLAGS (\\Answered \\Flagged \\Draft \\Deleted \\Seen)\r\n* OK [PERMANENTFLAGS ()] Flags.\r\n* OK [UIDVALIDITY %d] valid.\r\n"+
			"* %d EXISTS\r\n* OK [UIDNEXT %d] next.\r\n* OK [HIGHESTMODSEQ %d]\r\n", *at+11, len(g.in(*at)), g.next[*at], g.modseq)
	case "UID":
		return g.uid(rest, *at)
	}
	return ""
}

func (g *gmail) in(place int) []*gmailMail {
	var out []*gmailMail
	for _, m := range g.mail {
		if m.place == place {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *gmailMail) int { return int(a.uid) - int(b.uid) })
	return out
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func (g *gmail) list(verb string) string {
	var b strings.Builder
	say := func(attrs, name string) { fmt.Fprintf(&b, "* %s (%s) \"/\" %s\r\n", verb, attrs, quote(name)) }
	say(`\HasNoChildren`, "INBOX")
	say(`\HasChildren \Noselect`, g.root)
	for i, use := range []string{`\All`, `\Junk`, `\Trash`} {
		if g.names[i] != "" {
			say(`\HasNoChildren `+use, g.names[i])
		}
	}
	for use, name := range map[string]string{`\Sent`: "Gesendet", `\Drafts`: "Entw&APw-rfe", `\Flagged`: "Markiert", `\Important`: "Wichtig"} {
		say(`\HasNoChildren `+use, g.root+"/"+name)
	}
	if g.chats > 0 {
		say(`\HasNoChildren`, g.root+"/Chats")
	}
	for _, l := range g.labels {
		say(`\HasNoChildren`, l)
	}
	return b.String()
}

func (g *gmail) status(name string) string {
	if name == g.root+"/Chats" {
		return fmt.Sprintf("* STATUS %s (MESSAGES %d UIDNEXT 9 UIDVALIDITY 19 HIGHESTMODSEQ 1)\r\n", quote(name), g.chats)
	}
	i := slices.Index(g.names[:], name)
	if i < 0 {
		return "NO"
	}
	return fmt.Sprintf("* STATUS %s (MESSAGES %d UIDNEXT %d UIDVALIDITY %d HIGHESTMODSEQ %d)\r\n", quote(name), len(g.in(i)), g.next[i], i+11, g.modseq)
}

func (g *gmail) uid(rest string, at int) string {
	verb, rest, _ := strings.Cut(rest, " ")
	if at < 0 {
		return "NO"
	}
	var b strings.Builder
	if verb == "SEARCH" {
		b.WriteString("* SEARCH")
		for _, m := range g.in(at) {
			label, ok := strings.CutPrefix(rest, "X-GM-LABELS ")
			if !ok || slices.ContainsFunc(m.labels, func(l string) bool { return quote(l) == label }) {
				fmt.Fprintf(&b, " %d", m.uid)
			}
		}
		return b.String() + "\r\n"
	}
	set, items, _ := strings.Cut(rest, " ")
	for i, m := range g.in(at) {
		if inSet(set, m.uid) {
			g.fetch(&b, i+1, m, items)
		}
	}
	return b.String()
}

func (g *gmail) fetch(b *strings.Builder, seq int, m *gmailMail, items string) {
	fmt.Fprintf(b, "* %d FETCH (", seq)
	if strings.Contains(items, "X-GM-MSGID") {
		var labels []string
		for i, l := range m.labels {
			if i%2 == 1 && !strings.HasPrefix(l, `\`) {
				labels = append(labels, fmt.Sprintf("{%d}\r\n%s", len(l), l))
				continue
			}
			labels = append(labels, quote(l))
		}
		fmt.Fprintf(b, "X-GM-MSGID %d X-GM-LABELS (%s) ", m.id, strings.Join(labels, " "))
	}
	fmt.Fprintf(b, "UID %d RFC822.SIZE %d INTERNALDATE \" 1-Feb-2003 04:05:06 +0100\" FLAGS (%s)", m.uid, len(m.body), strings.Join(m.flags, " "))
	if strings.Contains(items, "BODY.PEEK[]") {
		g.fetched++
		fmt.Fprintf(b, " BODY[] {%d}\r\n%s", len(m.body), m.body)
	}
	b.WriteString(")\r\n")
}

func inSet(set string, uid uint32) bool {
	for part := range strings.SplitSeq(set, ",") {
		a, b, two := strings.Cut(part, ":")
		from, _ := strconv.Atoi(a)
		to := from
		if two {
			to, _ = strconv.Atoi(b)
		}
		if b == "*" {
			to = 1 << 30
		}
		if int(uid) >= from && int(uid) <= to {
			return true
		}
	}
	return false
}
