//go:build integration

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// eventually waits until is() returns true. It fails the test after a minute.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("timed out waiting until %s", what)
}

// TestKill_EmbeddedLosesNothingAcknowledged kills the process of `edumatrix up` while users send messages. Afterwards
// the history must contain every acknowledged message once. If a message gets no outcome, its sender sends it again
// with the same command id, and the history must nevertheless contain it only once.
func TestKill_EmbeddedLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	m := embedded(t)
	testKilled(t, m, func() {
		m.processes[0].Kill()
		m.processes[0].Start(t)
		m.ready(t)
	})
}

// TestKill_SeparateServicesLoseNothingAcknowledged is like TestKill_EmbeddedLosesNothingAcknowledged, but kills each of
// the separate services in turn.
func TestKill_SeparateServicesLoseNothingAcknowledged(t *testing.T) {
	t.Parallel()
	m := separate(t)
	testKilled(t, m, func() {
		for _, p := range m.processes {
			p.Kill()
			p.Start(t)
		}
		m.ready(t)
	})
}

func testKilled(t *testing.T, m *mesh, kill func()) {
	const senders = 4
	conversations := make([]string, senders)
	users := make([]string, senders)
	for i := range senders {
		users[i] = someone("sender")
		p := m.connect(t, users[i], i)
		conversations[i] = conversationOf(p.do("chat.start_direct", map[string]any{"user_id": someone("receiver")}))
		p.Close()
	}
	var stop atomic.Bool
	var wait sync.WaitGroup
	acked := make([][]string, senders)
	for i := range senders {
		wait.Go(func() { acked[i] = sendUntil(t, m, users[i], conversations[i], i, &stop) })
	}
	eventually(t, "traffic", func() bool { return sentSoFar(t, m, users[0], conversations[0]) > 20 })
	kill()
	time.Sleep(300 * time.Millisecond) // users send some more messages
	stop.Store(true)
	wait.Wait()
	for i := range senders {
		p := m.connect(t, users[i], i)
		seen := map[string]int{}
		for _, body := range p.all(conversations[i]) {
			seen[body]++
		}
		for _, body := range acked[i] {
			if seen[body] != 1 {
				t.Errorf("%q was acknowledged, but is in the history %d times", body, seen[body])
			}
		}
		if len(seen) != len(acked[i]) {
			t.Errorf("%d messages are in the history, but %d were acknowledged", len(seen), len(acked[i]))
		}
	}
}

func sentSoFar(t *testing.T, m *mesh, user, conversation string) int64 {
	t.Helper()
	p := m.connect(t, user, 0)
	defer p.Close()
	var page history
	if err := p.ask("chat.history", map[string]any{"conversation_id": conversation}, &page); err != nil {
		t.Fatal(err)
	}
	return page.Version
}

// sendUntil sends messages until the parameter stop is true, and returns the bodies of the acknowledged messages. If a
// message gets no outcome, sendUntil sends it again with the same command id, on a new connection if necessary, until
// the outcome is known. The test fails if a message gets no outcome for 90 s, or is refused with another code than
// "unavailable".
func sendUntil(t *testing.T, m *mesh, user, conversation string, gateway int, stop *atomic.Bool) (acked []string) {
	var c *client.Client
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for n := 0; !stop.Load(); n++ {
		id, body := uuid.NewString(), fmt.Sprintf("%s %d", user, n)
		for end := time.Now().Add(90 * time.Second); ; gateway++ {
			if time.Now().After(end) {
				t.Errorf("%q got no outcome", body)
				return acked
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			var err error
			if c == nil {
				c, err = client.Dial(ctx, client.Options{URL: m.socket(gateway), Token: mint(t, user, time.Hour)})
			}
			if err == nil {
				_, err = c.CommandAs(ctx, id, "chat.send_message", map[string]any{"conversation_id": conversation, "body": body})
			}
			cancel()
			if err == nil {
				acked = append(acked, body)
				break
			}
			var refused *client.Error
			if errors.As(err, &refused) && refused.Code != "queued" && refused.Code != "unavailable" {
				t.Errorf("%q was refused: %v", body, refused)
				return acked
			}
			if !errors.As(err, &refused) && c != nil {
				c.Close()
				c = nil
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return acked
}

// TestOutage_StoresComeBackWithoutARestart stops and starts PostgreSQL, Redis and Kafka, one after the other. While a
// store is down, /health must report that this store is unavailable. No message may be lost, and no service may need a
// restart.
func TestOutage_StoresComeBackWithoutARestart(t *testing.T) {
	t.Parallel()
	kafka, redis, postgres := meshtest.NewKafkaServer(t), meshtest.NewRedisServer(t), meshtest.NewPostgresServer(t)
	r := redis.Settings()
	m := separateOn(t, postgres.URL(), redisURL(r.Host, r.Port, r.Password, r.URL), strings.Join(kafka.Settings().Brokers, ","))
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	conversation := conversationOf(started)
	version := int64(1)
	say := func(p *person, id, body string) {
		t.Helper()
		var o client.Outcome
		eventually(t, body+" is committed", func() bool {
			var err error
			o, err = p.try(id, "chat.send_message", map[string]any{"conversation_id": conversation, "body": body})
			if code := codeOf(err); err != nil && code != "queued" && code != "unavailable" {
				t.Fatalf("%s: %v", body, err)
			}
			return err == nil
		})
		version++
		if o.Version != version {
			t.Fatalf("%s has version %d, not %d", body, o.Version, version)
		}
	}
	say(alice, uuid.NewString(), "before")
	for name, store := range map[string]interface {
		Stop()
		Start()
	}{"postgres": postgres, "redis": redis, "kafka": kafka} {
		store.Stop()
		eventually(t, "health reports that "+name+" is unavailable", func() bool {
			return strings.Contains(get(t, m.gateways[0]+"/health"), `"`+name+`":false`)
		})
		id, body := uuid.NewString(), "while "+name+" is unavailable"
		// While Kafka is down, a command must be refused as unavailable. While PostgreSQL is down, a command must be
		// answered with "queued". While Redis is down, a command must be committed. A query that needs the store must
		// be refused as unavailable; every other query must be answered.
		if name == "redis" {
			say(alice, id, body)
			bob.awaitVersion(started.Stream, version)
			id, body = uuid.NewString(), "when redis is back"
		} else {
			_, err := alice.try(id, "chat.send_message", map[string]any{"conversation_id": conversation, "body": body})
			if want := map[string]string{"kafka": "unavailable", "postgres": "queued"}[name]; codeOf(err) != want {
				t.Errorf("%s: %v, not %s", body, err, want)
			}
		}
		for query, needs := range map[string]string{"chat.history": "postgres", "presence.sessions": "redis"} {
			data, want := map[string]any{}, ""
			if query == "chat.history" {
				data["conversation_id"] = conversation
			}
			if needs == name {
				want = "unavailable"
			}
			eventually(t, fmt.Sprintf("%s %s is answered with %q", query, body, want), func() bool {
				var answer any
				err := alice.ask(query, data, &answer)
				return codeOf(err) == want && (err == nil) == (want == "")
			})
		}
		store.Start()
		eventually(t, "health reports that "+name+" is back", func() bool {
			r, err := http.Get(m.gateways[0] + "/health")
			if err != nil {
				return false
			}
			defer r.Body.Close()
			return r.StatusCode == http.StatusOK
		})
		say(alice, id, body)
		bob.awaitVersion(started.Stream, version)
	}
	bob.dense(started.Stream, 1, version)
	for _, p := range m.processes {
		if !p.Running() {
			t.Errorf("%s ended", p.Name)
		}
	}
}

// TestBusy_OneConversationDoesNotDelayOthers sends 6,000 messages to one conversation, at most 2,000 per second.
// Meanwhile, commands in another conversation must get their outcomes.
func TestBusy_OneConversationDoesNotDelayOthers(t *testing.T) {
	t.Parallel()
	m := separate(t)
	const messages, senders = 6000, 12
	owner := m.connect(t, someone("owner"), 0)
	var members []*person
	var ids []string
	for i := range senders {
		p := m.connect(t, someone("member"), i)
		members, ids = append(members, p), append(ids, p.id)
	}
	busy := owner.do("chat.start_group", map[string]any{"title": "busy", "user_ids": ids})
	quiet := m.connect(t, someone("quiet"), 1)
	calm := quiet.do("chat.start_group", map[string]any{"title": "calm", "user_ids": []string{}})

	var wait sync.WaitGroup
	var sent atomic.Int64
	begun := time.Now()
	for i, p := range members {
		for range 20 {
			wait.Go(func() {
				for n := sent.Add(1); n <= messages; n = sent.Add(1) {
					if ahead := time.Duration(n)*time.Second/2000 - time.Since(begun); ahead > 0 {
						time.Sleep(ahead) // keep the rate
					}
					_, err := p.try(uuid.NewString(), "chat.send_message", map[string]any{
						"conversation_id": conversationOf(busy), "body": fmt.Sprint(i, " ", n)})
					if err != nil && codeOf(err) != client.Queued { // a queued command is decided later
						t.Error(err)
					}
				}
			})
		}
	}
	var calmVersion int64
	var slowest time.Duration
	for sent.Load() < messages {
		asked := time.Now()
		calmVersion = quiet.do("chat.send_message", map[string]any{"conversation_id": conversationOf(calm), "body": "still here"}).Version
		slowest = max(slowest, time.Since(asked))
	}
	wait.Wait()
	t.Logf("the busy conversation had %.0f messages a second; the slowest of %d in the quiet one took %v",
		messages/time.Since(begun).Seconds(), calmVersion-1, slowest)
	if calmVersion < 10 {
		t.Errorf("the quiet conversation reached only version %d", calmVersion)
	}
	owner.awaitVersion(busy.Stream, messages+1)
	owner.dense(busy.Stream, 1, messages+1)
	members[1].awaitVersion(busy.Stream, messages+1)
	members[1].dense(busy.Stream, 1, messages+1)
}
