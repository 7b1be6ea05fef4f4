package disk

import "time"

// doubtSync is how often the note of deliveries under way is synced while there is
// news in it: what a power failure may take of it. Nobody waits for it.
const doubtSync = time.Second

// syncDoubts does so until the store closes. A note that cannot be synced is no
// reason to stop: mail is delivered without one too, and may be twice then.
func (s *Store) syncDoubts() {
	t := time.NewTicker(doubtSync)
	defer t.Stop()
	failing := false
	for {
		select {
		case <-s.quit:
			return
		case <-t.C:
		}
		s.mu.Lock()
		news := s.doubt.news
		s.doubt.news = false
		s.mu.Unlock()
		if !news || s.Err() != nil {
			continue
		}
		sync := dataSync
		if s.opts.syncDoubt != nil {
			sync = s.opts.syncDoubt
		}
		err := sync(s.doubt.f)
		if err != nil && !failing {
			s.log.Error("the note of deliveries under way cannot be synced: after a power failure some may be sent twice untold", "error", err, "alarm", true)
		}
		failing = err != nil
	}
}
