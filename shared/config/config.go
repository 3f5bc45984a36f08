// Package config reads a process' settings from environment variables, with the names and defaults that existing
// installations have. A value that cannot be meant stops the start with one line that names its variable.
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

// AllInOne is the service name of the process that runs all of them, `edumatrix up`. It may lack what it makes itself:
// secrets, and the stores that it embeds.
const AllInOne = "edumatrix"

// ports are where the services listen unless PORT says otherwise.
var ports = map[string]int{"gateway": 3001, "presence": 3002, "chat": 3003, "feed": 3004, "notification": 3005,
	AllInOne: 3001}

// Config is what one process runs with.
type Config struct {
	Service string
	Host    string // to listen on; "" is every address, as it always is unless somebody sets it here
	Port    int
	// PortVariable is the one that chooses Port, for who has to choose another.
	PortVariable string
	// MetricsPort is where the gateway serves its metrics, apart from clients; 0: nowhere. MetricsHost is the address of
	// this machine that it listens on there; "" is every address.
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
	JWTRoleClaim  string // names the claim that holds a user's role; empty: nobody has one
	ServiceSecret string // what the services of one installation know each other by

	Peers map[string]string // owner -> base URL of its inner listener

	ResumeEvents     int // how many events of one room a client that comes back is given
	MaxConversations int // in how many conversations a user may be

	DataDir        string
	AllowedOrigins []string
	AnyLocalOrigin bool
	Traces         telemetry.Settings
	PostgresBin    string

	// Given names the stores whose variables are set: "postgres", "redis", "kafka". AllInOne embeds the others.
	Given map[string]bool

	// Notices are what people should be told at the start. There is never a secret in them.
	Notices []string
}

// Load reads the settings of a service. An error names the variable, and says what it has to look like.
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
	for _, owner := range []string{"presence", "chat", "feed", "notification"} {
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
		return Config{}, r.problems[0] // one line; the next start tells the next
	}
	return c, nil
}

func (r *reader) postgres(c *Config) {
	const maxName = 63 // PostgreSQL cuts off the rest of a name, and then does not find it
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
		r.problem("KAFKA_ENABLED", "is false, but a service of its own cannot do without Kafka: "+
			"remove it and set KAFKA_BROKERS, or run `edumatrix up`, which brings a broker along")
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

// secrets reads what tokens and calls between services are checked with.
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
		r.problem("JWT_AUDIENCE", "names nothing, so tokens for any program would hold")
	}
	role := "role"
	if c.JWTSecret == "" && c.JWKSURL != "" {
		// Users of many sign-ins can edit what is told of them: no claim makes a role unless it is named.
		role = ""
		if c.Service == "gateway" || c.Service == AllInOne {
			r.needsBesideKeys("JWT_AUDIENCE", "the aud that the sign-in gives to tokens for this mesh")
			r.needsBesideKeys("JWT_ISSUER", "the iss of its tokens, to the letter")
		}
	} else if c.JWKSURL != "" {
		r.notice("JWT_SECRET wins over JWKS_URL: tokens have to be signed with it")
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
		r.problem("JWT_SECRET", "is not set, nor is JWKS_URL: one of them says which tokens are valid")
	} else if c.ServiceSecret == "" {
		r.problem("SERVICE_SECRET", "is not set: with JWKS_URL alone there is nothing to derive it from; "+
			"set the same secret for all services")
	}
}

// needsBesideKeys stops a start without what tells tokens for this mesh from others that the same keys have signed.
func (r *reader) needsBesideKeys(name, what string) {
	if r.text(name, "") == "" {
		r.problem(name, "is not set: JWKS_URL needs it beside it, as the same keys sign tokens for other programs; set it to %s", what)
	}
}

// secret reads a secret that can be guessed at leisure, so that a short one is found.
func (r *reader) secret(name string) string {
	value := r.text(name, "")
	if value != "" && len(value) < auth.MinSecret {
		r.problem(name, "has %d bytes: it needs at least %d, as whoever has one token can try secrets against it; "+
			"make a good one with: openssl rand -hex 32", len(value), auth.MinSecret)
	}
	return value
}

// DeriveServiceSecret is what services know each other by where only JWT_SECRET is given. It does not tell that one.
func DeriveServiceSecret(jwtSecret string) string {
	mac := hmac.New(sha256.New, []byte(jwtSecret))
	mac.Write([]byte("edumatrix service credential"))
	return hex.EncodeToString(mac.Sum(nil))
}

// String tells where things are, and no secret.
func (c Config) String() string {
	return fmt.Sprintf("%s on %s:%d, %s, %s, %s", c.Service, c.Host, c.Port, c.Postgres, c.Redis, c.Kafka)
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON refuses: a Config that lands in a file or an answer would take its secrets along.
func (c Config) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a configuration holds secrets")
}
