//go:build integration

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/client"
)

func TestResume_Embedded(t *testing.T) {
	t.Parallel()
	resumeSuite(t, embedded(t))
}

func TestResume_Separate(t *testing.T) {
	t.Parallel()
	m := separate(t)
	resumeSuite(t, m)
	testStorm(t, m)
}

// resumeSuite tests the guarantees for clients that resume. The tests share one mesh, but each test has its own users.
func resumeSuite(t *testing.T, m *mesh) {
	t.Run("group", func(t *testing.T) { // a group returns only when its parallel subtests have ended
		for name, test := range map[string]func(*testing.T, *mesh){
			"MissedEventsArrive":                         testMissedEvents,
			"NothingFromBetweenMemberships":              testNothingBetween,
			"ADeletedMessageArrivesRedacted":             testDeletedMeanwhile,
			"OnlyTheRoomWithTooManyEventsIsNotRecovered": testNotRecovered,
			"AResumeTokenGrantsNoAccess":                 testTokenGrantsNothing,
			"PresenceSubscriptionsContinue":              testPresenceContinues,
			"NoPostOfASubscribedAuthorIsMissed":          testNoPostIsMissed,
			"EveryEventOnceAfterManyAbsences":            testAbsences,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, m)
			})
		}
	})
}

// drop breaks the connection without a WebSocket close frame.
func (p *person) drop() { p.Abort() }

// tryResume resumes the person's session at a gateway. The person keeps the events received so far.
func (p *person) tryResume(m *mesh, gateway int) (client.Connected, error) {
	ctx, cancel := timeout()
	defer cancel()
	next, err := p.Redial(ctx, m.socket(gateway))
	if err != nil {
		return client.Connected{}, fmt.Errorf("%s resumes: %w", p.id, err)
	}
	p.Client = next
	p.t.Cleanup(next.Close)
	stands := next.Connected()
	if !stands.Resumed {
		return stands, fmt.Errorf("%s has not resumed", p.id)
	}
	return stands, nil
}

func (p *person) resume(m *mesh, gateway int) client.Connected {
	p.t.Helper()
	stands, err := p.tryResume(m, gateway)
	if err != nil {
		p.t.Fatal(err)
	}
	return stands
}

// say sends a message and returns its version.
func (p *person) say(stream, body string) int64 {
	p.t.Helper()
	return p.do("chat.send_message", message(stream, body)).Version
}

func message(stream, body string) map[string]any {
	return map[string]any{"conversation_id": strings.TrimPrefix(stream, "conversation:"), "body": body}
}

func (p *person) group(t *testing.T, users ...string) string {
	t.Helper()
	return p.do("chat.start_group", map[string]any{"title": "a group", "user_ids": append([]string{}, users...)}).Stream
}

func (p *person) member(command, stream, user string) int64 {
	p.t.Helper()
	return p.do("chat."+command, map[string]any{"conversation_id": strings.TrimPrefix(stream, "conversation:"),
		"user_id": user}).Version
}

func testMissedEvents(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	stream := alice.do("chat.start_direct", map[string]any{"user_id": bob.id}).Stream
	bob.awaitVersion(stream, alice.say(stream, "seen"))
	for round := range 3 {
		bob.drop()
		last := int64(0)
		for n := range 5 {
			last = alice.say(stream, fmt.Sprint("missed ", round, n))
		}
		begun := alice.group(t, bob.id)
		alice.say(begun, "in a new one")
		stands := bob.resume(m, round)
		// Do not wait, because missed events must arrive before the reply to connect.
		if got := bob.versions(begun); !slices.Equal(got, []int64{1, 2}) || len(stands.NotRecovered) > 0 {
			t.Fatalf("bob saw %v of a conversation that was started meanwhile, not recovered: %v", got, stands.NotRecovered)
		}
		bob.dense(stream, 1, last)
		bob.awaitVersion(stream, alice.say(stream, "live"))
	}
	raised := func(e client.Event) bool { return e.Type == "notification.raised" && e.Actor != bob.id }
	bob.await("a notification that was raised while away", raised)
}

func testNothingBetween(t *testing.T, m *mesh) {
	owner, guest := m.connect(t, someone("owner"), 0), m.connect(t, someone("guest"), 1)
	stream := owner.group(t)
	owner.say(stream, "2")
	guest.drop()
	owner.say(stream, "3")
	owner.member("add_member", stream, guest.id) // version 4
	owner.say(stream, "5")
	owner.member("remove_member", stream, guest.id) // version 6
	owner.say(stream, "7")
	owner.member("add_member", stream, guest.id) // version 8
	owner.say(stream, "9")
	guest.resume(m, 0)
	want := []int64{4, 5, 6, 8, 9}
	if got := guest.versions(stream); !slices.Equal(got, want) {
		t.Fatalf("the guest saw %v, want %v", got, want)
	}
	guest.drop()
	owner.say(stream, "10")
	owner.member("remove_member", stream, guest.id) // version 11
	owner.say(stream, "12")
	guest.resume(m, 1)
	want = append(want, 10, 11)
	if got := guest.versions(stream); !slices.Equal(got, want) {
		t.Fatalf("after it was removed the guest saw %v, want %v", got, want)
	}
	owner.awaitVersion(stream, owner.say(stream, "13"))
	guest.drop()
	guest.resume(m, 0)
	if got := guest.versions(stream); !slices.Equal(got, want) {
		t.Fatalf("after it was removed again the guest saw %v, want %v", got, want)
	}
}

func testDeletedMeanwhile(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	stream := alice.do("chat.start_direct", map[string]any{"user_id": bob.id}).Stream
	bob.awaitVersion(stream, 1)
	bob.drop()
	sent := alice.say(stream, "the secret")
	message := field(alice.awaitVersion(stream, sent), "message_id")
	alice.do("chat.delete_message", map[string]any{"conversation_id": strings.TrimPrefix(stream, "conversation:"),
		"message_id": message})
	bob.resume(m, 0)
	if got := bob.awaitVersion(stream, sent); !got.Redacted || field(got, "body") != "" {
		t.Fatalf("bob saw %+v", got)
	}
	bob.dense(stream, 1, sent+1)
}

func testNotRecovered(t *testing.T, m *mesh) {
	owner, guest := m.connect(t, someone("owner"), 0), m.connect(t, someone("guest"), 1)
	loud, quiet := owner.group(t, guest.id), owner.group(t, guest.id)
	guest.awaitVersion(loud, 1)
	guest.awaitVersion(quiet, 1)
	guest.drop()
	var wait sync.WaitGroup
	const messages = 1100
	for range 10 {
		wait.Go(func() {
			for range messages / 10 {
				if _, err := owner.try(uuid.NewString(), "chat.send_message", message(loud, "x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	owner.say(quiet, "y")
	stands := guest.resume(m, 0)
	if !slices.Equal(stands.NotRecovered, []string{loud}) {
		t.Fatalf("not recovered: %v, want %s", stands.NotRecovered, loud)
	}
	if got := guest.versions(loud); !slices.Equal(got, []int64{1}) {
		t.Fatalf("the guest saw %d events of the room that is not recovered", len(got))
	}
	guest.dense(quiet, 1, 2)
	if all := guest.all(strings.TrimPrefix(loud, "conversation:")); len(all) != messages {
		t.Fatalf("the history has %d messages", len(all))
	}
	guest.awaitVersion(loud, owner.say(loud, "live"))
}

func testTokenGrantsNothing(t *testing.T, m *mesh) {
	alice, bob, eve := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 0), m.connect(t, someone("eve"), 1)
	stream := alice.do("chat.start_direct", map[string]any{"user_id": bob.id}).Stream
	token := bob.ResumeToken() // from before the conversation started
	bob.awaitVersion(stream, alice.say(stream, "between us"))
	dial := func(user, token string) (*client.Client, []client.Event, error) {
		ctx, cancel := timeout()
		defer cancel()
		var events []client.Event
		c, err := client.Dial(ctx, client.Options{URL: m.socket(1), Protobuf: m.protobuf, Token: mint(t, user, time.Hour), ResumeToken: token,
			OnEvent: func(e client.Event) { events = append(events, e) }})
		if err == nil {
			t.Cleanup(c.Close)
		}
		return c, events, err
	}
	_, events, err := dial(eve.id, token)
	if err != nil || len(events) > 0 {
		t.Fatalf("with the token of another user eve saw %v %v", events, err)
	}
	if c, _, err := dial(bob.id, token[:10]+"AAAA"+token[14:]); err != nil || c.Connected().Resumed {
		t.Fatalf("a mangled token: %v", err)
	}
	again := map[string]any{"type": "connect", "data": map[string]any{"resume_token": token}}
	if _, err := bob.Request(t.Context(), again); codeOf(err) != "malformed" {
		t.Fatalf("a second connect frame: %v", err)
	}
}

func testPresenceContinues(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	token := bob.ResumeToken()
	bob.drop()
	ctx, cancel := timeout()
	defer cancel()
	online := make(chan client.Event, 10)
	c, err := client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, Token: mint(t, bob.id, time.Hour), ResumeToken: token,
		Rooms: []string{"presence:" + alice.id}, OnEvent: func(e client.Event) { online <- e }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for {
		select {
		case e := <-online: // first alice's presence at the time of bob's subscription, then each change
			if e.Stream != "presence:"+alice.id {
				t.Fatalf("bob saw %+v", e)
			}
			if e.Type == "presence.came_online" {
				return
			}
		case <-ctx.Done():
			t.Fatal("bob got no presence of alice")
		}
	}
}

// testNoPostIsMissed disconnects a subscriber of an author. The subscriber must get each post of the author, whether it
// was posted while the subscriber was disconnected or afterwards.
func testNoPostIsMissed(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	room := "author:" + alice.id
	if _, err := bob.subscribe(room); err != nil {
		t.Fatal(err)
	}
	post := func(body string) { alice.do("feed.create_post", map[string]any{"body": body}) }
	isPost := func(body string) func(client.Event) bool {
		return func(e client.Event) bool { return e.Type == "feed.post_created" && field(e, "body") == body }
	}
	post("seen")
	bob.await("a post", isPost("seen"))
	bob.drop()
	for n := range 3 {
		post(fmt.Sprint("missed ", n))
	}
	ctx, cancel := timeout()
	defer cancel()
	posts := make(chan string, 100)
	c, err := client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, Token: mint(t, bob.id, time.Hour), ResumeToken: bob.ResumeToken(),
		Rooms: []string{room}, OnEvent: func(e client.Event) { posts <- fmt.Sprint(field(e, "body")) }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	post("new")
	want := []string{"missed 0", "missed 1", "missed 2", "new"}
	for len(want) > 0 {
		select {
		case got := <-posts:
			if got == "seen" && len(want) == 4 {
				continue // a post that is newer than the resume token is delivered again; clients ignore known versions
			}
			if got != want[0] {
				t.Fatalf("bob saw %q, not %q", got, want[0])
			}
			want = want[1:]
		case <-ctx.Done():
			t.Fatalf("bob does not see %q", want)
		}
	}
}

// testAbsences lets clients drop their connections and resume, many times and at any gateway. Each client must get each
// event of its user's membership intervals once and in order.
func testAbsences(t *testing.T, m *mesh) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("RESUME_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("set RESUME_SEED=%d to repeat this run", seed)
	const people, rooms, steps = 24, 4, 12
	owner := m.connect(t, someone("owner"), 0)
	var all []*person
	for i := range people {
		all = append(all, m.connect(t, someone("member"), i))
	}
	streams := make([]string, rooms)
	for i := range streams {
		streams[i] = owner.group(t)
	}
	var stop atomic.Bool
	var wait sync.WaitGroup
	for i, stream := range streams {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wait.Go(func() { // adds and removes members, and sends messages
			in := map[int]bool{}
			for n := 0; !stop.Load(); n++ {
				command, data := "chat.send_message", message(stream, fmt.Sprint(n))
				if who := r.IntN(people); r.IntN(4) == 0 {
					if command = "chat.add_member"; in[who] {
						command = "chat.remove_member"
					}
					in[who] = !in[who]
					data = map[string]any{"conversation_id": data["conversation_id"], "user_id": all[who].id}
				}
				if _, err := owner.try(uuid.NewString(), command, data); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var dropping sync.WaitGroup
	for i, p := range all {
		r := rand.New(rand.NewPCG(seed, uint64(1000+i)))
		dropping.Go(func() {
			for range steps {
				time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
				p.drop()
				time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
				if stands, err := p.tryResume(m, r.IntN(2)); err != nil || len(stands.NotRecovered) > 0 {
					t.Errorf("not recovered %v: %v", stands.NotRecovered, err)
					return
				}
			}
		})
	}
	dropping.Wait()
	stop.Store(true)
	wait.Wait()
	for _, stream := range streams {
		last := owner.say(stream, "the last one")
		owner.awaitVersion(stream, last)
		owner.dense(stream, 1, last)
		log := owner.of(stream)
		for _, p := range all {
			want := within(log, p.id)
			eventually(t, p.id+" sees all of its memberships", func() bool { return len(p.versions(stream)) >= len(want) })
			if got := p.versions(stream); !slices.Equal(got, want) {
				t.Errorf("%s saw of %s\n     %v\nwant %v", p.id, stream, got, want)
			}
		}
	}
}

func (p *person) of(stream string) (events []client.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.seen {
		if e.Stream == stream {
			events = append(events, e)
		}
	}
	return events
}

// within returns the versions of a conversation that a user must get: the versions in the user's membership intervals,
// including the events that open and close the intervals.
func within(log []client.Event, user string) (versions []int64) {
	in := false
	for _, e := range log {
		about := field(e, "user_id") == user
		if in = in || about && e.Type == "chat.member_added"; in {
			versions = append(versions, e.Version)
		}
		in = in && !(about && e.Type == "chat.member_left")
	}
	return versions
}

// testStorm connects 200 clients to the first gateway and kills this gateway. The clients resume at the second gateway,
// which has the missed events in its event buffer. Then the second gateway is killed too. The clients resume at the
// first gateway, which was started again with an empty event buffer. Each time, the gateway at which the clients resume
// may call chat at most 50 times for the missed events of all clients together.
func testStorm(t *testing.T, m *mesh) {
	const clients = 200
	var gateways []*meshrun.Process
	for _, p := range m.processes {
		if p.Name == "gateway" {
			gateways = append(gateways, p)
		}
	}
	owner := m.connect(t, someone("owner"), 1)
	all := make([]*person, clients)
	users := make([]string, clients)
	for i := range users {
		users[i] = someone("pupil")
	}
	stream := owner.group(t, users...)
	for i := range users {
		all[i] = m.connect(t, users[i], 0)
	}
	last := owner.say(stream, "before")
	for _, p := range all {
		p.awaitVersion(stream, last)
	}

	storm := func(to int, from string) {
		t.Helper()
		begun := time.Now()
		calls := m.counter(t, to, `gateway_room_calls_total{call="resume",owner="chat"}`)
		resumed := m.counter(t, to, fmt.Sprintf(`gateway_resumed_total{from=%q,owner="chat"}`, from))
		var wait sync.WaitGroup
		for _, p := range all {
			wait.Go(func() {
				if _, err := p.tryResume(m, to); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		took := time.Since(begun)
		for _, p := range all {
			p.dense(stream, 2, last) // the clients connected after version 1
		}
		calls = m.counter(t, to, `gateway_room_calls_total{call="resume",owner="chat"}`) - calls
		resumed = m.counter(t, to, fmt.Sprintf(`gateway_resumed_total{from=%q,owner="chat"}`, from)) - resumed
		t.Logf("%d clients resumed within %v, %v of them from %s, by %v calls", clients, took, resumed, from, calls)
		if resumed != clients {
			t.Errorf("%v clients got their missed events from %s", resumed, from)
		}
		if calls > clients/4 {
			t.Errorf("%v calls to the owner for %d clients", calls, clients)
		}
	}
	gateways[0].Kill()
	last = owner.say(stream, "missed")
	storm(1, "recent")

	// Now restart both gateways. The first gateway starts only after the messages below are sent, so its event buffer is
	// empty and only the log has the missed events.
	for _, p := range gateways {
		p.Kill()
	}
	gateways[1].Start(t)
	m.takesClients(t, 1)
	owner = m.connect(t, owner.id, 1)
	for range 3 {
		last = owner.say(stream, "missed again")
	}
	gateways[0].Start(t)
	m.takesClients(t, 0)
	storm(0, "log")
}

// takesClients waits until one gateway accepts clients.
func (m *mesh) takesClients(t *testing.T, gateway int) {
	t.Helper()
	eventually(t, "the gateway is ready", func() bool {
		r, err := http.Get(m.gateways[gateway] + "/readyz")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// counter returns the value of a metric of a gateway, or 0 if the gateway does not have the metric.
func (m *mesh) counter(t *testing.T, gateway int, name string) float64 {
	t.Helper()
	for line := range strings.Lines(get(t, m.metrics[gateway]+"/metrics")) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}
