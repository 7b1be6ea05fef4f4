package authn

import (
	"sync"

	"crossfade/relay/authn/dkim"
)

// keyCache keeps the keys of records that were read lately: most signatures are of a few signers, and to read an RSA key costs
// a good part of what it costs to verify with it. Who may use a key, and for how long, is the resolver's business: the record
// is looked up for each message.
type keyCache struct {
	mu    sync.Mutex
	known map[string]*dkim.Key // by record
}

// parse is [dkim.ParseKey]. The key is shared and must not be changed.
func (k *keyCache) parse(record string) (*dkim.Key, error) {
	k.mu.Lock()
	key := k.known[record]
	k.mu.Unlock()
	if key != nil {
		return key, nil
	}
	key, err := dkim.ParseKey(record)
	if err != nil {
		return nil, err // found out before anything that costs
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known == nil {
		k.known = map[string]*dkim.Key{}
	}
	for one := range k.known { // any: the order is random
		if len(k.known) < maxKeys {
			break
		}
		delete(k.known, one)
	}
	k.known[record] = key
	return key, nil
}
