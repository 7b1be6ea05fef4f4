package daemon

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"

	"crossfade/admin"
	"crossfade/backfill"
)

// listenAdmin binds the address of the API. What the configuration promised is
// looked at again with the address that came of it: localhost may lead elsewhere.
func (d *Daemon) listenAdmin() (net.Listener, error) {
	l, err := d.bind("admin", 0, net.ListenConfig{}, d.cfg.Admin.Listen)
	if err != nil {
		return nil, fmt.Errorf("admin.listen: %w", err)
	}
	if err := d.mayServeAdmin(l.Addr()); err != nil {
		_ = l.Close() // nothing came in yet
		return nil, err
	}
	return l, nil
}

// mayServeAdmin refuses an address at which tokens would cross the network readable.
func (d *Daemon) mayServeAdmin(addr net.Addr) error {
	tcp, ok := addr.(*net.TCPAddr)
	switch {
	case !ok:
		return fmt.Errorf("admin.listen: %s is no TCP socket", addr.Network())
	case d.tls.admin == nil && !d.cfg.Admin.Insecure && !tcp.IP.IsLoopback():
		return fmt.Errorf("admin.listen: %s can be reached by others and the token would cross the network readable: set admin.tls, listen on 127.0.0.1, or say admin.insecure: true", addr)
	}
	return nil
}

// adminTLS is how the API speaks; nil: plain HTTP. Each handshake takes the present
// certificate.
func (d *Daemon) adminTLS() *tls.Config {
	return d.tls.adminConfig
}

// tokenRecords is the user, who is none, under whom the store keeps tokens.
const tokenRecords = "admin-tokens"

// tokenBook keeps the tokens of the API in the store, so that nodes that share it
// have the same.
type tokenBook struct{ ledger backfill.Ledger }

var _ admin.TokenStore = tokenBook{}

// LoadTokens implements admin.TokenStore.
func (b tokenBook) LoadTokens(ctx context.Context) ([]admin.StoredToken, error) {
	records, err := b.ledger.LoadLedger(ctx, tokenRecords)
	if err != nil {
		return nil, err
	}
	var out []admin.StoredToken
	for name, data := range records {
		var t admin.StoredToken
		if err := json.Unmarshal(data, &t); err != nil || t.Name != name {
			// It is no token, and no reason to be without mail: it is listed, to be revoked.
			t = admin.StoredToken{Name: name, By: "nobody knows: the record is damaged, revoke it"}
		}
		out = append(out, t)
	}
	return out, nil
}

// SaveToken implements admin.TokenStore.
func (b tokenBook) SaveToken(ctx context.Context, t admin.StoredToken) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return b.ledger.SaveLedger(ctx, tokenRecords, t.Name, data)
}

// DeleteToken implements admin.TokenStore.
func (b tokenBook) DeleteToken(ctx context.Context, name string) error {
	return b.ledger.SaveLedger(ctx, tokenRecords, name, nil)
}
