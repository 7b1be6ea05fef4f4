package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// outer wraps the endpoints with what holds for all of them: headers,
// deadlines, and problems instead of plain text for paths and methods that do
// not exist.
func (s *Server) outer(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		secure(h)
		rc := http.NewResponseController(w)
		if hasBody(r) {
			// A body that no handler reads, as of a request without a token, is read by
			// net/http, and that without an end of its own.
			s.deadline("reading a body", rc.SetReadDeadline(time.Now().Add(s.bodyIdle)))
		}
		if p := s.guard(r); p != nil {
			h.Set("Connection", "close") // a body that it may have is not asked for
			writeProblem(w, p)
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			s.noEndpoint(w, r, mux)
			return
		}
		s.deadline("an answer", rc.SetWriteDeadline(time.Now().Add(answerTime)))
		body := http.MaxBytesReader(w, r.Body, maxImport+1) // each operation has its own limit below that
		r.Body = &idleBody{ReadCloser: body, rc: rc, header: h, idle: s.bodyIdle}
		defer s.recoverPanic(w, r)
		mux.ServeHTTP(w, r)
	})
}

// deadline says that one could not be set. A test without a socket has none.
func (s *Server) deadline(of string, err error) {
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.log.Debug("cannot set a deadline", "for", of, "error", err)
	}
}

// recoverPanic answers for a handler that panicked. When its answer had begun
// already, the connection is cut instead, so that it does not look whole.
func (s *Server) recoverPanic(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v != http.ErrAbortHandler {
		s.log.Error("a handler of the admin API panicked", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
	}
	if v == http.ErrAbortHandler || w.Header().Get("Content-Type") != "" {
		panic(http.ErrAbortHandler) // the way of net/http to cut a connection
	}
	writeProblem(w, problemOf(fmt.Errorf("a programming error: %v", v)))
}

// noEndpoint answers for a path or a method that the mux does not know.
func (s *Server) noEndpoint(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	probe := &probeWriter{header: http.Header{}}
	mux.ServeHTTP(probe, r)
	p := &Problem{Type: ProblemNotFound, Title: "no such path", Status: http.StatusNotFound,
		Detail: fmt.Sprintf("there is nothing at %s", r.URL.Path), Hint: "GET /openapi.json lists the paths"}
	switch {
	case probe.status == http.StatusMethodNotAllowed:
		allow := probe.header.Get("Allow")
		w.Header().Set("Allow", allow)
		p.Type, p.Title, p.Status = ProblemMethod, "no such method", http.StatusMethodNotAllowed
		p.Detail, p.Hint = fmt.Sprintf("%s is not possible at %s", r.Method, r.URL.Path), "use "+allow
	case probe.header.Get("Location") != "":
		p.Detail += "; the nearest path is " + probe.header.Get("Location")
	}
	writeProblem(w, p)
}

// probeWriter keeps what the mux would have said.
type probeWriter struct {
	header http.Header
	status int
}

func (p *probeWriter) Header() http.Header         { return p.header }
func (p *probeWriter) Write(b []byte) (int, error) { return len(b), nil }
func (p *probeWriter) WriteHeader(code int)        { p.status = code }

func writeProblem(w http.ResponseWriter, p *Problem) {
	body, err := json.Marshal(p)
	if err != nil { // a Problem has nothing that cannot be encoded
		http.Error(w, p.Error(), p.Status)
		return
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	w.Write(append(body, '\n')) // an error means that the client is gone
}

// idleBody gives up when a client is silent for too long inside a body. At the
// body's end it takes the deadline back and sets no other: net/http reads on in
// the background, and a deadline there would end the request's context.
type idleBody struct {
	io.ReadCloser
	rc     *http.ResponseController
	header http.Header // of the answer
	idle   time.Duration
	done   bool // the end was read, the deadline is taken back
}

func (b *idleBody) Read(p []byte) (int, error) {
	if b.done {
		return b.ReadCloser.Read(p)
	}
	if err := b.rc.SetReadDeadline(time.Now().Add(b.idle)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		b.takeBack()
	case err != nil:
		b.header.Set("Connection", "close") // the rest of the body may still come
	}
	return n, err
}

// Close lets net/http read the rest of the body, or give the connection up.
func (b *idleBody) Close() error {
	err := b.ReadCloser.Close()
	if err == nil && !b.done {
		b.takeBack()
	}
	return err
}

func (b *idleBody) takeBack() {
	b.done = true
	b.rc.SetReadDeadline(time.Time{}) // fails only where setting it failed
}

func (s *Server) serveSpec(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(s.spec) // an error means that the client is gone
}

// strictJSON is JSON in which a name stands once in an object. Unknown names
// and wrong types are found by the schema of the operation.
func strictJSON() huma.Format {
	f := huma.DefaultJSONFormat
	f.Unmarshal = func(data []byte, v any) error {
		if err := uniqueNames(data); err != nil {
			return err
		}
		return json.Unmarshal(data, v)
	}
	return f
}

// uniqueNames finds an object with the same name twice; which of the two
// counts would depend on the reader. encoding/json folds case, so it does too.
func uniqueNames(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	var stack []map[string]bool // nil for an array
	var expectName bool
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		if name, ok := tok.(string); ok && expectName {
			folded := strings.ToLower(name)
			if stack[top][folded] {
				return fmt.Errorf("the name %q stands twice in an object", name)
			}
			stack[top][folded] = true
			expectName = false
			continue
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, map[string]bool{})
		case json.Delim('['):
			stack = append(stack, nil)
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
		}
		expectName = len(stack) > 0 && stack[len(stack)-1] != nil
	}
}
