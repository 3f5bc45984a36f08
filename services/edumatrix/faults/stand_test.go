//go:build integration

package faults

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// stand contains the servers that all runs share. They were started for these tests alone. A run may stop a server, but
// must start it again. The services connect to the servers only over links.
type stand struct {
	t        testing.TB
	kafka    *meshtest.KafkaServer
	redis    *meshtest.RedisServer
	postgres *meshtest.PostgresServer
	broker   *Link // shared by all runs, because clients of Kafka connect to the one address that the broker advertises
}

func newStand(t testing.TB) *stand {
	t.Helper()
	s := &stand{t: t}
	front := meshtest.FreePort(t)
	s.kafka = meshtest.NewKafkaServerBehind(t, front)
	s.redis, s.postgres = meshtest.NewRedisServer(t), meshtest.NewPostgresServer(t)
	s.broker = openLink(t, fmt.Sprintf("127.0.0.1:%d", front), s.kafka.Addr())
	return s
}

// openLink opens a link that is closed after the test.
func openLink(t testing.TB, addr, to string) *Link {
	t.Helper()
	l, err := NewLink(addr, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// store is Kafka, Redis or PostgreSQL.
type store interface {
	Start()
	Stop()
	Kill()
	Freeze()
	Thaw()
}

func (s *stand) store(name string) store {
	switch name {
	case "kafka":
		return s.kafka
	case "redis":
		return s.redis
	}
	return s.postgres
}

// database returns the URL of a database on the server. The parameter addr is the address of the server, or of a link
// to the server.
func (s *stand) database(name, addr string) string {
	u, err := url.Parse(s.postgres.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	u.Host, u.Path = addr, "/"+name
	return u.String()
}

func (s *stand) redisAt(addr string) string {
	return fmt.Sprintf("redis://:%s@%s/0", url.QueryEscape(s.redis.Settings().Password), addr)
}

func (s *stand) exec(t testing.TB, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func (s *stand) emptyRedis(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := s.redis.Settings().Open(ctx)
	if err == nil {
		err = errors.Join(client.FlushAll(ctx).Err(), client.Close())
	}
	if err != nil {
		t.Fatalf("empty Redis: %v", err)
	}
}

// brokers returns the Kafka settings of a run.
func (s *stand) brokers(prefix string) backend.Kafka {
	return backend.Kafka{Brokers: []string{s.broker.Addr()}, ClientID: "faults", TopicPrefix: prefix}
}

// forget deletes the topics of a run, because the broker keeps files open for every partition.
func (s *stand) forget(t testing.TB, prefix string) {
	t.Helper()
	if err := meshtest.DeleteTopics(context.Background(), s.brokers(prefix)); err != nil {
		t.Errorf("delete the run's topics: %v", err)
	}
}
