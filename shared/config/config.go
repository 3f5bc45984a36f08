// Package config reads a process's settings from environment variables, with the names and defaults of existing
// installations. An invalid value stops the start with one line that names its variable.
package config

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// AllInOne is the service name of `edumatrix up`, the process that runs all services. Its secrets and embedded stores
// need not be configured.
const AllInOne = "edumatrix"

// ports are the default ports of the services, which PORT overrides.
var ports = map[string]int{"gateway": 3001, "presence": 3002, "chat": 3003, "feed": 3004, "notification": 3005,
	AllInOne: 3001}

// Services returns the names of all services, sorted: the keys of the variable ports except AllInOne.
func Services() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(ports)), func(name string) bool { return name == AllInOne })
}

// Peers returns the sorted names of the services that have an inner listener, for calls between services.
func Peers() []string {
	return slices.DeleteFunc(Services(), func(name string) bool { return name == "gateway" })
}

// Config is the configuration of one process.
type Config struct {
	Service string
	Host    string // address to listen on; "", the default, means every address
	Port    int
	// PortVariable is the variable that sets Port, for error messages.
	PortVariable string
	// MetricsPort is the port on which the gateway serves its metrics; 0: none. It is not the port for clients, which is
	// Port. MetricsHost is the address of that listener; "" means every address.
	MetricsHost string
	MetricsPort int

	Postgres     backend.Postgres
	Redis        backend.Redis
	Kafka        backend.Kafka
	KafkaEnabled bool

	PostgresUser, PostgresPassword, PostgresDB string

	JWTSecret     string
	JWKSURL       string
	JWTAudience   []string
	JWTIssuer     string
	JWTRoleClaim  string // name of the claim with a user's role; empty: users have no role
	ServiceSecret string // secret with which the services of an installation authenticate each other

	Peers map[string]string // owner -> base URL of its inner listener

	ResumeEvents     int // maximum number of missed events of one room that a resuming client is sent
	MaxConversations int // maximum number of conversations of a user

	DataDir        string
	AllowedOrigins []string
	AnyLocalOrigin bool
	Traces         telemetry.Settings
	PostgresBin    string

	// Given reports for each store whether its variable is set: "postgres" (DATABASE_URL), "redis" (REDIS_URL or
	// REDIS_HOST), "kafka" (KAFKA_BROKERS, unless KAFKA_ENABLED is false). AllInOne embeds the stores whose value is
	// false.
	Given map[string]bool

	// Notices are messages that the process logs at its start. They never contain a secret.
	Notices []string
}

// Load reads the settings of a service. An error about a variable names the variable, and describes its form or the
// correction.
func Load(service string, getenv func(string) string) (Config, error) {
	if ports[service] == 0 {
		return Config{}, fmt.Errorf("there is no service %q; there are %s", service,
			strings.Join(slices.Sorted(maps.Keys(ports)), ", "))
	}
	r := &reader{getenv: getenv}
	c := Config{Service: service, PortVariable: "PORT", Given: map[string]bool{}}
	c.Port = r.port(c.PortVariable, ports[service])
	c.MetricsPort = r.number("METRICS_PORT", 0, 1, 65535)
	if service == AllInOne {
		c.MetricsHost = "127.0.0.1"
	}
	if c.MetricsPort == c.Port {
		r.problem("METRICS_PORT", "is the same as PORT: clients are served there")
	}
	r.postgres(&c)
	r.redis(&c)
	r.kafka(&c)
	r.secrets(&c)
	c.Peers = map[string]string{}
	for _, owner := range Peers() {
		c.Peers[owner] = r.baseURL(strings.ToUpper(owner)+"_URL", fmt.Sprintf("http://localhost:%d", ports[owner]))
	}
	c.ResumeEvents = r.number("RESUME_EVENTS", 1000, 1, 10_000)
	c.MaxConversations = r.number("MAX_CONVERSATIONS", 10_000, 1, 100_000)
	c.DataDir = r.path("DATA_DIR", ".data")
	c.AllowedOrigins = r.origins("ALLOWED_ORIGINS")
	c.AnyLocalOrigin = service == AllInOne
	r.traces(&c)
	c.PostgresBin = r.path("EDUMATRIX_POSTGRES_BIN", "")
	c.Notices = r.notices
	if len(r.problems) > 0 {
		return Config{}, r.problems[0] // one line; the next start reports the next problem
	}
	return c, nil
}

func (r *reader) postgres(c *Config) {
	const maxName = 63 // bytes; PostgreSQL truncates a longer name, which then names another user or database
	c.PostgresUser = r.name("POSTGRES_USER", "edu_matrix_user", maxName)
	c.PostgresDB = r.name("POSTGRES_DB", "edu_matrix_db", maxName)
	c.PostgresPassword = r.text("POSTGRES_PASSWORD", "")
	c.Postgres.PoolMax = int32(r.number("POSTGRES_POOL_MAX", 20, 1, 10_000))
	c.Postgres.URL = r.databaseURL("DATABASE_URL", c)
	c.Given["postgres"] = r.text("DATABASE_URL", "") != ""
}

func (r *reader) redis(c *Config) {
	c.Redis = backend.Redis{Host: r.host("REDIS_HOST", "localhost"), Port: r.port("REDIS_PORT", 6379),
		Password: r.text("REDIS_PASSWORD", "")}
	if c.Redis.URL = r.redisURL("REDIS_URL"); c.Redis.URL != "" {
		r.compareRedis(c.Redis)
	}
	c.Given["redis"] = r.text("REDIS_URL", "") != "" || r.text("REDIS_HOST", "") != ""
}

func (r *reader) kafka(c *Config) {
	c.Kafka = backend.Kafka{Brokers: r.brokers("KAFKA_BROKERS", "localhost:9092"),
		ClientID: r.name("KAFKA_CLIENT_ID", "edu-matrix-interlinked", 255), TopicPrefix: r.prefix("TOPIC_PREFIX")}
	c.Given["kafka"] = r.text("KAFKA_BROKERS", "") != ""
	c.KafkaEnabled = r.boolean("KAFKA_ENABLED", true)
	switch {
	case c.KafkaEnabled:
	case c.Service != AllInOne:
		r.problem("KAFKA_ENABLED", "is false, but a separate service requires Kafka: "+
			"remove KAFKA_ENABLED and set KAFKA_BROKERS, or run `edumatrix up`, which has an embedded broker")
	case c.Given["kafka"]:
		c.Given["kafka"] = false
		r.notice("KAFKA_ENABLED=false wins over KAFKA_BROKERS: the embedded broker is used")
	}
}

// traces reads the standard variables of OpenTelemetry.
func (r *reader) traces(c *Config) {
	var err error
	if c.Traces, err = telemetry.ReadSettings(r.getenv); err != nil {
		r.problems = append(r.problems, err)
	}
	if c.Service == AllInOne {
		c.Traces = c.Traces.WithoutServiceName()
	}
}

// secrets reads the secrets and settings with which tokens and calls between services are verified.
func (r *reader) secrets(c *Config) {
	c.JWTSecret = r.secret("JWT_SECRET")
	c.JWKSURL = r.httpURL("JWKS_URL", "")
	c.JWTIssuer = r.text("JWT_ISSUER", "")
	for audience := range strings.SplitSeq(r.text("JWT_AUDIENCE", ""), ",") {
		if audience = strings.TrimSpace(audience); audience != "" {
			c.JWTAudience = append(c.JWTAudience, audience)
		}
	}
	if c.JWTAudience == nil && r.text("JWT_AUDIENCE", "") != "" {
		r.problem("JWT_AUDIENCE", "is empty, so tokens for any program would be valid")
	}
	role := "role"
	if c.JWTSecret == "" && c.JWKSURL != "" {
		// Many identity providers let users edit attributes that become claims of their tokens. So only a claim that
		// JWT_ROLE_CLAIM names grants a role.
		role = ""
		if c.Service == "gateway" || c.Service == AllInOne {
			r.requireWithJWKS("JWT_AUDIENCE", "the aud that the sign-in gives to tokens for this mesh")
			r.requireWithJWKS("JWT_ISSUER", "the exact iss of the sign-in's tokens")
		}
	} else if c.JWKSURL != "" {
		r.notice("JWT_SECRET wins over JWKS_URL: tokens have to be signed with JWT_SECRET")
	}
	c.JWTRoleClaim = r.text("JWT_ROLE_CLAIM", role)
	c.ServiceSecret = r.secret("SERVICE_SECRET")
	if c.ServiceSecret == "" && c.JWTSecret != "" {
		c.ServiceSecret = DeriveServiceSecret(c.JWTSecret)
	}
	if c.Service == AllInOne {
		return
	}
	if c.JWTSecret == "" && c.JWKSURL == "" {
		r.problem("JWT_SECRET", "is not set, nor is JWKS_URL: set one of them, so that tokens can be verified")
	} else if c.ServiceSecret == "" {
		r.problem("SERVICE_SECRET", "is not set: with JWKS_URL alone there is nothing to derive it from; "+
			"set the same secret for all services")
	}
}

// requireWithJWKS requires a setting that distinguishes tokens for this mesh from other tokens signed with the same
// keys.
func (r *reader) requireWithJWKS(name, what string) {
	if r.text(name, "") == "" {
		r.problem(name, "is not set: JWKS_URL needs it, because the same keys sign tokens for other programs; set it to %s", what)
	}
}

// secret reads a secret. It refuses a secret of fewer than auth.MinSecret bytes, which an attacker can guess offline.
func (r *reader) secret(name string) string {
	value := r.text(name, "")
	if value != "" && len(value) < auth.MinSecret {
		r.problem(name, "has %d bytes: it needs at least %d, because an attacker with one token can guess a short secret; "+
			"generate a secret with: openssl rand -hex 32", len(value), auth.MinSecret)
	}
	return value
}

// DeriveServiceSecret derives the secret with which services authenticate each other from JWT_SECRET. The derived
// secret is used if SERVICE_SECRET is not set, and does not reveal JWT_SECRET.
func DeriveServiceSecret(jwtSecret string) string {
	mac := hmac.New(sha256.New, []byte(jwtSecret))
	mac.Write([]byte("edumatrix service credential"))
	return hex.EncodeToString(mac.Sum(nil))
}

// String returns the addresses without the secrets.
func (c Config) String() string {
	return fmt.Sprintf("%s on %s:%d, %s, %s, %s", c.Service, c.Host, c.Port, c.Postgres, c.Redis, c.Kafka)
}

// GoString returns the same text as String.
func (c Config) GoString() string { return c.String() }

// LogValue returns the same text as String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON returns an error: a Config in a file or response would contain its secrets.
func (c Config) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a configuration holds secrets and must not be encoded")
}
