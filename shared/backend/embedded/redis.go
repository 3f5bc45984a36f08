package embedded

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
)

const (
	redisStep    = 250 * time.Millisecond
	redisMaxStep = time.Second
)

// RedisOptions configure an embedded server.
type RedisOptions struct {
	Port     int    // 0: a free one
	Password string // "": no password is required
}

// Redis is a server of Redis' protocol in this process. Its data is lost when it stops.
type Redis struct {
	server   *miniredis.Miniredis
	password string
	stop     sync.Once
	end      context.CancelFunc
	ended    chan struct{}
}

// StartRedis starts a server.
func StartRedis(o RedisOptions) (*Redis, error) {
	r := &Redis{server: miniredis.NewMiniRedis(), password: o.Password, ended: make(chan struct{})}
	if o.Password != "" {
		r.server.RequireAuth(o.Password)
	}
	if o.Port != 0 {
		if err := portIsFree(o.Port); err != nil {
			return nil, fmt.Errorf("embedded Redis: %w", err)
		}
	}
	if err := r.server.StartAddr(net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port))); err != nil {
		return nil, fmt.Errorf("embedded Redis: %w", err)
	}
	var ctx context.Context
	ctx, r.end = context.WithCancel(context.Background())
	go func() {
		defer close(r.ended)
		r.passTime(ctx)
	}()
	return r, nil
}

// passTime makes keys expire, because miniredis does not advance its own clock. A step is at most a second, so that the
// holders of leases have time to renew them after a suspended laptop wakes up.
func (r *Redis) passTime(ctx context.Context) {
	tick := time.NewTicker(redisStep)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.server.FastForward(step(last, now))
			last = now
		}
	}
}

// step returns the time by which keys age from one tick to the next.
func step(last, now time.Time) time.Duration {
	return min(now.Sub(last), redisMaxStep)
}

// URL returns the URL of the server, including the password.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", Host: r.server.Addr(), Path: "/0"}
	if r.password != "" {
		u.User = url.UserPassword("", r.password)
	}
	return u.String()
}

// Stop stops the server. Stop may be called again.
func (r *Redis) Stop() {
	r.stop.Do(func() {
		r.end()
		<-r.ended
		r.server.Close()
	})
}
