package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/config"
)

const long = "hidden-and-as-long-as-a-secret-has-to-be"

// env returns an environment with the given variables, each as "name=value". JWT_SECRET has a value even if it is not
// given.
func env(pairs ...string) func(string) string {
	all := map[string]string{"JWT_SECRET": "a token secret of this test, hidden from all"}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		all[name] = value
	}
	return func(name string) string { return all[name] }
}

func TestLoad_HasTheDefaultsOfExistingInstallations(t *testing.T) {
	t.Parallel()
	c, err := config.Load("chat", env())
	require.NoError(t, err)
	require.Equal(t, "chat", c.Service)
	require.Equal(t, 3003, c.Port)
	require.Equal(t, backend.Postgres{URL: "postgresql://edu_matrix_user@localhost:5432/edu_matrix_db", PoolMax: 20},
		c.Postgres)
	require.Equal(t, backend.Redis{Host: "localhost", Port: 6379}, c.Redis)
	require.Equal(t, backend.Kafka{Brokers: []string{"localhost:9092"}, ClientID: "edu-matrix-interlinked"}, c.Kafka)
	require.True(t, c.KafkaEnabled)
	require.Equal(t, map[string]string{"presence": "http://localhost:3002", "chat": "http://localhost:3003",
		"feed": "http://localhost:3004", "notification": "http://localhost:3005"}, c.Peers)
	require.Equal(t, map[string]bool{"postgres": false, "redis": false, "kafka": false}, c.Given)
	require.Equal(t, 1000, c.ResumeEvents)
	require.Equal(t, 10_000, c.MaxConversations)
	require.Equal(t, ".data", c.DataDir)
	require.Empty(t, c.AllowedOrigins)
	require.False(t, c.AnyLocalOrigin)
	require.Zero(t, c.MetricsPort)
	require.Empty(t, c.MetricsHost, "scrapers run on other machines or in other containers")
	require.Empty(t, c.Notices)

	for service, port := range map[string]int{"gateway": 3001, "presence": 3002, "feed": 3004, "notification": 3005,
		config.AllInOne: 3001} {
		c, err := config.Load(service, env())
		require.NoError(t, err)
		require.Equal(t, port, c.Port, service)
	}
}

func TestLoad_ReadsEveryVariable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		set  []string
		want any
		got  func(config.Config) any
	}{
		{[]string{"PORT=8080"}, 8080, func(c config.Config) any { return c.Port }},
		{[]string{"METRICS_PORT=9100"}, 9100, func(c config.Config) any { return c.MetricsPort }},
		{[]string{"POSTGRES_USER=u", "POSTGRES_PASSWORD=p/w", "POSTGRES_DB=d"}, "postgresql://u:p%2Fw@localhost:5432/d",
			func(c config.Config) any { return c.Postgres.URL }},
		{[]string{"DATABASE_URL=postgres://u:p@h:1/d?schema=public"}, "postgres://u:p@h:1/d?schema=public",
			func(c config.Config) any { return c.Postgres.URL }},
		{[]string{"POSTGRES_POOL_MAX=7"}, int32(7), func(c config.Config) any { return c.Postgres.PoolMax }},
		{[]string{"RESUME_EVENTS=50"}, 50, func(c config.Config) any { return c.ResumeEvents }},
		{[]string{"MAX_CONVERSATIONS=50"}, 50, func(c config.Config) any { return c.MaxConversations }},
		{[]string{"REDIS_HOST=h", "REDIS_PORT=1", "REDIS_PASSWORD=p"}, backend.Redis{Host: "h", Port: 1, Password: "p"},
			func(c config.Config) any { return c.Redis }},
		{[]string{"REDIS_URL=redis://:p@h:1/0"}, "h:1", func(c config.Config) any { return c.Redis.Where() }},
		{[]string{"KAFKA_BROKERS=a:1, b:2", "KAFKA_CLIENT_ID=me", "TOPIC_PREFIX=north."},
			backend.Kafka{Brokers: []string{"a:1", "b:2"}, ClientID: "me", TopicPrefix: "north."},
			func(c config.Config) any { return c.Kafka }},
		{[]string{"JWT_SECRET=", "JWKS_URL=https://id.example/keys", "SERVICE_SECRET=" + long},
			[]string{"", "https://id.example/keys", long},
			func(c config.Config) any { return []string{c.JWTSecret, c.JWKSURL, c.ServiceSecret} }},
		{[]string{"PRESENCE_URL=http://presence:1/", "CHAT_URL=http://chat:1", "FEED_URL=http://feed:1",
			"NOTIFICATION_URL=http://notification:1"},
			map[string]string{"presence": "http://presence:1", "chat": "http://chat:1", "feed": "http://feed:1",
				"notification": "http://notification:1"}, func(c config.Config) any { return c.Peers }},
		{[]string{"DATA_DIR=/var/lib/mesh", "EDUMATRIX_POSTGRES_BIN=/opt/pg/bin"},
			[]string{"/var/lib/mesh", "/opt/pg/bin"},
			func(c config.Config) any { return []string{c.DataDir, c.PostgresBin} }},
		{[]string{"ALLOWED_ORIGINS=https://School.example, http://localhost:5173/"},
			[]string{"https://school.example", "http://localhost:5173"},
			func(c config.Config) any { return c.AllowedOrigins }},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://jaeger:4317"}, "http://jaeger:4317",
			func(c config.Config) any { return c.Traces.Endpoint() }},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=jaeger:4317"}, "http://jaeger:4317",
			func(c config.Config) any { return c.Traces.Endpoint() }},
		{[]string{"KAFKA_ENABLED= TRUE "}, true, func(c config.Config) any { return c.KafkaEnabled }},
		{[]string{"DATABASE_URL=postgres://h/d", "REDIS_HOST=h", "KAFKA_BROKERS=h:1"},
			map[string]bool{"postgres": true, "redis": true, "kafka": true},
			func(c config.Config) any { return c.Given }},
	} {
		t.Run(c.set[0], func(t *testing.T) {
			t.Parallel()
			loaded, err := config.Load("chat", env(c.set...))
			require.NoError(t, err)
			require.Equal(t, c.want, c.got(loaded))
			require.Empty(t, loaded.Notices)
		})
	}
}

func TestLoad_RefusesInvalidValues(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"PORT=http":                           `PORT is "http": it has to be a number from 1 to 65535`,
		"PORT=70000":                          `PORT is "70000"`,
		"METRICS_PORT=3003":                   "METRICS_PORT is the same as PORT",
		"REDIS_PORT=0":                        `REDIS_PORT is "0"`,
		"POSTGRES_POOL_MAX=many":              `POSTGRES_POOL_MAX is "many": it has to be a number from 1 to 10000`,
		"MAX_CONVERSATIONS=100001":            `MAX_CONVERSATIONS is "100001": it has to be a number from 1 to 100000`,
		"RESUME_EVENTS=0":                     `RESUME_EVENTS is "0": it has to be a number from 1 to 10000`,
		"KAFKA_ENABLED=maybe":                 `KAFKA_ENABLED is "maybe": it has to be true or false`,
		"KAFKA_ENABLED=false":                 "KAFKA_ENABLED is false, but a separate service requires Kafka",
		"KAFKA_BROKERS=localhost":             `KAFKA_BROKERS names "localhost": each broker has to be host:port`,
		"KAFKA_BROKERS=,":                     `KAFKA_BROKERS names no broker`,
		"REDIS_URL=redis://h:1/-1":            "REDIS_URL names the database -1",
		"REDIS_URL=redis://h:1/x":             "REDIS_URL has to look like",
		"REDIS_URL=redis://h:1/0?pool=3":      `REDIS_URL has the parameter "pool", which is not one of go-redis`,
		"REDIS_URL=redis://u?hidden@h:1":      "REDIS_URL has a /, ? or # in its password",
		"REDIS_URL=redis://:1/hidden@h:1":     "REDIS_URL has a /, ? or # in its password",
		"DATABASE_URL=postgresql:///d":        "DATABASE_URL has to look like",
		"DATABASE_URL=host=h password=hidden": "DATABASE_URL has to look like",
		"DATABASE_URL=postgresql://u:hidden@%2Fvar%2Frun/d": "DATABASE_URL names a socket as its host: write " +
			"postgresql://user:password@/database?host=/var/run/postgresql",
		"CHAT_URL=http://chat:3003/?a=b":          "CHAT_URL has a user or a query in it",
		"CHAT_URL=http://u:hidden@chat:3003":      "CHAT_URL has a user or a query in it",
		"CHAT_URL=http://chat:3003/#fragment":     "CHAT_URL has a # in it",
		"KAFKA_BROKERS=kafka://a:1":               `KAFKA_BROKERS names "kafka://a:1"`,
		"REDIS_HOST=redis://h":                    `REDIS_HOST is "redis://h": it has to be the name`,
		"REDIS_URL=localhost:6379":                "REDIS_URL has to look like redis://:password@host:6379/0",
		"REDIS_URL=redis://:hidden@h:x":           "REDIS_URL has to look like",
		"DATABASE_URL=h:5432/d":                   "DATABASE_URL has to look like postgresql://user:password@host:5432",
		"DATABASE_URL=mysql://u:hidden@":          "DATABASE_URL has to look like",
		"DATABASE_URL=postgres://h/d?schema=mine": "DATABASE_URL has schema=mine: only public is accepted",
		"TOPIC_PREFIX=a/b":                        "TOPIC_PREFIX is \"a/b\": it may have up to 100 letters",
		"ALLOWED_ORIGINS=school.example":          `ALLOWED_ORIGINS names "school.example"`,
		"ALLOWED_ORIGINS=https://a.b/x":           `ALLOWED_ORIGINS names "https://a.b/x"`,
		"ALLOWED_ORIGINS=*":                       `ALLOWED_ORIGINS names "*"`,
		"CHAT_URL=chat:3003":                      "CHAT_URL has to look like http://host:port",
		"JWKS_URL=ftp://u:hidden@x":               "JWKS_URL has to look like",
		"OTEL_EXPORTER_OTLP_ENDPOINT=udp://x":     "OTEL_EXPORTER_OTLP_ENDPOINT has to look like",
		"JWT_SECRET=":                             "JWT_SECRET is not set, nor is JWKS_URL",
		"JWT_SECRET=hidden": "JWT_SECRET has 6 bytes: it needs at least 32, because an attacker with one token can guess a " +
			"short secret; generate a secret with: openssl rand -hex 32",
		"SERVICE_SECRET=hidden":             "SERVICE_SECRET has 6 bytes: it needs at least 32",
		"REDIS_HOST=h:6379":                 `REDIS_HOST is "h:6379": it has to be the name or the address of a machine, without a port`,
		"REDIS_HOST=-":                      `REDIS_HOST is "-"`,
		"REDIS_URL=redis://:hidden@h:99999": "REDIS_URL has a port that is not from 1 to 65535",
		"REDIS_URL=redis://:hidden@h:1/0#x": "REDIS_URL has a # in it",
		"KAFKA_BROKERS=[a:b]:9092":          `KAFKA_BROKERS names "[a:b]:9092"`,
		"KAFKA_BROKERS=a:+1":                `KAFKA_BROKERS names "a:+1"`,
		"KAFKA_CLIENT_ID=a\nb":              "KAFKA_CLIENT_ID has a control character in it",
		"KAFKA_CLIENT_ID=\xff":              "KAFKA_CLIENT_ID has a control character in it, or is not UTF-8",
		"KAFKA_CLIENT_ID=" + long + long + long + long + long + long + long + long: "KAFKA_CLIENT_ID has",
		"POSTGRES_USER=" + strings.Repeat("u", 64):                                 "POSTGRES_USER has 64 bytes: it may have at most 63",
		"POSTGRES_DB=" + strings.Repeat("d", 64):                                   "POSTGRES_DB has 64 bytes: it may have at most 63",
		"POSTGRES_USER=a\x01b":                                                     "POSTGRES_USER has a control character in it",
		"CHAT_URL=http://localhost:0":                                              "CHAT_URL has no host, or a port that is not from 1 to 65535",
		"CHAT_URL=http://localhost:99999":                                          "CHAT_URL has no host, or a port",
		"CHAT_URL=http://localhost:":                                               "CHAT_URL has no host, or a port",
		"CHAT_URL=http://:3003":                                                    "CHAT_URL has no host, or a port",
		"JWKS_URL=https://u:hidden@h:0/keys":                                       "JWKS_URL has no host, or a port",
		"JWT_AUDIENCE= , ":                                                         "JWT_AUDIENCE is empty",
		"ALLOWED_ORIGINS=https://a.example:99999":                                  `ALLOWED_ORIGINS names "https://a.example:99999", whose port`,
		"ALLOWED_ORIGINS=https://a.example:0":                                      "whose port is not from 1 to 65535",
		"ALLOWED_ORIGINS=http://[1:2]":                                             `ALLOWED_ORIGINS names "http://[1:2]"`,
		"ALLOWED_ORIGINS= , ":                                                      "ALLOWED_ORIGINS names no origin",
		"DATA_DIR=~/mesh":                                                          `DATA_DIR is "~/mesh": only a shell expands ~ and $; write the whole path`,
		"DATA_DIR=$HOME/mesh":                                                      "only a shell expands",
		"DATA_DIR=a\nb":                                                            "DATA_DIR is \"a\\nb\": it has a control character in it",
		"EDUMATRIX_POSTGRES_BIN=~/pg/bin":                                          `EDUMATRIX_POSTGRES_BIN is "~/pg/bin"`,
		"DATABASE_URL=postgresql://u:hidden@h:99999/d":                             "DATABASE_URL has a port that is not from 1 to 65535",
		"DATABASE_URL=postgresql://u:hidden@h:1,i:0/d":                             "DATABASE_URL has a port that is not from 1 to 65535",
		"DATABASE_URL=postgresql://u:hidden@h/d?sslmode=required":                  "DATABASE_URL has sslmode=required: it is one of disable, allow",
		"DATABASE_URL=postgresql://u:hidden@h/d#e":                                 "DATABASE_URL has a # in it",
	} {
		t.Run(set, func(t *testing.T) {
			t.Parallel()
			_, err := config.Load("chat", env(set))
			require.ErrorContains(t, err, want)
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), "hidden")
		})
	}
	_, err := config.Load("chats", env())
	require.ErrorContains(t, err, `there is no service "chats"; there are chat, edumatrix, feed, gateway`)
}

func TestLoad_ReportsPartsThatAURLOverrides(t *testing.T) {
	t.Parallel()
	c, err := config.Load("chat", env("DATABASE_URL=postgresql://u:hidden1@h/d", "POSTGRES_USER=v", "POSTGRES_DB=e",
		"POSTGRES_PASSWORD=hidden2", "REDIS_URL=redis://:hidden3@h:1", "REDIS_HOST=i", "REDIS_PORT=2",
		"REDIS_PASSWORD=hidden4"))
	require.NoError(t, err)
	require.Equal(t, []string{
		`DATABASE_URL wins over POSTGRES_USER: "u" instead of "v"`,
		`DATABASE_URL wins over POSTGRES_DB: "d" instead of "e"`,
		`DATABASE_URL wins over POSTGRES_PASSWORD, which has another value`,
		`REDIS_URL wins over REDIS_HOST: "h" instead of "i"`,
		`REDIS_URL wins over REDIS_PORT: "1" instead of "2"`,
		`REDIS_URL wins over REDIS_PASSWORD, which has another value`,
	}, c.Notices)
	require.Equal(t, "h:1", c.Redis.Where())

	c, err = config.Load("chat", env("DATABASE_URL=postgresql://u:p@h/d?schema=public", "POSTGRES_USER=u", "POSTGRES_DB=d",
		"POSTGRES_PASSWORD=p", "REDIS_URL=redis://:p@h:6379/0", "REDIS_HOST=h", "REDIS_PORT=6379", "REDIS_PASSWORD=p"))
	require.NoError(t, err)
	require.Empty(t, c.Notices, "URL and parts agree")
}

func TestLoad_AllInOneNeedsNoSecretsAndStores(t *testing.T) {
	t.Parallel()
	c, err := config.Load(config.AllInOne, env("JWT_SECRET=", "KAFKA_ENABLED=false", "KAFKA_BROKERS=h:1"))
	require.NoError(t, err)
	require.True(t, c.AnyLocalOrigin)
	require.Equal(t, "127.0.0.1", c.MetricsHost)
	require.False(t, c.KafkaEnabled)
	require.False(t, c.Given["kafka"])
	require.Equal(t, []string{"KAFKA_ENABLED=false wins over KAFKA_BROKERS: the embedded broker is used"}, c.Notices)
	require.Empty(t, c.ServiceSecret)
}

func TestLoad_DerivesOneServiceSecretForAllServices(t *testing.T) {
	t.Parallel()
	chat, err := config.Load("chat", env())
	require.NoError(t, err)
	gateway, err := config.Load("gateway", env())
	require.NoError(t, err)
	require.Equal(t, chat.ServiceSecret, gateway.ServiceSecret)
	require.Len(t, chat.ServiceSecret, 64)
	require.NotContains(t, chat.ServiceSecret, chat.JWTSecret)
	_, err = config.Load("chat", env("JWT_SECRET=", "JWKS_URL=https://id.example/keys"))
	require.ErrorContains(t, err, "SERVICE_SECRET is not set")
}

func TestConfig_DoesNotRevealItsSecrets(t *testing.T) {
	t.Parallel()
	c, err := config.Load("chat", env("JWT_SECRET="+long, "DATABASE_URL=postgres://u:hidden@h/d",
		"REDIS_PASSWORD=hidden", "SERVICE_SECRET="+long, "POSTGRES_PASSWORD=hidden"))
	require.NoError(t, err)
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "config", c)
	require.NotContains(t, fmt.Sprintf("%v %+v %#v %s %v", c, c, c, c, &c)+logged.String(), "hidden")
	_, err = json.Marshal(c)
	require.ErrorContains(t, err, "a configuration holds secrets")
}

func TestLoad_KeysOfASignInNeedAudienceAndIssuer(t *testing.T) {
	t.Parallel()
	keys := []string{"JWT_SECRET=", "JWKS_URL=https://id.example/keys", "SERVICE_SECRET=" + long}
	for _, service := range []string{"gateway", config.AllInOne} {
		_, err := config.Load(service, env(append(keys, "JWT_ISSUER=i")...))
		require.ErrorContains(t, err, "JWT_AUDIENCE is not set: JWKS_URL needs it")
		_, err = config.Load(service, env(append(keys, "JWT_AUDIENCE=a")...))
		require.ErrorContains(t, err, "JWT_ISSUER is not set: JWKS_URL needs it")
		c, err := config.Load(service, env(append(keys, "JWT_ISSUER=https://id.example/", "JWT_AUDIENCE= a, b ,")...))
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, c.JWTAudience)
		require.Equal(t, "https://id.example/", c.JWTIssuer)
		require.Empty(t, c.JWTRoleClaim, "no claim grants a role unless it is configured")
		c, err = config.Load(service, env(append(keys, "JWT_ISSUER=i", "JWT_AUDIENCE=a", "JWT_ROLE_CLAIM=realm_access.roles")...))
		require.NoError(t, err)
		require.Equal(t, "realm_access.roles", c.JWTRoleClaim)
	}
	_, err := config.Load("chat", env(keys...))
	require.NoError(t, err, "chat does not verify tokens")

	c, err := config.Load("gateway", env("JWT_AUDIENCE=a", "JWT_ISSUER=i", "JWKS_URL=https://id.example/keys"))
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, c.JWTAudience, "with JWT_SECRET the audience is optional")
	require.Equal(t, "role", c.JWTRoleClaim)
	require.Equal(t, []string{"JWT_SECRET wins over JWKS_URL: tokens have to be signed with JWT_SECRET"}, c.Notices)
}

func TestLoad_AcceptsUsualFormsOfValues(t *testing.T) {
	t.Parallel()
	origins := func(c config.Config) any { return c.AllowedOrigins }
	for set, test := range map[string]struct {
		want any
		got  func(config.Config) any
	}{
		`PORT="3001 "`:      {3001, func(c config.Config) any { return c.Port }},
		"PORT=3001\r":       {3001, func(c config.Config) any { return c.Port }},
		"PORT=\ufeff3001":   {3001, func(c config.Config) any { return c.Port }},
		"PORT=''":           {3003, func(c config.Config) any { return c.Port }},
		"DATA_DIR= ":        {".data", func(c config.Config) any { return c.DataDir }},
		`KAFKA_ENABLED='1'`: {true, func(c config.Config) any { return c.KafkaEnabled }},
		`DATABASE_URL="postgresql://u:p@h/d"`: {"postgresql://u:p@h/d",
			func(c config.Config) any { return c.Postgres.URL }},
		`REDIS_PASSWORD="p"`:                       {`"p"`, func(c config.Config) any { return c.Redis.Password }},
		"REDIS_URL=rediss://u:p%40ss@[::1]:6380/3": {"[::1]:6380", func(c config.Config) any { return c.Redis.Where() }},
		"KAFKA_BROKERS=a:1,,b:2, a:1,":             {[]string{"a:1", "b:2"}, func(c config.Config) any { return c.Kafka.Brokers }},
		"DATABASE_URL=postgresql://u:p@/d?host=/var/run/postgresql": {"/var/run/postgresql/d",
			func(c config.Config) any { return c.Postgres.Where() }},
		"DATABASE_URL=postgresql://u:p@a:1,b:2/d?target_session_attrs=read-write": {"a:1,b:2/d",
			func(c config.Config) any { return c.Postgres.Where() }},
		"REDIS_URL=unix:///run/redis.sock?db=2":          {"/run/redis.sock", func(c config.Config) any { return c.Redis.Where() }},
		"REDIS_URL=redis://:p@h:1/3/?dial_timeout=5s":    {"h:1", func(c config.Config) any { return c.Redis.Where() }},
		"CHAT_URL=http://proxy:1/chat//":                 {"http://proxy:1/chat", func(c config.Config) any { return c.Peers["chat"] }},
		"JWKS_URL=https://id.example/keys/?tenant=a&v=2": {"https://id.example/keys/?tenant=a&v=2", func(c config.Config) any { return c.JWKSURL }},
		"KAFKA_BROKERS=[::1]:9092":                       {[]string{"[::1]:9092"}, func(c config.Config) any { return c.Kafka.Brokers }},
		"ALLOWED_ORIGINS=https://school.example:443":     {[]string{"https://school.example"}, origins},
		"ALLOWED_ORIGINS=HTTP://A.example:80/,":          {[]string{"http://a.example"}, origins},
		"ALLOWED_ORIGINS=http://[::1]:5173":              {[]string{"http://[::1]:5173"}, origins},
		"ALLOWED_ORIGINS=http://[0:0:0:0:0:0:0:1]:05173": {[]string{"http://[::1]:5173"}, origins},
		"ALLOWED_ORIGINS=https://a.example:0443":         {[]string{"https://a.example"}, origins},
		"REDIS_HOST=::1":                                 {"[::1]:6379", func(c config.Config) any { return c.Redis.Where() }},
		"ALLOWED_ORIGINS=capacitor://localhost, tauri://localhost": {
			[]string{"capacitor://localhost", "tauri://localhost"}, origins},
	} {
		c, err := config.Load("chat", env(set))
		require.NoError(t, err, "%q", set)
		require.Equal(t, test.want, test.got(c), "%q", set)
	}
	for set, wantText := range map[string]string{
		"DATABASE_URL=postgresql://edu:Hunter2@TopSecret@127.0.0.1:5999/db": "DATABASE_URL has an @",
		"DATABASE_URL=postgresql://edu:12/TopSecret@h/db":                   "DATABASE_URL has an @",
		"DATABASE_URL=postgresql://edu:12?TopSecret@h/db":                   "DATABASE_URL has an @",
		"ALLOWED_ORIGINS=https://*.school.example":                          "ALLOWED_ORIGINS names",
		"ALLOWED_ORIGINS=https://schüle.example":                            "xn--",
		"ALLOWED_ORIGINS=null":                                              "ALLOWED_ORIGINS names",
		"\ufeffPORT=1":                                                      "PORT follows a byte order mark",
	} {
		_, err := config.Load("chat", env(set))
		require.ErrorContains(t, err, wantText, "%q", set)
		require.NotContains(t, err.Error(), "TopSecret")
	}
	c, err := config.Load("chat", env("DATABASE_URL=postgresql://u:p@h/d?schema=public&connection_limit=5&sslmode=disable"))
	require.NoError(t, err)
	require.Equal(t, []string{"DATABASE_URL has connection_limit, which is for other clients: it is left out"}, c.Notices)
	c, err = config.Load("chat", env("DATABASE_URL=postgresql://u:p@h/d?default_query_exec_mode=simple_protocol&pool_min_conns=99"))
	require.NoError(t, err)
	require.Equal(t, []string{"DATABASE_URL has default_query_exec_mode, which is for other clients: it is left out",
		"DATABASE_URL has pool_min_conns, which is for other clients: it is left out"}, c.Notices)
}
