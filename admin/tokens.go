package admin

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

const tagTokens = "tokens"

// maxTokens is how many tokens may be made over the API: each request is compared
// with all.
const maxTokens = 1000

// TokenInfo is what is shown of a token.
type TokenInfo struct {
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	From    string    `json:"from" enum:"file,api" doc:"file: it is in admin.token_file and is taken away there; api: it was made over the API."`
	Created time.Time `json:"created,omitzero"`
	By      string    `json:"by,omitempty" doc:"Name of the token that made it."`
	Expires time.Time `json:"expires,omitzero"`
	Expired bool      `json:"expired,omitempty"`
}

// TokenList lists the tokens, by name.
type TokenList struct {
	Tokens []TokenInfo `json:"tokens"`
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Name    string `json:"name" minLength:"1" maxLength:"64" doc:"Letters, digits and . _ @ -; it stands in histories and in the audit log."`
	Role    Role   `json:"role" enum:"read,operate,admin"`
	Expires string `json:"expires,omitempty" maxLength:"40" doc:"A day (2026-12-31, to its beginning in UTC) or a time (RFC 3339); never without it."`
	Reason  string `json:"reason,omitempty" maxLength:"1000"`
}

// TokenMade is a new token. Its value is shown this once and kept nowhere.
type TokenMade struct {
	TokenInfo
	Token string `json:"token" doc:"The token itself. It is not kept and cannot be shown again."`
}

type tokenInput struct {
	Name   string `path:"name" maxLength:"64"`
	Reason string `query:"reason" maxLength:"1000"`
}

func (s *Server) registerTokens() {
	register(s, op{method: http.MethodGet, path: "/v1/tokens", id: "list-tokens", tag: tagTokens, role: RoleAdmin,
		summary: "The tokens: who may use this API", detail: "Values are not kept and never shown."}, s.listTokens)
	register(s, op{method: http.MethodPost, path: "/v1/tokens", id: "add-token", tag: tagTokens, role: RoleAdmin, status: http.StatusCreated,
		summary: "Make a token", detail: "The answer has its value, this once. Other nodes know it within five seconds."}, s.addToken)
	register(s, op{method: http.MethodDelete, path: "/v1/tokens/{name}", id: "revoke-token", tag: tagTokens, role: RoleAdmin,
		summary: "Revoke a token that was made over the API", detail: "At once here, on other nodes within five seconds; its event streams end within twenty."}, s.revokeToken)
}

// infos describes all tokens.
func (s *Server) infos() []TokenInfo {
	out := []TokenInfo{}
	for _, t := range s.tokens.all() {
		if !t.stored {
			out = append(out, TokenInfo{Name: t.Name, Role: t.Role, From: "file", Expires: t.Expires, Expired: t.expired(s.now())})
		}
	}
	for _, t := range s.tokens.storedTokens() {
		out = append(out, TokenInfo{Name: t.Name, Role: t.Role, From: "api", Created: t.Created, By: t.By, Expires: t.Expires,
			Expired: Token{Expires: t.Expires}.expired(s.now())})
	}
	slices.SortFunc(out, func(a, b TokenInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *Server) listTokens(ctx context.Context, _ *struct{}) (*body[TokenList], error) {
	if err := s.RefreshTokens(ctx); err != nil {
		return nil, err
	}
	return &body[TokenList]{TokenList{Tokens: s.infos()}}, nil
}

func (s *Server) addToken(ctx context.Context, in *body[TokenRequest]) (*body[TokenMade], error) {
	req := in.Body
	if s.cfg.TokenStore == nil {
		return nil, refused(ProblemRefused, "this relay keeps no tokens", "add it to the token file (admin.token_file) and reload")
	}
	made, err := MakeToken(req.Name, req.Role)
	if err != nil {
		return nil, invalid("body.name", "%v", err)
	}
	if req.Expires != "" {
		if made.Expires, err = parseExpiry(req.Expires); err != nil {
			return nil, invalid("body.expires", "%v", err)
		}
		if made.expired(s.now()) {
			return nil, invalid("body.expires", "%s is over already", req.Expires)
		}
	}
	st := StoredToken{Name: made.Name, Role: made.Role, Hash: made.hashText(), Created: s.now().UTC().Truncate(time.Second), By: callerOf(ctx).name, Expires: made.Expires}
	rec := Record{Action: "add-token", Object: made.Name, Reason: req.Reason, Detail: map[string]any{"role": made.Role}}
	if !made.Expires.IsZero() {
		rec.Detail["expires"] = made.Expires
	}
	if err := s.change(ctx, rec, func(ctx context.Context, _ *Record) error { return s.storeToken(ctx, st) }); err != nil {
		return nil, err
	}
	info := TokenInfo{Name: st.Name, Role: st.Role, From: "api", Created: st.Created, By: st.By, Expires: st.Expires}
	return &body[TokenMade]{TokenMade{TokenInfo: info, Token: made.Value()}}, nil
}

// storeToken saves a token whose name is free, and looks whether it is there: of
// two nodes that make the same name at once, one is told so.
func (s *Server) storeToken(ctx context.Context, t StoredToken) error {
	s.tokenChange.Lock()
	defer s.tokenChange.Unlock()
	if err := s.RefreshTokens(ctx); err != nil {
		return err
	}
	all := s.infos()
	taken := slices.ContainsFunc(all, func(i TokenInfo) bool { return i.Name == t.Name })
	if !taken && len(all) >= maxTokens {
		return refused(ProblemRefused, fmt.Sprintf("there are %d tokens already", len(all)), "revoke some")
	}
	if !taken {
		if err := s.cfg.TokenStore.SaveToken(ctx, t); err != nil {
			return fmt.Errorf("keeping the token: %w", err)
		}
		if err := s.RefreshTokens(ctx); err != nil {
			return err
		}
		taken = !slices.ContainsFunc(s.tokens.storedTokens(), func(have StoredToken) bool { return have.Name == t.Name && have.Hash == t.Hash })
	}
	if taken {
		p := refused(ProblemTokenName, "a token has the name "+t.Name, "choose another name, or revoke that one first")
		p.Title = "the name is taken"
		return p
	}
	return nil
}

func (s *Server) revokeToken(ctx context.Context, in *tokenInput) (*body[TokenList], error) {
	rec := Record{Action: "revoke-token", Object: in.Name, Reason: in.Reason}
	err := s.change(ctx, rec, func(ctx context.Context, _ *Record) error { return s.dropToken(ctx, in.Name) })
	if err != nil {
		return nil, err
	}
	return &body[TokenList]{TokenList{Tokens: s.infos()}}, nil
}

func (s *Server) dropToken(ctx context.Context, name string) error {
	s.tokenChange.Lock()
	defer s.tokenChange.Unlock()
	if err := s.RefreshTokens(ctx); err != nil {
		return err
	}
	// A name may have come into the file since: what is in the store can be taken away
	// all the same.
	if !slices.ContainsFunc(s.tokens.storedTokens(), func(t StoredToken) bool { return t.Name == name }) {
		if slices.ContainsFunc(s.tokens.all(), func(t Token) bool { return t.Name == name }) {
			return refused(ProblemRefused, "the token "+name+" is in the token file (admin.token_file)", "take it out there, and reload")
		}
		return &Problem{Type: ProblemNoToken, Title: "no such token", Status: http.StatusNotFound, Detail: "no token has the name " + name, Hint: "GET /v1/tokens lists them"}
	}
	if err := s.cfg.TokenStore.DeleteToken(ctx, name); err != nil {
		return fmt.Errorf("revoking the token %s: %w", name, err)
	}
	return s.RefreshTokens(ctx)
}

// Tokens lists the tokens.
func (c *Client) Tokens(ctx context.Context) ([]TokenInfo, error) {
	var out TokenList
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/tokens"}, nil, &out)
	return out.Tokens, err
}

// AddToken makes a token.
func (c *Client) AddToken(ctx context.Context, r TokenRequest) (TokenMade, error) {
	var out TokenMade
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/tokens"}, r, &out)
	return out, err
}

// RevokeToken takes a token away.
func (c *Client) RevokeToken(ctx context.Context, name, reason string) error {
	q := map[string][]string{}
	set(q, "reason", reason)
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/tokens/" + part(name), query: q}, nil, nil)
}
