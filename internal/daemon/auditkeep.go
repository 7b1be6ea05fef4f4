package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"crossfade/admin"
	"crossfade/audit"
	"crossfade/audit/seal"
)

// Where the audits' own things lie in the store, under users who are none: nodes
// on one Redis have one key, and see each other's last audit. That one is large, and
// lies apart, with a word elsewhere which it is.
const (
	auditRecords = "audit"
	keyRecord    = "signing-key"
	lastRun      = "last-run"

	lastRecords  = "audit:last"
	lastDocument = "document"
)

// keptAudit is the last audit, read and checked. It is kept in memory while somebody
// reads what it says of one user after the other.
type keptAudit struct {
	mu   sync.Mutex
	doc  *audit.Document
	word string // what the store called it
	used time.Time
}

// idleAudit is how long it stays in memory after it was used.
const idleAudit = 5 * time.Minute

// rest forgets what nobody uses.
func (k *keptAudit) rest() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.used) > idleAudit {
		k.doc = nil
	}
}

// keyMaker has the key of an embedded store, so that two who ask for it at once, when
// there is none yet, do not make two.
type keyMaker struct {
	mu  sync.Mutex
	key *seal.Key
}

// key gives what the installation signs with: a file in the embedded store's
// directory, or a record in Redis, which whoever is first writes, so that nodes that
// start for the first time at once have one key.
func (a *audits) key(ctx context.Context) (seal.Key, error) {
	if !shared(a.d.cfg) {
		return a.ownKey()
	}
	records, err := a.d.store.LoadLedger(ctx, auditRecords)
	if err != nil {
		return seal.Key{}, fmt.Errorf("read the key to sign with: %w", err)
	}
	data := records[keyRecord]
	if len(data) == 0 {
		if data, err = a.firstKey(ctx); err != nil {
			return seal.Key{}, err
		}
	}
	k, err := seal.ParseKey(data)
	if err != nil {
		return k, fmt.Errorf("read the key to sign with from Redis: %w", err)
	}
	return k, nil
}

func (a *audits) ownKey() (seal.Key, error) {
	a.maker.mu.Lock()
	defer a.maker.mu.Unlock()
	if a.maker.key != nil {
		return *a.maker.key, nil
	}
	k, created, err := seal.LoadOrCreate(filepath.Join(a.d.cfg.Store, "signing.key"))
	if created {
		a.d.log.Info("a key to sign audits with was made", "public", k.Public())
	}
	if err == nil {
		a.maker.key = &k
	}
	return k, err
}

// ledgerKeeper is a store that several nodes write to.
type ledgerKeeper interface {
	// KeepLedger writes a record where there is none, and gives the one that is there
	// then.
	KeepLedger(ctx context.Context, user, name string, data []byte) ([]byte, error)
}

// firstKey makes a key, and gives the one that counts: ours, or that of a node that
// was quicker.
func (a *audits) firstKey(ctx context.Context) ([]byte, error) {
	keeper, ok := a.d.store.(ledgerKeeper)
	if !ok {
		return nil, errors.New("make the key to sign with: the store cannot keep one for all nodes")
	}
	k, err := seal.NewKey()
	if err != nil {
		return nil, err
	}
	data, err := k.PEM()
	if err != nil {
		return nil, err
	}
	kept, err := keeper.KeepLedger(ctx, auditRecords, keyRecord, data)
	if err != nil {
		return nil, fmt.Errorf("keep the key to sign with: %w", err)
	}
	if string(kept) == string(data) {
		a.d.log.Info("a key to sign audits with was made", "public", k.Public())
	}
	return kept, nil
}

// save keeps an audit as the last one.
func (a *audits) save(ctx context.Context, doc *audit.Document) error {
	data, err := json.Marshal(doc)
	if err == nil {
		err = a.d.store.SaveLedger(ctx, lastRecords, lastDocument, data)
	}
	if err == nil {
		err = a.d.store.SaveLedger(ctx, auditRecords, lastRun, []byte(doc.Run))
	}
	if err != nil {
		return fmt.Errorf("keep the audit: %w", err)
	}
	return nil
}

// last gives the last audit, nil when there is none. It is not to be changed.
func (a *audits) last(ctx context.Context) (*audit.Document, error) {
	records, err := a.d.store.LoadLedger(ctx, auditRecords)
	if err != nil {
		return nil, fmt.Errorf("read the last audit: %w", err)
	}
	word := string(records[lastRun])
	a.kept.mu.Lock()
	defer a.kept.mu.Unlock()
	a.kept.used = time.Now()
	if word == "" || a.kept.doc != nil && a.kept.word == word {
		if word == "" {
			return nil, nil
		}
		return a.kept.doc, nil
	}
	doc, err := a.read(ctx)
	if err == nil {
		a.kept.doc, a.kept.word = doc, word
	}
	return doc, err
}

// read reads the last audit from the store, and checks it.
func (a *audits) read(ctx context.Context) (*audit.Document, error) {
	records, err := a.d.store.LoadLedger(ctx, lastRecords)
	if err != nil {
		return nil, fmt.Errorf("read the last audit: %w", err)
	}
	data := records[lastDocument]
	if len(data) == 0 {
		return nil, nil
	}
	key, err := a.PublicKey(ctx)
	if err != nil {
		return nil, err
	}
	doc, result, err := audit.Read(data, key)
	if err == nil && !result.OK() {
		err = errors.New(strings.Join(result.Wrong, "; "))
	}
	if err != nil {
		return nil, fmt.Errorf("the last audit is not what was signed: %w", err)
	}
	return doc, nil
}

// Last implements admin.AuditsAPI.
func (a *audits) Last(ctx context.Context) (*audit.Document, error) {
	doc, err := a.last(ctx)
	if err == nil && doc == nil {
		err = admin.ErrNoAudit
	}
	return doc, err
}

// Of implements admin.AuditsAPI.
func (a *audits) Of(ctx context.Context, user string) (*audit.Document, error) {
	doc, err := a.Last(ctx)
	if err != nil {
		return nil, err
	}
	key, err := a.key(ctx)
	if err != nil {
		return nil, err
	}
	one, ok, err := doc.ForUser(user, key)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %s is not in the last one", admin.ErrNoAudit, user)
	}
	return one, err
}

// Each implements admin.AuditsAPI.
func (a *audits) Each(ctx context.Context, run, after string, limit int) (docs []*audit.Document, next string, err error) {
	doc, err := a.Last(ctx)
	if err != nil {
		return nil, "", err
	}
	if doc.Run != run {
		return nil, "", fmt.Errorf("%w: %s is not the last one any more", admin.ErrNoAudit, run)
	}
	key, err := a.key(ctx)
	if err != nil {
		return nil, "", err
	}
	i := sort.Search(len(doc.Users), func(i int) bool { return doc.Users[i].User > after })
	for ; i < len(doc.Users) && len(docs) < limit; i++ {
		one, err := doc.At(i, key)
		if err != nil {
			return nil, "", err
		}
		docs = append(docs, one)
	}
	if i < len(doc.Users) {
		next = doc.Users[i-1].User
	}
	return docs, next, nil
}

// PublicKey implements admin.AuditsAPI.
func (a *audits) PublicKey(ctx context.Context) (string, error) {
	k, err := a.key(ctx)
	return k.Public(), err
}

// Sign implements admin.AuditsAPI.
func (a *audits) Sign(ctx context.Context, document any, members ...string) (*seal.Signature, error) {
	k, err := a.key(ctx)
	if err != nil {
		return nil, err
	}
	return seal.Sign(document, k, members...)
}
