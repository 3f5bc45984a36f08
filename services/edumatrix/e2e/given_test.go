//go:build integration

package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// TestUp_WorksWithNamedStores names stores in the environment: each store alone, and all stores together. The mesh
// must work with the named stores, and with embedded ones in place of the others.
func TestUp_WorksWithNamedStores(t *testing.T) {
	t.Parallel()
	for _, named := range []string{"postgres", "redis", "kafka", "postgres redis kafka"} {
		t.Run(named, func(t *testing.T) {
			t.Parallel()
			var env []string
			if strings.Contains(named, "postgres") {
				env = append(env, "DATABASE_URL="+meshtest.Postgres(t)+"&schema=public")
			}
			if strings.Contains(named, "redis") {
				r := meshtest.Redis(t)
				env = append(env, "REDIS_URL="+redisURL(r.Host, r.Port, r.Password, r.URL))
			}
			if strings.Contains(named, "kafka") {
				k := meshtest.Kafka(t)
				env = append(env, "KAFKA_BROKERS="+strings.Join(k.Brokers, ","), "TOPIC_PREFIX="+k.TopicPrefix)
			}
			m := embedded(t, env...)
			testTwoPeopleTalk(t, m)
			testPresence(t, m)
		})
	}
}

// TestUp_TwoProcessesShareTheStores runs `edumatrix up` twice on the same stores. The two processes must share the
// work, as processes on two machines do.
func TestUp_TwoProcessesShareTheStores(t *testing.T) {
	t.Parallel()
	r, k := meshtest.Redis(t), meshtest.Kafka(t)
	stores := []string{"DATABASE_URL=" + meshtest.Postgres(t), "REDIS_URL=" + redisURL(r.Host, r.Port, r.Password, r.URL),
		"KAFKA_BROKERS=" + strings.Join(k.Brokers, ","), "TOPIC_PREFIX=" + k.TopicPrefix, "SERVICE_SECRET=" + secret}
	first, second := embedded(t, stores...), embedded(t, stores...)
	both := &mesh{gateways: slices.Concat(first.gateways, second.gateways),
		metrics: slices.Concat(first.metrics, second.metrics)}
	testTwoPeopleTalk(t, both)
	testOrder(t, both)
	testPresence(t, both)
	for _, m := range []*mesh{first, second} {
		if printed := m.processes[0].Output(); strings.Contains(printed, "FENCED_INSTANCE_ID") {
			t.Errorf("a process failed to consume, because the other one fenced it:\n%s", printed)
		}
	}
}

// TestUp_StoppedAndStartedAgainHasEveryMessage stops the mesh and starts it again. The mesh must then have every
// message in order and accept new ones.
func TestUp_StoppedAndStartedAgainHasEveryMessage(t *testing.T) {
	t.Parallel()
	m := embedded(t)
	alice, bob := someone("alice"), someone("bob")
	p := m.connect(t, alice, 0)
	conversation := conversationOf(p.do("chat.start_direct", map[string]any{"user_id": bob}))
	for _, body := range []string{"one", "two"} {
		p.do("chat.send_message", map[string]any{"conversation_id": conversation, "body": body})
	}
	m.processes[0].Signal(syscall.SIGINT) // Ctrl-C
	if status := m.processes[0].Wait(t); status != 0 {
		t.Errorf("the process ended with status %d:\n%s", status, m.processes[0].Tail())
	}
	m.processes[0].Start(t)
	m.ready(t)
	p = m.connect(t, bob, 0)
	if o := p.do("chat.send_message", map[string]any{"conversation_id": conversation, "body": "three"}); o.Version != 4 {
		t.Errorf("version %d", o.Version)
	}
	if got := strings.Join(p.all(conversation), " "); got != "one two three" {
		t.Errorf("history: %s", got)
	}
}

// TestUp_PrintsOnceThatItIsReadyAndWhere checks that `edumatrix up` reports exactly once that the mesh is ready, and
// prints its addresses.
func TestUp_PrintsOnceThatItIsReadyAndWhere(t *testing.T) {
	t.Parallel()
	m := embedded(t)
	eventually(t, "the ready line", func() bool { return strings.Contains(m.processes[0].Output(), "is ready after") })
	printed := m.processes[0].Output()
	port := m.gateways[0][strings.LastIndex(m.gateways[0], ":")+1:]
	for _, want := range []string{"ws://localhost:" + port + "/ws", "http://localhost:" + port + "/health"} {
		if !strings.Contains(printed, want) {
			t.Errorf("%q is not in:\n%s", want, printed)
		}
	}
	if n := strings.Count(printed, "is ready after"); n != 1 {
		t.Errorf("%d lines report that it is ready", n)
	}
}

// TestUp_AppliesTheConfiguredLimits checks that a user can be in at most MAX_CONVERSATIONS conversations, and that the
// smallest allowed pool of database connections is enough for all five services.
func TestUp_AppliesTheConfiguredLimits(t *testing.T) {
	t.Parallel()
	m := embedded(t, "MAX_CONVERSATIONS=2", "POSTGRES_POOL_MAX=1")
	alice, bob := someone("alice"), someone("bob")
	a, b := m.connect(t, alice, 0), m.connect(t, bob, 0)
	first := conversationOf(a.do("chat.start_group", map[string]any{"title": "one", "user_ids": []string{bob}}))
	a.do("chat.start_direct", map[string]any{"user_id": bob})
	a.refused("too_many", "chat.start_group", map[string]any{"title": "three"})
	hers := conversationOf(m.connect(t, someone("carol"), 0).do("chat.start_group", map[string]any{"title": "hers"}))
	b.refused("too_many", "chat.start_group", map[string]any{"title": "three"})
	b.refused("not_a_member", "chat.add_member", map[string]any{"conversation_id": hers, "user_id": alice})
	b.do("chat.leave", map[string]any{"conversation_id": first})
	b.do("chat.start_group", map[string]any{"title": "three"})
	var list struct {
		Conversations []struct{} `json:"conversations"`
	}
	if err := b.ask("chat.conversations", map[string]any{}, &list); err != nil || len(list.Conversations) != 2 {
		t.Errorf("bob is in %d conversations, %v", len(list.Conversations), err)
	}
}
