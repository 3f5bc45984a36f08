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

// eventually waits for a condition that others bring about.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// The process is killed in mid-traffic. Afterwards every acknowledged message is in the history once, and whoever sends
// the others again, under their ids, finds each there once as well.
func TestKill_EmbeddedKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	m := embedded(t)
	testKilled(t, m, func() {
		m.processes[0].Kill()
		m.processes[0].Start(t)
		m.ready(t)
	})
}

// The same with each of the separate services in turn.
func TestKill_SeparateKeepWhatTheyAcknowledged(t *testing.T) {
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
	time.Sleep(300 * time.Millisecond) // some traffic after it, too
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
				t.Errorf("%q was acknowledged and is in the history %d times", body, seen[body])
			}
		}
		if len(seen) != len(acked[i]) {
			t.Errorf("%d messages are in the history, %d were sent and acknowledged in the end", len(seen), len(acked[i]))
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

// sendUntil sends message after message. It sends one without an outcome again under the same id, on another connection
// if it must, until it knows the outcome.
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
			time.Sleep(20 * time.Millisecond) // a client's pause before it tries again
		}
	}
	return acked
}

// A store goes away and comes back: /health says so meanwhile, nothing is lost, nobody is restarted.
func TestAway_StoresComeBackWithoutARestart(t *testing.T) {
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
		eventually(t, "health says that "+name+" is away", func() bool {
			return strings.Contains(get(t, m.gateways[0]+"/health"), `"`+name+`":false`)
		})
		id, body := uuid.NewString(), "while "+name+" is away"
		// Requests that need the store are answered as unavailable, and no others are.
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
			eventually(t, fmt.Sprintf("%s, asked %s, is answered %q", query, body, want), func() bool {
				var answer any
				err := alice.ask(query, data, &answer)
				return codeOf(err) == want && (err == nil) == (want == "")
			})
		}
		store.Start()
		eventually(t, "health says that "+name+" is back", func() bool {
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

// One conversation at 2,000 messages a second does not hold up quiet ones: they get their outcomes meanwhile.
func TestBusy_OneConversationBesideQuietOnes(t *testing.T) {
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
						time.Sleep(ahead) // the load's own clock
					}
					if _, err := p.try(uuid.NewString(), "chat.send_message", map[string]any{
						"conversation_id": conversationOf(busy), "body": fmt.Sprint(i, " ", n)}); err != nil {
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
	t.Logf("the busy one had %.0f messages a second; of %d in the quiet one the slowest took %v",
		messages/time.Since(begun).Seconds(), calmVersion-1, slowest)
	if calmVersion < 10 {
		t.Errorf("the quiet conversation got to version %d only", calmVersion)
	}
	owner.awaitVersion(busy.Stream, messages+1)
	owner.dense(busy.Stream, 1, messages+1)
	members[1].awaitVersion(busy.Stream, messages+1)
	members[1].dense(busy.Stream, 1, messages+1)
}
