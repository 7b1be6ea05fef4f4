package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/router"
)

// importSlice is how many users one step of a bulk import writes.
const importSlice = 250

// imported is a user of a bulk import, as import.lua reads it.
func imported(u router.User) []any {
	return []any{u.Address, string(u.Kind), string(u.State), wayOf(u), millis(u.Since), extraOf(u)}
}

// ImportUsers implements [router.Table]. The users are sent first, and become
// users in slices then; once that has begun it is carried to its end, by another
// node if need be.
func (s *Store) ImportUsers(ctx context.Context, users []router.User, c router.Change) (created, updated int, err error) {
	seen := make(map[string]bool, len(users))
	for _, u := range users {
		switch {
		case u.Address == "":
			return 0, 0, errKey
		case seen[u.Address]:
			return 0, 0, fmt.Errorf("import users: %s is there twice", u.Address)
		}
		seen[u.Address] = true
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	if err := s.enter(); err != nil {
		return 0, 0, err
	}
	defer s.leave()
	if len(users) == 0 {
		return 0, 0, nil
	}
	token := rand.Text()[:13]
	slices, err := s.sendImport(ctx, token, users)
	if err != nil {
		return 0, 0, err
	}
	change, err := noteOf(c)
	if err != nil {
		return 0, 0, err
	}
	if _, err = s.link.write(ctx, scImportBegin, token, slices, change); err != nil {
		return 0, 0, fmt.Errorf("import users: %w", err)
	}
	return s.finishImport(ctx, token)
}

// sendImport writes the slices; they go away by themselves until the import
// begins.
func (s *Store) sendImport(ctx context.Context, token string, users []router.User) (n int, err error) {
	key := s.key("J:" + token)
	for i := 0; i < len(users); i += importSlice {
		var rows [][]any
		for _, u := range users[i:min(i+importSlice, len(users))] {
			rows = append(rows, imported(u))
		}
		blob, err := json.Marshal(rows)
		if err != nil {
			return 0, fmt.Errorf("import users: %w", err)
		}
		err = s.bodies.retry(ctx, func(ctx context.Context) error {
			pipe := s.server.client.Pipeline()
			if n == 0 {
				pipe.Del(ctx, key)
			} else {
				pipe.LTrim(ctx, key, 0, int64(n)-1) // what a try without an answer added
			}
			pipe.RPush(ctx, key, blob)
			pipe.Expire(ctx, key, time.Hour)
			_, err := pipe.Exec(ctx)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("redis: import users: %w", full(err))
		}
		n++
	}
	return n, nil
}

// finishImport does the slices that are left.
func (s *Store) finishImport(ctx context.Context, token string) (created, updated int, err error) {
	for {
		var next int
		err := s.bodies.retry(ctx, func(ctx context.Context) (err error) {
			next, err = s.server.client.HGet(ctx, s.key("K:"+token), "next").Int()
			return err
		})
		if err != nil && !errors.Is(err, goredis.Nil) {
			return 0, 0, fmt.Errorf("redis: import users: %w", err)
		}
		said, err := s.link.write(ctx, scImport, token, next)
		if err != nil {
			return 0, 0, fmt.Errorf("import users: %w", err)
		}
		list := asList(said)
		if asInt(at(list, 0)) == 0 {
			return int(asInt(at(list, 1))), int(asInt(at(list, 2))), nil
		}
	}
}

// finishImports carries on with bulk imports whose node died.
func (s *Store) finishImports() error {
	before := fmt.Sprint(s.link.now() - time.Minute.Milliseconds())
	tokens, err := s.server.client.ZRangeByScore(s.ctx, s.key("K"), &goredis.ZRangeBy{Min: "-inf", Max: before}).Result()
	for _, token := range tokens {
		if _, _, err = s.finishImport(s.ctx, token); err != nil {
			return err
		}
		s.log.Info("a bulk import of users that another node had begun was finished", "import", token)
	}
	return err
}
