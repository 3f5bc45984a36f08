//go:build integration

package presence

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// results is a publisher that records the outcomes that are published.
type results struct {
	mu  sync.Mutex
	all []envelope.Outcome
}

func (r *results) Publish(topic string, messages ...*message.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range messages {
		result, err := envelope.ReadOutcome(m)
		if err != nil || topic != catalog.ResultTopic("presence") {
			return errors.Join(err, errors.New("an outcome was published on the topic "+topic))
		}
		r.all = append(r.all, result)
	}
	return nil
}

func (*results) Close() error { return nil }

func (r *results) last() envelope.Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == 0 {
		return envelope.Outcome{}
	}
	return r.all[len(r.all)-1]
}

// topics returns the topics of presence. The parameter r records the outcomes that are published on them.
func topics(t *testing.T, r *results) command.Topics {
	t.Helper()
	return command.Topics{Service: "presence", Catalog: declared(t), Publisher: r}
}

func endSession(t *testing.T, actor, session string, expires time.Time) *message.Message {
	t.Helper()
	body, err := proto.Marshal(&presencev1.EndSession{SessionId: session})
	if err != nil {
		t.Fatal(err)
	}
	m := envelope.Command{ID: "c1", Type: "presence.end_session", Stream: "sessions:" + actor, Actor: actor,
		Time: time.Now(), Expires: expires, Body: body}.Message()
	m.SetContext(t.Context())
	return m
}

func TestCommand_ARepeatedOneHasTheSameOutcome(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s, outcomes := store.New(r, "t.", time.Minute), &results{}
		c := &commands{store: s, Topics: topics(t, outcomes)}
		if _, _, err := s.Report(t.Context(), &meshv1.ReportRequest{Gateway: "g", Number: 1, All: true, Count: 1,
			Digest: store.Hash("1", "bob"), Changes: []*meshv1.ConnectionChange{
				{Connection: "1", User: "bob", Session: "s1", Device: "phone"}}}); err != nil {
			t.Fatal(err)
		}
		handle := func(m *message.Message) envelope.Outcome {
			t.Helper()
			if err := c.handle(m); err != nil {
				t.Fatal(err)
			}
			return outcomes.last()
		}
		if got := handle(endSession(t, "bob", "s1", time.Now().Add(-time.Hour))); got.Code != refusal.Expired {
			t.Errorf("an expired command: %+v", got)
		}
		if got := handle(endSession(t, "bob", "s2", time.Time{})); got.Kind != envelope.Refused || got.Code != refusal.NotFound {
			t.Errorf("a session that does not exist: %+v", got)
		}
		for _, session := range []string{"", "a b", "s\x00", strings.Repeat("s", 60_000)} {
			if got := handle(endSession(t, "bob", session, time.Time{})); got.Kind != envelope.Refused ||
				got.Code != refusal.InvalidField || !strings.HasPrefix(got.Text, "session_id ") {
				t.Errorf("an invalid session id: %+v", got)
			}
		}
		first := handle(endSession(t, "bob", "s1", time.Time{}))
		if first.Kind != envelope.Committed || first.Stream != "sessions:bob" || first.Actor != "bob" ||
			first.CommandID != "c1" || first.Version == 0 || first.Source != "presence" {
			t.Errorf("%+v", first)
		}
		if again := handle(endSession(t, "bob", "s1", time.Time{})); again != first {
			t.Errorf("first %+v, then %+v", first, again)
		}
	})
}

func TestCommand_WaitsForRedisAndFailsOnlyIfItIsInvalid(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: time.Second})
	t.Cleanup(func() { _ = client.Close() })
	outcomes := &results{}
	c := &commands{store: store.New(client, "t.", time.Minute), Topics: topics(t, outcomes)}
	if err := c.handle(endSession(t, "bob", "s1", time.Time{})); !errors.Is(err, retry.ErrUnavailable) {
		t.Errorf("while Redis is unavailable: %v", err)
	}
	of := func(kind string, body []byte) *message.Message {
		return envelope.Command{ID: "c2", Type: kind, Stream: "sessions:bob", Actor: "bob", Time: time.Now(), Body: body}.Message()
	}
	for what, m := range map[string]*message.Message{
		"not a command":                message.NewMessage("1", []byte("?")),
		"an unknown command":           of("presence.unheard_of", nil),
		"a command of another service": of("feed.create_post", nil),
		"an undecodable command":       of("presence.end_session", []byte("\xff")),
	} {
		if err := c.handle(m); err == nil || errors.Is(err, retry.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.deadLetter(context.Background(), of("presence.end_session", nil), nil); err != nil || outcomes.last().Kind != envelope.Failed {
		t.Errorf("a dead letter: %v, %+v", err, outcomes.last())
	}
}
