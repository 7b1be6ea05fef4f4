package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"crossfade/config"
	"crossfade/relay"
	"crossfade/relay/milter"
)

// checkFilter asks whether the scanner is there.
func checkFilter(ctx context.Context, cfg *config.Config) []Finding {
	if cfg.SMTP.Filter.Milter == "" {
		return nil
	}
	f := Finding{What: "smtp.filter " + cfg.SMTP.Filter.Milter, Hint: "is the scanner up, does it listen there for the milter protocol, and may we write to its socket?"}
	network, address, _ := cfg.SMTP.Filter.Address()
	filter, err := milter.New(milter.Config{Network: network, Address: address, Timeout: checkTime})
	if err == nil {
		err = filter.Probe(ctx)
	}
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	f.OK, f.Hint, f.Text = true, "", "it speaks the milter protocol"
	return []Finding{f}
}

// openFilter makes the inspector that asks the organisation's scanner, when there
// is one.
func (d *Daemon) openFilter() (err error) {
	f := d.cfg.SMTP.Filter
	if f.Milter == "" {
		return nil
	}
	network, address, _ := f.Address()
	d.filter, err = milter.New(milter.Config{
		Network: network, Address: address, Hostname: d.cfg.Hostname, Timeout: time.Duration(f.Timeout), Accept: f.OnFailure == "accept",
		MaxSize: int64(f.MaxSize), Ours: f.Trusted == "scan", Connections: f.MaxConnections, Logger: d.log,
		Done: func(r milter.Result, waited time.Duration) { d.metrics.Filtered(string(r), waited) },
	})
	if err != nil {
		return fmt.Errorf("smtp.filter: %w", err)
	}
	return nil
}

// verdicts are the fields that strangers must not write.
func verdicts(cfg *config.Config) []string {
	var out []string
	for _, name := range cfg.SMTP.Filter.Verdicts {
		out = append(out, strings.ToLower(name))
	}
	return out
}

// filterInspector is the scanner's; none when there is no scanner.
func (d *Daemon) filterInspector() []relay.Inspector {
	if d.filter == nil {
		return nil
	}
	return []relay.Inspector{d.filter}
}

// filterWarnings tell readers of /readyz that mail is not looked at.
func (d *Daemon) filterWarnings() []string {
	if d.filter == nil {
		return nil
	}
	err, since := d.filter.Sick()
	if err == nil {
		return nil
	}
	what := "mail is put off"
	if d.cfg.SMTP.Filter.OnFailure == "accept" {
		what = "mail is accepted without being looked at"
	}
	return []string{fmt.Sprintf("the content filter %s has not worked since %s, and %s: %v", d.cfg.SMTP.Filter.Milter, since.UTC().Format(time.RFC3339), what, err)}
}
