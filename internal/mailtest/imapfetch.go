package mailtest

import (
	"bufio"
	"bytes"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-message/textproto"
)

// writeFetch writes one FETCH response.
func writeFetch(w *imapserver.FetchWriter, v viewed, options *imap.FetchOptions) error {
	r := w.CreateMessage(v.seq)
	if options.UID {
		r.WriteUID(v.msg.uid)
	}
	if options.Flags {
		r.WriteFlags(v.msg.flags)
	}
	if options.InternalDate {
		r.WriteInternalDate(v.msg.time)
	}
	if options.RFC822Size {
		r.WriteRFC822Size(int64(len(v.msg.body)))
	}
	if options.Envelope {
		env := envelope(v.msg.body)
		if env == nil {
			env = &imap.Envelope{}
		}
		r.WriteEnvelope(env)
	}
	if options.BodyStructure != nil {
		r.WriteBodyStructure(imapserver.ExtractBodyStructure(bytes.NewReader(v.msg.body)))
	}
	for _, section := range options.BodySection {
		b := bodySection(v.msg.body, section)
		wc := r.WriteBodySection(section, int64(len(b)))
		_, err := wc.Write(b)
		if cerr := wc.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = r.Close()
			return err
		}
	}
	return r.Close()
}

// bodySection cuts the common sections out of the bytes as they are; MIME parts and chosen header fields go through the
// library's parser, which may rewrite them.
func bodySection(body []byte, section *imap.FetchItemBodySection) []byte {
	if len(section.Part) > 0 || len(section.HeaderFields) > 0 || len(section.HeaderFieldsNot) > 0 {
		return imapserver.ExtractBodySection(bytes.NewReader(body), section)
	}
	header, text := splitMessage(body)
	switch section.Specifier {
	case imap.PartSpecifierHeader:
		body = header
	case imap.PartSpecifierText:
		body = text
	}
	if p := section.Partial; p != nil {
		from := min(p.Offset, int64(len(body)))
		body = body[from:min(from+p.Size, int64(len(body)))]
	}
	return body
}

func envelope(body []byte) *imap.Envelope {
	h, err := textproto.ReadHeader(bufio.NewReader(bytes.NewReader(body)))
	if err != nil {
		return nil
	}
	return imapserver.ExtractEnvelope(h)
}
