package ondisk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

const mostKeywords = 32 << 20

// keywords are the keywords of a folder's messages: Dovecot's are letters of the
// file name, Courier's lie in files.
type keywords struct {
	letters [26]string          // Dovecot: 'a' is the first
	courier map[string][]string // by base
}

func readKeywords(folder *os.Root) (*keywords, error) {
	k := &keywords{courier: map[string][]string{}}
	b, err := readSmall(folder, "dovecot-keywords", mostKeywords)
	if err != nil {
		return nil, err
	}
	parseLetters(string(b), &k.letters)
	dir, err := folder.OpenRoot("courierimapkeywords")
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open courierimapkeywords: %w", reason(err))
	}
	defer dir.Close()
	if b, err = readSmall(dir, ":list", mostKeywords); err != nil {
		return nil, err
	}
	parseKeywordList(string(b), k.courier)
	return k, k.updates(dir)
}

// parseLetters reads "0 $Forwarded".
func parseLetters(text string, into *[26]string) {
	for line := range strings.SplitSeq(text, "\n") {
		num, name, ok := strings.Cut(line, " ")
		n, err := strconv.Atoi(num)
		if ok && err == nil && n >= 0 && n < len(into) && name != "" {
			into[n] = name
		}
	}
}

// parseKeywordList reads Courier's list: the keywords, one on each line, an
// empty line, and for each message "name:0 2" with the numbers of its keywords.
func parseKeywordList(text string, into map[string][]string) {
	head, rest, _ := strings.Cut(text, "\n\n")
	names := strings.Split(strings.TrimSuffix(head, "\n"), "\n")
	for line := range strings.SplitSeq(rest, "\n") {
		base, list, ok := strings.Cut(line, ":")
		if !ok || base == "" {
			continue
		}
		var own []string
		for num := range strings.FieldsSeq(list) {
			if n, err := strconv.Atoi(num); err == nil && n >= 0 && n < len(names) && names[n] != "" {
				own = append(own, names[n])
			}
		}
		into[base] = own
	}
}

// updates reads the files in which Courier notes changes until they are in its
// list: one for each message, named after it, with a keyword on each line. The
// newer ones have a dot and a number before the name.
func (k *keywords) updates(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("open courierimapkeywords: %w", reason(err))
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && err != io.EOF {
		return fmt.Errorf("list courierimapkeywords: %w", reason(err))
	}
	newest, sum := map[string]int64{}, 0
	for _, name := range names {
		base, tick := name, int64(0)
		if strings.HasPrefix(name, ".") {
			num, rest, ok := strings.Cut(name[1:], ".")
			if tick, err = strconv.ParseInt(num, 10, 64); err != nil || !ok {
				continue
			}
			base = rest
		}
		if last, ok := newest[base]; strings.HasPrefix(name, ":") || base == "" || ok && last > tick {
			continue
		}
		b, err := readSmall(dir, name, 1<<20)
		if err != nil {
			return err
		}
		if sum += len(name) + len(b); sum > mostKeywords {
			return fmt.Errorf("read courierimapkeywords: its files have more than %d octets together", mostKeywords)
		}
		newest[base] = tick
		k.courier[base] = strings.Fields(string(b))
	}
	return nil
}

// of gives the flags of a message as IMAP has them. "Passed" is what others know
// as $Forwarded.
func (k *keywords) of(x *mdFile) []string {
	out := []string{}
	for _, c := range x.flags {
		switch c {
		case 'D':
			out = append(out, `\Draft`)
		case 'F':
			out = append(out, `\Flagged`)
		case 'R':
			out = append(out, `\Answered`)
		case 'S':
			out = append(out, `\Seen`)
		case 'T':
			out = append(out, `\Deleted`)
		case 'P':
			out = append(out, "$Forwarded")
		default:
			if c >= 'a' && c <= 'z' && k.letters[c-'a'] != "" {
				out = append(out, k.letters[c-'a'])
			}
		}
	}
	out = append(out, k.courier[x.base]...)
	slices.Sort(out)
	return slices.Compact(out)
}

// hash puts what the keywords are into a fingerprint.
func (k *keywords) hash(h io.Writer) {
	for _, l := range k.letters {
		io.WriteString(h, l+"\n")
	}
	for _, base := range slices.Sorted(maps.Keys(k.courier)) {
		io.WriteString(h, base+":"+strings.Join(k.courier[base], " ")+"\n")
	}
}
