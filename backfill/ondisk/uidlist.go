package ondisk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"crossfade/backfill"
)

const mostUIDList = 128 << 20

// storeUIDs reads the UIDs that a server noted beside a Maildir: Dovecot's file,
// else Courier's, else none.
func storeUIDs(folder *os.Root) (backfill.StoreUIDs, error) {
	for _, name := range []string{"dovecot-uidlist", "courierimapuiddb"} {
		b, err := readSmall(folder, name, mostUIDList)
		if err != nil {
			return backfill.StoreUIDs{}, err
		}
		if len(b) == 0 {
			continue
		}
		s, err := parseUIDList(b)
		if err != nil {
			return s, fmt.Errorf("%s: %w (have the server mend it, or remove it and let the server make it anew)", name, err)
		}
		return s, nil
	}
	return backfill.StoreUIDs{}, nil
}

var errUIDList = errors.New("it does not begin as such a file does")

// parseUIDList reads dovecot-uidlist (versions 1 and 3) and courierimapuiddb
// (the same as version 1). A line that is not complete is being written, and a
// message without a line gets a number of our own.
func parseUIDList(b []byte) (backfill.StoreUIDs, error) {
	s := backfill.StoreUIDs{UIDs: map[string]uint32{}}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return s, errUIDList
	}
	version, ok := parseUIDHeader(string(b[:end]), &s)
	if !ok {
		return s, errUIDList
	}
	sc := bufio.NewScanner(bytes.NewReader(b[end+1 : bytes.LastIndexByte(b, '\n')+1]))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		uid, name, ok := parseUIDLine(sc.Text(), version)
		if !ok {
			continue
		}
		if s.UIDs[name] < uid {
			s.UIDs[name] = uid // a later line stands for a message that was numbered anew
		}
	}
	return s, sc.Err()
}

// parseUIDHeader reads "3 V1275660208 N25022 G3085..." and "1 1275660208 25022".
func parseUIDHeader(line string, s *backfill.StoreUIDs) (version string, ok bool) {
	words := strings.Fields(line)
	if len(words) < 3 {
		return "", false
	}
	version = words[0]
	switch version {
	case "1", "2":
		s.Validity, s.Next = parseUID(words[1]), parseUID(words[2])
	case "3":
		for _, w := range words[1:] {
			switch w[0] {
			case 'V':
				s.Validity = parseUID(w[1:])
			case 'N':
				s.Next = parseUID(w[1:])
			}
		}
	default:
		return "", false
	}
	return version, s.Validity != 0 && s.Next != 0
}

// parseUIDLine reads "25006 :1276528487.M364837P9451.host,S=1355:2,S", which may
// have more fields before the colon, and "25006 1276528487.M364837P9451.host".
func parseUIDLine(line, version string) (uid uint32, base string, ok bool) {
	num, rest, ok := strings.Cut(line, " ")
	if !ok {
		return 0, "", false
	}
	if version == "3" && !strings.HasPrefix(rest, ":") {
		if _, rest, ok = strings.Cut(rest, " :"); !ok {
			return 0, "", false
		}
	} else if version == "3" {
		rest = rest[1:]
	}
	base, _ = splitName(rest)
	uid = parseUID(num)
	return uid, base, uid != 0 && base != ""
}

func parseUID(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // 0 is none
	return uint32(n)
}

// splitName takes a file name of a Maildir apart: what stays the same for as
// long as the message is there, and the letters of its flags.
func splitName(name string) (base, flags string) {
	base, info, _ := strings.Cut(name, ":")
	flags, ok := strings.CutPrefix(info, "2,")
	if !ok {
		return base, ""
	}
	flags, _, _ = strings.Cut(flags, ",") // Dovecot's own letters follow a comma
	return base, flags
}
