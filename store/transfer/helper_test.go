package transfer_test

import (
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
