package config

import (
	"fmt"
	"reflect"
	"strings"
)

// referenceHead opens the reference page; the tables follow.
const referenceHead = `# Configuration reference

<!-- Generated from the struct tags of package config; change it there. -->

One YAML file, read by ` + "`crossfade serve -c FILE`" + ` and checked by ` + "`crossfade check -c FILE`" + `. It is strict: an unknown key, a key that is there twice, a second document, anchors and tags are errors that name file and line. The shortest working file:

` + "```yaml" + `
hostname: mx.example.org
domains: [example.org]
backends:
  old: {smtp: "smtp://old.internal:25"}
  new: {smtp: "smtp://new.internal:25"}
` + "```" + `

- **Durations** are whole numbers with the units d, h, m, s and ms, the largest first: ` + "`7d`, `4h30m`, `90s`" + `.
- **Sizes** are a whole number and a unit: KiB, MiB, GiB, TiB (or k, M, G, T) in steps of 1024, kB, MB, GB, TB in steps of 1000, none for bytes: ` + "`50MiB`, `10MB`, `512k`" + `.
- **Paths** that are relative are resolved against the directory of the configuration file.
- **Passwords** are never in the file: name a file or an environment variable.
- **Reload** (SIGHUP, or ` + "`POST /v1/reload`" + `) builds and checks the new file before it replaces the running configuration; on an error the running one stays. A change of a key marked *restart* takes effect at the next start.
`

// Reference returns the reference page of all keys as Markdown, generated from the struct tags and [Default].
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	var rows, sections strings.Builder
	writeSection(&rows, &sections, reflect.ValueOf(Default()).Elem(), "")
	b.WriteString("\n## Top level\n\n" + tableHead + rows.String())
	b.WriteString(sections.String())
	return b.String()
}

const tableHead = "| key | default | reload | meaning |\n|---|---|---|---|\n"

// writeSection writes the keys of v into rows and a chapter for each section below it into chapters. Both sides of
// the migration have the same keys, so the second refers to the first.
func writeSection(rows, chapters *strings.Builder, v reflect.Value, prefix string) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name := field.Tag.Get("yaml")
		if name == "" {
			continue
		}
		value, key, doc := v.Field(i), prefix+name, field.Tag.Get("doc")
		if value.Kind() == reflect.Pointer {
			value = reflect.New(value.Type().Elem()).Elem()
		}
		if !isSection(value.Type()) {
			reload := "yes"
			if field.Tag.Get("reload") == "restart" || strings.Contains(prefix, "[]") {
				reload = "restart"
			}
			fmt.Fprintf(rows, "| `%s` | %s | %s | %s |\n", key, defaultText(value), reload, escapeCell(doc+limits(field.Tag)))
			if sectionList(value.Type()) {
				writeEntry(chapters, value.Type(), key)
			}
			continue
		}
		if name == "new" {
			fmt.Fprintf(chapters, "\n## `%s`\n\n%s The keys are those of `%sold`.\n", key, doc, prefix)
			continue
		}
		var ownRows, below strings.Builder
		writeSection(&ownRows, &below, value, key+".")
		fmt.Fprintf(chapters, "\n## `%s`\n\n%s\n", key, doc)
		if ownRows.Len() > 0 {
			chapters.WriteString("\n" + tableHead + ownRows.String())
		}
		chapters.WriteString(below.String())
	}
}

// writeEntry writes a chapter for the entries of a list of sections.
func writeEntry(chapters *strings.Builder, list reflect.Type, key string) {
	var rows, below strings.Builder
	writeSection(&rows, &below, entry(list), key+"[].")
	fmt.Fprintf(chapters, "\n## `%s[]`\n\nOne entry of `%s`; a change of one takes effect as that of the list.\n\n%s%s%s", key, key, tableHead, rows.String(), below.String())
}

func defaultText(v reflect.Value) string {
	if v.Kind() == reflect.String && v.String() == "" {
		return "(empty)"
	}
	if text := valueText(v); text != "" {
		return "`" + text + "`"
	}
	return "(none)"
}

// limits writes the checked bounds of a key behind its meaning.
func limits(tag reflect.StructTag) string {
	if enum := tag.Get("enum"); enum != "" {
		return " One of: " + strings.ReplaceAll(enum, "|", ", ") + "."
	}
	switch least, most := tag.Get("min"), tag.Get("max"); {
	case least != "" && most != "":
		return fmt.Sprintf(" From %s to %s.", least, most)
	case least != "" && least != "0":
		return fmt.Sprintf(" At least %s.", least)
	}
	return ""
}

func escapeCell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }

// Example returns a commented file to start from. It passes Parse as it is.
func Example() string {
	return `# Crossfade: takes mail for a domain and delivers each recipient to the old or the new mail system.
# Every other key has a default; docs/configuration.md lists all of them. Check with: crossfade check -c crossfade.yaml

# Our own name: what the MX record points at.
hostname: mx.example.org

# Domains to accept mail for.
domains: [example.org]

# Queue, users and ledger live here, relative to this file. Put it on a disk that survives a power cut.
store: ./data

# smtp:
#   listen: ["0.0.0.0:25"]
#   tls: {cert: ./tls/fullchain.pem, key: ./tls/privkey.pem}   # read again when the files change
#   max_message_size: 50MiB
#   trusted: [10.0.0.0/8]          # the backends' own outbound mail

backends:
  old:
    smtp: smtp+starttls://old.internal:25
    # imap: imaps://old.internal:993          # needed to copy mailboxes
    # imap_login: {user: master, password_file: ./old.pw, as: authzid}
  new:
    smtp: smtp+starttls://new.internal:25
    # imap: imaps://new.internal:993
    # imap_login: {user: master, password_file: ./new.pw, as: "suffix:*"}

# cutover:
#   approve: manual                # or auto: users who are ready go on alone
`
}
