package redis

import (
	"errors"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Server is where the store lies. Make one with [Dial].
type Server struct {
	client goredis.UniversalClient
	queue  string
}

func (s *Server) prefix() string { return "cx:{" + s.queue + "}:" }

// Close ends its connections.
func (s *Server) Close() error { return s.client.Close() }

// Dial reads a URL.
func Dial(url string) (*Server, error) {
	o, err := goredis.ParseURL(url)
	if err != nil {
		return nil, errors.New("bad URL")
	}
	o.MaxRetries = -1
	o.ContextTimeoutEnabled = true
	o.DisableIdentity = true
	o.ReadTimeout, o.WriteTimeout = replyTime, replyTime
	o.DialTimeout = 5 * time.Second
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return &Server{client: goredis.NewClient(o), queue: "q"}, nil
}
