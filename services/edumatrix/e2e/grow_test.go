//go:build integration

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// TestGrow_ATopicGetsAPartitionUnderTraffic adds a fourth partition to a topic of a running mesh while users send
// messages. Connections that stay open, and connections that resume afterwards, must get every event once and in order,
// and every notification that these events raise.
func TestGrow_ATopicGetsAPartitionUnderTraffic(t *testing.T) {
	t.Parallel()
	kafka := meshtest.Kafka(t)
	m := separateOnKafka(t, kafka)
	g := m.gathering(t)
	g.awaitMore("before the topic grows", 10)
	away := g.pairs[0].receiver
	away.drop()
	meshtest.GrowTopic(t, kafka, "chat-events", 4)
	m.reads(t, "chat-events", 4)
	g.awaitMore("on four partitions", 10)
	away.resume(m, 1)
	g.ends()
}

// TestGrow_AReleaseDeclaresMorePartitionsThanTheBrokerHas creates topics with fewer partitions than the release
// declares. The mesh must use the partitions that the broker has, and also the partitions that are added while the mesh
// runs.
func TestGrow_AReleaseDeclaresMorePartitionsThanTheBrokerHas(t *testing.T) {
	t.Parallel()
	kafka := meshtest.Kafka(t)
	few := []string{"chat-events", "chat-commands", "chat-results", "notification-events"}
	for _, topic := range few {
		if _, err := meshtest.KafkaAdmin(t, kafka).CreateTopic(t.Context(), 1, 1, nil, kafka.Topic(topic)); err != nil {
			t.Fatal(err)
		}
	}
	m := separateOnKafka(t, kafka)
	m.reads(t, "chat-events", 1)
	g := m.gathering(t)
	g.awaitMore("on one partition", 10)
	for _, topic := range []string{"chat-events", "notification-events"} {
		meshtest.GrowTopic(t, kafka, topic, 3)
	}
	m.reads(t, "chat-events", 3)
	m.reads(t, "notification-events", 3)
	g.awaitMore("on three partitions", 10)
	g.ends()
}

func separateOnKafka(t *testing.T, kafka backend.Kafka) *mesh {
	t.Helper()
	redis := meshtest.Redis(t)
	return separateOn(t, meshtest.Postgres(t), redisURL(redis.Host, redis.Port, redis.Password, redis.URL),
		strings.Join(kafka.Brokers, ","), "TOPIC_PREFIX="+kafka.TopicPrefix)
}

// reads waits until every gateway reads the given number of partitions of a topic.
func (m *mesh) reads(t *testing.T, topic string, partitions int) {
	t.Helper()
	for i := range m.gateways {
		eventually(t, fmt.Sprintf("a gateway reads %d partitions of %s", partitions, topic), func() bool {
			return strings.Count(get(t, m.metrics[i]+"/metrics"),
				fmt.Sprintf(`topic=%q} `, topic)) >= 2*partitions // two metrics per partition: its position and its age
		})
	}
}

// gathering consists of pairs of users. In each pair, the sender sends messages to the receiver in their direct
// conversation, and adds the receiver to new groups, until the gathering ends.
type gathering struct {
	t     *testing.T
	m     *mesh
	pairs []*talk
	stop  atomic.Bool
	wait  sync.WaitGroup
}

type talk struct {
	sender, conversation, stream string
	receiver                     *person
	sent                         atomic.Int64
	acked                        []string
	groups                       []string // the streams of the groups to which the receiver was added
}

func (m *mesh) gathering(t *testing.T) *gathering {
	g := &gathering{t: t, m: m}
	for i := range 8 {
		p := &talk{sender: someone("sender"), receiver: m.connect(t, someone("receiver"), i+1)}
		sender := m.connect(t, p.sender, i)
		o := sender.do("chat.start_direct", map[string]any{"user_id": p.receiver.id})
		p.conversation, p.stream = conversationOf(o), o.Stream
		g.pairs = append(g.pairs, p)
		g.wait.Go(func() { p.acked = sendUntil(t, m, p.sender, p.conversation, i, &g.stop) })
		g.wait.Go(func() {
			for !g.stop.Load() {
				begun := g.beginGroup(sender, p.receiver.id)
				if begun == "" {
					return
				}
				p.groups = append(p.groups, begun)
				p.sent.Add(1)
			}
		})
	}
	return g
}

// beginGroup makes a user start a group with another user, and returns the stream of the group. It sends the command up
// to 50 times, until the command has an outcome.
func (g *gathering) beginGroup(by *person, with string) (stream string) {
	id := uuid.NewString()
	for range 50 {
		var o client.Outcome
		o, err := by.try(id, "chat.start_group", map[string]any{"title": "group", "user_ids": []string{with}})
		if err == nil {
			return o.Stream
		}
		if code := codeOf(err); code != "queued" && code != "unavailable" {
			g.t.Errorf("start a group: %v", err)
			return ""
		}
	}
	g.t.Error("the command that starts a group has no outcome")
	return ""
}

// awaitMore waits until every pair has started the given number of further groups.
func (g *gathering) awaitMore(what string, more int64) {
	g.t.Helper()
	for _, p := range g.pairs {
		until := p.sent.Load() + more
		eventually(g.t, what, func() bool { return p.sent.Load() >= until })
	}
}

// ends stops the senders, and checks that every receiver saw all events once and in order.
func (g *gathering) ends() {
	g.t.Helper()
	g.stop.Store(true)
	g.wait.Wait()
	for _, p := range g.pairs {
		r := p.receiver
		last := int64(len(p.acked)) + 1
		r.awaitVersion(p.stream, last)
		r.dense(p.stream, 1, last)
		for _, group := range p.groups {
			r.awaitVersion(group, 1)
			r.dense(group, 1, 1)
		}
		raised := int64(len(p.groups)) + 1
		stream := "notifications:" + r.id
		r.awaitVersion(stream, raised)
		r.dense(stream, 1, raised)
		if got := r.all(p.conversation); len(got) != len(p.acked) || strings.Join(got, "\n") != strings.Join(p.acked, "\n") {
			g.t.Errorf("the history of %s has %d messages, but %d were acknowledged", p.conversation, len(got), len(p.acked))
		}
	}
}
