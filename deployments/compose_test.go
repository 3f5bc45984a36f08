package deployments_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
)

// root is the root of the repository.
const root = ".."

// owners are the four services behind the gateway, with their ports.
var owners = map[string]int{"presence": 3002, "chat": 3003, "feed": 3004, "notification": 3005}

// secrets are the settings that have no default. An installation does not start if one of them is missing.
var secrets = []string{"POSTGRES_PASSWORD=pg-secret", "REDIS_PASSWORD=redis-secret", "JWT_SECRET=jwt-secret-of-at-least-32-bytes-length"}

// load reads docker-compose.yml in the same way as docker compose, with only the given environment variables.
func load(env ...string) (*types.Project, error) {
	path, err := filepath.Abs(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		return nil, err
	}
	options, err := cli.NewProjectOptions([]string{path}, cli.WithWorkingDirectory(filepath.Dir(path)),
		cli.WithEnv(env), cli.WithResolvedPaths(true))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

func loaded(t *testing.T, env ...string) *types.Project {
	t.Helper()
	project, err := load(append(slices.Clone(secrets), env...)...)
	require.NoError(t, err)
	return project
}

func variable(s types.ServiceConfig, name string) string {
	if value := s.Environment[name]; value != nil {
		return *value
	}
	return ""
}

func TestCompose_KeepsTheNamesOfExistingInstallations(t *testing.T) {
	t.Parallel()
	containers := map[string]string{}
	for name, s := range loaded(t).Services {
		containers[name] = s.ContainerName
	}
	require.Equal(t, map[string]string{
		"postgres": "edu-matrix-postgres", "redis": "edu-matrix-redis", "kafka": "edu-matrix-kafka-4",
		"jaeger": "edu-matrix-jaeger", "socketio": "edu-matrix-socketio", "presence": "edu-matrix-presence",
		"chat": "edu-matrix-chat", "feed": "edu-matrix-feed", "notification": "edu-matrix-notification",
	}, containers)
}

func TestCompose_PinsTheVersionsOfTheStores(t *testing.T) {
	t.Parallel()
	services := loaded(t).Services
	require.Equal(t, "postgres:17-alpine", services["postgres"].Image)
	require.Equal(t, "redis:7.4-alpine", services["redis"].Image)
	require.Equal(t, "apache/kafka:4.0.0", services["kafka"].Image)
	require.Regexp(t, `^jaegertracing/jaeger:\d+\.\d+\.\d+$`, services["jaeger"].Image)
}

func TestCompose_PublishesOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	want := map[string][]string{
		"postgres": {"5432:5432"}, "redis": {"6379:6379"}, "socketio": {"3001:3001"}, "jaeger": {"16686:16686"},
		"kafka": {"9092:29092", "29092:29092"}, // both published ports lead to Kafka's listener OUTER
	}
	got := map[string][]string{}
	for name, s := range loaded(t).Services {
		for _, p := range s.Ports {
			require.Equal(t, "127.0.0.1", p.HostIP, "%s %s", name, p.Published)
			got[name] = append(got[name], p.Published+":"+strconv.Itoa(int(p.Target)))
		}
		require.NotEqual(t, "host", s.NetworkMode, name)
		require.False(t, s.Privileged, name)
	}
	require.Equal(t, want, got)
}

func TestCompose_ChecksTheHealthOfEveryService(t *testing.T) {
	t.Parallel()
	services := loaded(t).Services
	for name, s := range services {
		require.NotNil(t, s.HealthCheck, name)
		require.False(t, s.HealthCheck.Disable, name)
		require.NotEmpty(t, s.HealthCheck.Test, name)
		require.Less(t, time.Duration(*s.HealthCheck.Timeout), time.Duration(*s.HealthCheck.Interval), name)
		require.Positive(t, *s.HealthCheck.StartPeriod, name)
	}
	check := func(name string, every time.Duration, words ...string) {
		h := services[name].HealthCheck
		require.Equal(t, every, time.Duration(*h.Interval), name)
		for _, word := range words {
			require.Contains(t, h.Test[len(h.Test)-1]+" "+h.Test[1], word)
		}
	}
	check("postgres", 15*time.Second, "pg_isready", "$POSTGRES_USER", "$POSTGRES_DB")
	check("redis", 15*time.Second, "redis-cli ping", "PONG")
	check("kafka", 30*time.Second, "kafka-broker-api-versions.sh", "localhost:9092")
	for _, name := range []string{"presence", "chat", "feed", "notification", "socketio"} {
		check(name, 15*time.Second, "http://127.0.0.1:$PORT/health")
	}
}

func TestCompose_WaitsForHealthyDependencies(t *testing.T) {
	t.Parallel()
	services := loaded(t).Services
	healthy := func(of string) (names []string) {
		for name, d := range services[of].DependsOn {
			require.Equal(t, types.ServiceConditionHealthy, d.Condition, "%s waits for %s", of, name)
			require.True(t, d.Required)
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	for name := range owners {
		require.Equal(t, []string{"kafka", "postgres", "redis"}, healthy(name), name)
	}
	require.Equal(t, []string{"chat", "feed", "kafka", "notification", "postgres", "presence", "redis"},
		healthy("socketio"))
	for _, name := range []string{"postgres", "redis", "kafka", "jaeger"} {
		require.Empty(t, services[name].DependsOn, name)
	}
}

func TestCompose_RestartsWithItsData(t *testing.T) {
	t.Parallel()
	project := loaded(t)
	for name, s := range project.Services {
		require.Equal(t, types.RestartPolicyUnlessStopped, s.Restart, name)
	}
	for name, target := range map[string]string{"postgres": "/var/lib/postgresql/data", "redis": "/data",
		"kafka": "/var/lib/kafka/data"} {
		volumes := project.Services[name].Volumes
		require.Len(t, volumes, 1, name)
		require.Equal(t, types.VolumeTypeVolume, volumes[0].Type, name)
		require.Equal(t, target, volumes[0].Target, name)
		require.Contains(t, project.Volumes, volumes[0].Source, "%s: a named volume", name)
	}
	require.Equal(t, "/var/lib/kafka/data", variable(project.Services["kafka"], "KAFKA_LOG_DIRS"))
	require.Subset(t, project.Services["redis"].Command, []string{"--appendonly", "yes"})
}

func TestCompose_LimitsTheMemoryOfRedis(t *testing.T) {
	t.Parallel()
	redis := loaded(t).Services["redis"]
	after := func(flag string) string {
		at := slices.Index(redis.Command, flag)
		require.GreaterOrEqual(t, at, 0, flag)
		return redis.Command[at+1]
	}
	require.Equal(t, "redis-secret", after("--requirepass"))
	require.Equal(t, "512mb", after("--maxmemory"))
	require.Equal(t, "noeviction", after("--maxmemory-policy"))
	require.Greater(t, int64(redis.MemLimit), int64(512<<20), "there must be room for memory that maxmemory does not count")
	require.LessOrEqual(t, int64(redis.MemLimit), int64(1<<30))
}

func TestCompose_RunsOneKafkaNodeWithTwoListeners(t *testing.T) {
	t.Parallel()
	kafka := loaded(t).Services["kafka"]
	for name, want := range map[string]string{
		"KAFKA_PROCESS_ROLES":                            "broker,controller",
		"KAFKA_LISTENERS":                                "INNER://:9092,OUTER://:29092,CONTROLLER://localhost:9093",
		"KAFKA_ADVERTISED_LISTENERS":                     "INNER://kafka:9092,OUTER://localhost:29092",
		"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":           "INNER:PLAINTEXT,OUTER:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"KAFKA_INTER_BROKER_LISTENER_NAME":               "INNER",
		"KAFKA_CONTROLLER_LISTENER_NAMES":                "CONTROLLER",
		"KAFKA_CONTROLLER_QUORUM_VOTERS":                 "1@localhost:9093",
		"KAFKA_AUTO_CREATE_TOPICS_ENABLE":                "false",
		"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":         "1",
		"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
		"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":            "1",
	} {
		require.Equal(t, want, variable(kafka, name), name)
	}
	require.NotContains(t, kafka.Environment, "KAFKA_ZOOKEEPER_CONNECT")
}

func TestCompose_KeepsTheUserAndDatabaseOfExistingInstallations(t *testing.T) {
	t.Parallel()
	postgres := loaded(t).Services["postgres"]
	require.Equal(t, "edu_matrix_user", variable(postgres, "POSTGRES_USER"))
	require.Equal(t, "edu_matrix_db", variable(postgres, "POSTGRES_DB"))
	require.Equal(t, "pg-secret", variable(postgres, "POSTGRES_PASSWORD"))
	require.Contains(t, postgres.Command, "max_connections=300")
}

func TestCompose_SetsTheAddressesOfStoresAndServices(t *testing.T) {
	t.Parallel()
	services := loaded(t, "ALLOWED_ORIGINS=https://school.example", "RESUME_EVENTS=50", "MAX_CONVERSATIONS=70", "JWT_AUDIENCE=edu-matrix",
		"JWT_ISSUER=https://sign-in.school.example/", "JWT_ROLE_CLAIM=realm_access.roles").Services
	shared := map[string]string{
		"DATABASE_URL":                "postgresql://edu_matrix_user:pg-secret@postgres:5432/edu_matrix_db?schema=public",
		"REDIS_HOST":                  "redis",
		"REDIS_PORT":                  "6379",
		"REDIS_PASSWORD":              "redis-secret",
		"KAFKA_BROKERS":               "kafka:9092",
		"KAFKA_CLIENT_ID":             "edu-matrix-interlinked",
		"JWT_SECRET":                  "jwt-secret-of-at-least-32-bytes-length",
		"PRESENCE_URL":                "http://presence:3002",
		"CHAT_URL":                    "http://chat:3003",
		"FEED_URL":                    "http://feed:3004",
		"NOTIFICATION_URL":            "http://notification:3005",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4317",
	}
	is := func(name, module string, port int) {
		s := services[name]
		for variableName, want := range shared {
			require.Equal(t, want, variable(s, variableName), "%s %s", name, variableName)
		}
		require.Equal(t, strconv.Itoa(port), variable(s, "PORT"), name)
		require.NotNil(t, s.Build, name)
		require.Equal(t, module, *s.Build.Args["SERVICE"], name)
		require.True(t, s.ReadOnly, name)
		file, err := filepath.Abs("Dockerfile")
		require.NoError(t, err)
		require.Equal(t, file, filepath.Join(s.Build.Context, s.Build.Dockerfile), name)
	}
	for name, port := range owners {
		is(name, name, port)
	}
	is("socketio", "gateway", 3001)
	require.Equal(t, "3011", variable(services["socketio"], "METRICS_PORT"))
	require.Equal(t, "https://school.example", variable(services["socketio"], "ALLOWED_ORIGINS"))
	require.Equal(t, "50", variable(services["socketio"], "RESUME_EVENTS"))
	require.Equal(t, "70", variable(services["chat"], "MAX_CONVERSATIONS"))
	require.Equal(t, "edu-matrix", variable(services["socketio"], "JWT_AUDIENCE"))
	require.Equal(t, "https://sign-in.school.example/", variable(services["socketio"], "JWT_ISSUER"))
	require.Equal(t, "realm_access.roles", variable(services["socketio"], "JWT_ROLE_CLAIM"))
}

func TestCompose_RefusesToStartWithoutItsSecrets(t *testing.T) {
	t.Parallel()
	for i, left := range secrets {
		name, _, _ := strings.Cut(left, "=")
		for _, instead := range []string{"", name + "="} {
			env := slices.Delete(slices.Clone(secrets), i, i+1)
			if instead != "" {
				env = append(env, instead)
			}
			_, err := load(env...)
			require.ErrorContains(t, err, "required variable "+name+" is missing a value")
			require.ErrorContains(t, err, "make env")
		}
	}
}

func TestCompose_ContainsNoSecret(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	require.NoError(t, err)
	// The project is loaded with the values in the variable secrets, so each password and JWT_SECRET must have one of
	// these values. Any other value would be a secret in the file. SERVICE_SECRET is not in the variable, so it must be
	// empty.
	project := loaded(t)
	for name, s := range project.Services {
		for variableName := range s.Environment {
			switch variableName {
			case "POSTGRES_PASSWORD", "REDIS_PASSWORD", "REDISCLI_AUTH", "JWT_SECRET":
				require.Contains(t, []string{"pg-secret", "redis-secret", "jwt-secret-of-at-least-32-bytes-length"}, variable(s, variableName), name)
			case "SERVICE_SECRET":
				require.Empty(t, variable(s, variableName), name)
			}
		}
	}
	require.NotContains(t, string(text), "_PASSWORD:-", "a secret must not have a default")
	require.NotContains(t, string(text), "JWT_SECRET:-")
}
