package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// These are the values that existing installations are tuned to.
const (
	redisRetries = 3
	redisBackoff = 100 * time.Millisecond
	redisDial    = 2 * time.Second
)

const tryRedis = "is it running, and are REDIS_URL, or REDIS_HOST, REDIS_PORT and REDIS_PASSWORD, right?"

// Redis contains the address of the server, and its password.
type Redis struct {
	URL      string // takes precedence over the other fields
	Host     string // "": localhost
	Port     int    // 0: 6379
	Password string
}

// Open connects a client and pings the server.
func (r Redis) Open(ctx context.Context) (*redis.Client, error) {
	options, err := r.options()
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(options)
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(unreachable("Redis", r.Where(), tryRedis, err), client.Close())
	}
	return client, nil
}

func (r Redis) options() (*redis.Options, error) {
	options, given := &redis.Options{Addr: r.Where(), Password: r.Password}, url.Values{}
	if r.URL != "" {
		var err error
		if u, err := url.Parse(r.URL); err == nil {
			given = u.Query()
		}
		if options, err = redis.ParseURL(r.URL); err != nil {
			// The library's error may repeat the URL, and with it the password.
			return nil, errors.New("REDIS_URL: it has to look like redis://:password@host:6379/0")
		}
	}
	// Parameters of the URL take precedence.
	if !given.Has("max_retries") {
		options.MaxRetries = redisRetries
	}
	if !given.Has("min_retry_backoff") && !given.Has("max_retry_backoff") {
		options.MinRetryBackoff, options.MaxRetryBackoff = redisBackoff, redisBackoff
	}
	if !given.Has("dial_timeout") {
		options.DialTimeout = redisDial
	}
	options.DialerRetries = 1 // the command's own retries are enough
	if options.Network != "unix" {
		options.Dialer = dial(options.TLSConfig, options.DialTimeout)
	}
	options.DisableIdentity = true // the version of the client library should not be disclosed
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return options, nil
}

// dial returns a function that resolves names to IPv4 addresses only, because a server in a container often does not
// listen on the IPv6 address of "localhost". The function dials an IPv6 address as given.
func dial(secure *tls.Config, timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: timeout, KeepAlive: 5 * time.Minute}
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		network := "tcp4"
		if ip, err := netip.ParseAddrPort(addr); err == nil && ip.Addr().Is6() {
			network = "tcp6"
		}
		if secure != nil {
			return (&tls.Dialer{NetDialer: dialer, Config: secure}).DialContext(ctx, network, addr)
		}
		return dialer.DialContext(ctx, network, addr)
	}
}

// Where returns the host and the port, or the path of the socket. It returns "(no address)" if the URL is invalid.
func (r Redis) Where() string {
	if r.URL != "" {
		if o, err := redis.ParseURL(r.URL); err == nil {
			return o.Addr
		}
		return "(no address)"
	}
	host, port := r.Host, r.Port
	if host == "" {
		host = "localhost"
	}
	if port == 0 {
		port = 6379
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// String returns the address without the password.
func (r Redis) String() string { return "redis " + r.Where() }

// GoString returns the same text as String.
func (r Redis) GoString() string { return r.String() }

// LogValue returns the same text as String.
func (r Redis) LogValue() slog.Value { return slog.StringValue(r.String()) }
