package transfer_test

import (
	"bytes"
	"context"

	"crossfade/store/redis"
	"crossfade/store/storetest"
)

// redisOpens opens the store as a node does.
func redisOpens(url string) (storetest.Store, error) {
	srv, err := redis.Dial(url)
	if err != nil {
		return nil, err
	}
	return redis.Open(context.Background(), srv, redis.Options{Node: "b"})
}

// newBody is a small body, and now and then one in pieces.
func newBody(i int) *bytes.Reader {
	if i%10 == 9 {
		return bytes.NewReader(noise(300 << 10))
	}
	return bytes.NewReader([]byte("small"))
}
