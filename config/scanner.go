package config

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// Scanner is the section smtp.filter.
type Scanner struct {
	Milter    string   `yaml:"milter" reload:"restart" doc:"Where the scanner listens: inet:HOST:PORT or unix:/path/of/socket. Empty: no scanner is asked."`
	OnFailure string   `yaml:"on_failure" reload:"restart" enum:"tempfail|accept" doc:"What becomes of a message that the scanner did not judge, because it is away, hangs or fails: tempfail tells the sender to try again later (451), accept takes it as it is."`
	Timeout   Duration `yaml:"timeout" reload:"restart" min:"1s" max:"10m" doc:"Longest time that one message may wait for the scanner, in all."`
	MaxSize   Size     `yaml:"max_size" reload:"restart" min:"64KiB" doc:"Largest message that is looked at; larger ones pass."`
	Trusted   string   `yaml:"trusted" reload:"restart" enum:"skip|scan" doc:"Whether mail of smtp.trusted, of the backends and of those who have logged in is looked at."`
	Verdicts  []string `yaml:"verdicts" reload:"restart" doc:"Header fields by which the systems behind us know what the scanner said, such as [X-Spam*, X-Rspamd-*]: those that strangers wrote are taken out before the scanner's own go on top. Names begin with X-; * at the end stands for anything."`
	// MaxConnections bounds the messages that are looked at together.
	MaxConnections int `yaml:"max_connections" reload:"restart" min:"1" max:"10000" doc:"Connections to the scanner at once."`
}

func defaultScanner() Scanner {
	return Scanner{OnFailure: "tempfail", Timeout: Duration(30 * time.Second), MaxSize: 20 * MiB, Trusted: "skip", MaxConnections: 50}
}

// Address is where the scanner listens, as net.Dial wants it; ok is false when milter is none of the forms.
func (f Scanner) Address() (network, address string, ok bool) {
	kind, rest, _ := strings.Cut(f.Milter, ":")
	switch kind {
	case "inet":
		host, port, err := net.SplitHostPort(rest)
		return "tcp", rest, err == nil && host != "" && port != ""
	case "unix":
		return "unix", rest, strings.HasPrefix(rest, "/")
	}
	return "", "", false
}

func (k *checker) scanner() {
	f := k.c.SMTP.Filter
	for i, name := range f.Verdicts {
		bare := strings.ToLower(strings.TrimSuffix(name, "*"))
		if rest, ok := strings.CutPrefix(bare, "x-"); !ok || rest == "" || strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || len(bare) > 60 {
			k.fail(fmt.Sprintf("smtp.filter.verdicts[%d]", i), "%q is no name of a verdict: X- and more, with * at the end for all that begin so; other fields are the sender's", name)
		}
	}
	if f.Milter == "" {
		return
	}
	if _, _, ok := f.Address(); !ok {
		k.fail("smtp.filter.milter", "%q is neither inet:HOST:PORT, such as inet:127.0.0.1:11332, nor unix:/path", f.Milter)
	}
}
