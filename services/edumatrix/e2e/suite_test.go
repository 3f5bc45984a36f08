//go:build integration

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/client"
)

func TestEmbedded(t *testing.T) {
	t.Parallel()
	suite(t, embedded(t))
}

func TestSeparate(t *testing.T) {
	t.Parallel()
	suite(t, separate(t))
}

// suite tests the guarantees for users, with clients of both encodings. The tests share one mesh, but each test has its
// own users.
func suite(t *testing.T, m *mesh) {
	binary := *m
	binary.protobuf = true
	t.Run("group", func(t *testing.T) { // a group returns only when its parallel subtests have ended
		t.Run("JSON", func(t *testing.T) { t.Parallel(); suiteIn(t, m) })
		t.Run("Protobuf", func(t *testing.T) { t.Parallel(); suiteIn(t, &binary) })
	})
}

func suiteIn(t *testing.T, m *mesh) {
	t.Run("group", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *mesh){
			"TwoPeopleTalk":                     testTwoPeopleTalk,
			"DirectIsOneConversation":           testDirectIsOneConversation,
			"MembersComeAndGoLive":              testMembersComeAndGoLive,
			"EveryConnectionOfAMember":          testEveryConnectionOfAMember,
			"EditAndDelete":                     testEditAndDelete,
			"HistoryHasItsBounds":               testHistoryHasItsBounds,
			"SearchFindsWhatMembersRead":        testSearchFindsWhatMembersRead,
			"SameCommandSameOutcome":            testSameCommandSameOutcome,
			"AnIDIsPerUserAndPerCommand":        testOneIDForTwoUsersAndTwoThings,
			"RefusalIsFinalAtEveryGateway":      testRefusalStays,
			"StrangersReadAndWriteNothing":      testStrangersReadAndWriteNothing,
			"PostReachesSubscribersOfItsAuthor": testPostReachesSubscribers,
			"BeingAddedRaisesANotification":     testNotification,
			"PresenceComesAndGoes":              testPresence,
			"UsersManageTheirOwnSessions":       testSessions,
			"SessionsKeepTheirRooms":            testSessionRooms,
			"BadFramesAreAnswered":              testBadFrames,
			"TokensAreChecked":                  testTokens,
			"NothingUndeclaredIsReachable":      testNothingUndeclaredIsReachable,
			"HTTPTakesTheSameCommands":          testHTTP,
			"HealthIsReported":                  testHealth,
			"ManyConversationsKeepTheirOrder":   testOrder,
			"TypingGoesToMembersOnly":           testTyping,
			"ReactionsReachMembersOnly":         testReactions,
			"MarkersAreSharedByDevices":         testMarkers,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, m)
			})
		}
	})
}

func testTwoPeopleTalk(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	bob.awaitVersion(started.Stream, 1)
	sent := alice.do("chat.send_message", map[string]any{"conversation_id": conversationOf(started), "body": "hi, Bob ✓"})
	if sent.Stream != started.Stream || sent.Version != 2 || sent.Kind != "committed" {
		t.Fatalf("outcome %+v", sent)
	}
	got := bob.awaitVersion(started.Stream, 2)
	if got.Type != "chat.message_sent" || got.Actor != alice.id || field(got, "body") != "hi, Bob ✓" {
		t.Fatalf("bob saw %+v", got)
	}
	if d := time.Since(got.Time); d < -time.Minute || d > time.Minute {
		t.Errorf("the time of the event is wrong by %v", d)
	}
	alice.awaitVersion(started.Stream, 2)
	if bodies := bob.all(conversationOf(started)); !slices.Equal(bodies, []string{"hi, Bob ✓"}) {
		t.Fatalf("history: %q", bodies)
	}
	var mine struct {
		Conversations []struct {
			ConversationID string   `json:"conversation_id"`
			Kind           string   `json:"kind"`
			UserIDs        []string `json:"user_ids"`
			Version        int64    `json:"version"`
		} `json:"conversations"`
	}
	if err := alice.ask("chat.conversations", map[string]any{}, &mine); err != nil {
		t.Fatal(err)
	}
	if len(mine.Conversations) != 1 || mine.Conversations[0].Kind != "direct" || mine.Conversations[0].Version != 2 ||
		len(mine.Conversations[0].UserIDs) != 2 {
		t.Fatalf("conversations of alice: %+v", mine)
	}
}

func testDirectIsOneConversation(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	first := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	again := bob.do("chat.start_direct", map[string]any{"user_id": alice.id})
	if first.Stream != again.Stream || again.Kind != "unchanged" || again.Version != 1 {
		t.Fatalf("first %+v again %+v", first, again)
	}
}

func testMembersComeAndGoLive(t *testing.T, m *mesh) {
	owner, member, guest := m.connect(t, someone("owner"), 0), m.connect(t, someone("member"), 1), m.connect(t, someone("guest"), 1)
	started := owner.do("chat.start_group", map[string]any{"title": "algebra", "user_ids": []string{member.id}})
	id := conversationOf(started)
	say := func(p *person, body string) int64 {
		return p.do("chat.send_message", map[string]any{"conversation_id": id, "body": body}).Version
	}
	say(owner, "before the guest")
	opened := owner.do("chat.add_member", map[string]any{"conversation_id": id, "user_id": guest.id}).Version
	guest.awaitVersion(started.Stream, opened)
	during := say(member, "while the guest is here")
	guest.awaitVersion(started.Stream, during)
	closed := owner.do("chat.remove_member", map[string]any{"conversation_id": id, "user_id": guest.id}).Version
	guest.awaitVersion(started.Stream, closed)
	guest.refused("not_a_member", "chat.send_message", map[string]any{"conversation_id": id, "body": "still here?"})
	say(owner, "after the guest")
	opened = owner.do("chat.add_member", map[string]any{"conversation_id": id, "user_id": guest.id}).Version
	guest.awaitVersion(started.Stream, opened)
	last := say(guest, "back again")
	for _, p := range []*person{owner, member, guest} {
		p.awaitVersion(started.Stream, last)
	}
	owner.dense(started.Stream, 1, last)
	member.dense(started.Stream, 1, last)
	if got, want := guest.versions(started.Stream), []int64{3, 4, 5, 7, 8}; !slices.Equal(got, want) {
		t.Fatalf("the guest saw versions %v, want %v without those between its memberships", got, want)
	}
	// A member who leaves gets no further events either.
	left := member.do("chat.leave", map[string]any{"conversation_id": id}).Version
	member.awaitVersion(started.Stream, left)
	guest.awaitVersion(started.Stream, left)
	guest.awaitVersion(started.Stream, say(owner, "member has left"))
	if got := member.versions(started.Stream); got[len(got)-1] != left {
		t.Fatalf("the member who left still saw %v", got)
	}
}

func testEveryConnectionOfAMember(t *testing.T, m *mesh) {
	bob := someone("bob")
	alice, phone, laptop := m.connect(t, someone("alice"), 0), m.connect(t, bob, 0), m.connect(t, bob, 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob})
	for i := range 5 {
		phone.do("chat.send_message", map[string]any{"conversation_id": conversationOf(started), "body": fmt.Sprint(i)})
	}
	for _, p := range []*person{alice, phone, laptop} {
		p.awaitVersion(started.Stream, 6)
		p.dense(started.Stream, 1, 6)
	}
}

func testEditAndDelete(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	id := conversationOf(started)
	alice.do("chat.send_message", map[string]any{"conversation_id": id, "body": "teh secret"})
	message := field(bob.awaitVersion(started.Stream, 2), "message_id")
	bob.refused("not_allowed", "chat.edit_message", map[string]any{"conversation_id": id, "message_id": message, "body": "mine"})
	alice.do("chat.edit_message", map[string]any{"conversation_id": id, "message_id": message, "body": "the secret"})
	if got := bob.awaitVersion(started.Stream, 3); got.Type != "chat.message_edited" || field(got, "body") != "the secret" {
		t.Fatalf("bob saw %+v", got)
	}
	alice.do("chat.delete_message", map[string]any{"conversation_id": id, "message_id": message})
	bob.awaitVersion(started.Stream, 4)
	alice.refused("message_deleted", "chat.edit_message", map[string]any{"conversation_id": id, "message_id": message, "body": "x"})
	alice.refused("not_found", "chat.edit_message", map[string]any{"conversation_id": id, "message_id": "no-such", "body": "x"})
	if again := alice.do("chat.delete_message", map[string]any{"conversation_id": id, "message_id": message}); again.Kind != "unchanged" {
		t.Fatalf("deleted again: %+v", again)
	}
	var page history
	if err := alice.ask("chat.history", map[string]any{"conversation_id": id}, &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Messages) != 1 || !page.Messages[0].Deleted || page.Messages[0].Body != "" || page.Version != 4 {
		t.Fatalf("history: %+v", page)
	}
}

func testHistoryHasItsBounds(t *testing.T, m *mesh) {
	owner, early, late := m.connect(t, someone("owner"), 0), m.connect(t, someone("early"), 0), m.connect(t, someone("late"), 0)
	started := owner.do("chat.start_group", map[string]any{"title": "exam", "user_ids": []string{early.id}, "history_from_joining": true})
	id := conversationOf(started)
	for _, body := range []string{"one", "two"} {
		owner.do("chat.send_message", map[string]any{"conversation_id": id, "body": body})
	}
	early.do("chat.leave", map[string]any{"conversation_id": id})
	owner.do("chat.add_member", map[string]any{"conversation_id": id, "user_id": late.id})
	owner.do("chat.send_message", map[string]any{"conversation_id": id, "body": "three"})
	if got := early.all(id); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("the member who left reads %q", got)
	}
	if got := late.all(id); !slices.Equal(got, []string{"three"}) {
		t.Errorf("the member who came late reads %q", got)
	}
	if got := owner.all(id); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("the owner reads %q", got)
	}
	var page history
	if err := owner.ask("chat.history", map[string]any{"conversation_id": id, "limit": 2}, &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Messages) != 2 || page.Messages[0].Body != "two" || !page.More {
		t.Errorf("the newest two: %+v", page)
	}
	before := page.Messages[0].Version
	page = history{}
	if err := owner.ask("chat.history", map[string]any{"conversation_id": id, "limit": 1, "after": 0}, &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Messages) != 1 || page.Messages[0].Body != "one" || !page.More {
		t.Errorf("from the start: %+v", page)
	}
	page = history{}
	if err := owner.ask("chat.history", map[string]any{"conversation_id": id, "before": before}, &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Messages) != 1 || page.Messages[0].Body != "one" || page.More {
		t.Errorf("before those: %+v", page)
	}
}

func testSameCommandSameOutcome(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	elsewhere := m.connect(t, alice.id, 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	message := map[string]any{"conversation_id": conversationOf(started), "body": "once"}
	id := uuid.NewString()
	var all [8]client.Outcome
	var wait sync.WaitGroup
	for i := range all {
		wait.Go(func() {
			p := alice
			if i%2 == 1 {
				p = elsewhere
			}
			o, err := p.try(id, "chat.send_message", message)
			if err != nil {
				t.Errorf("try %d: %v", i, err)
			}
			all[i] = o
		})
	}
	wait.Wait()
	for i, o := range all {
		if o != all[0] || o.Version != 2 {
			t.Fatalf("outcome %d is %+v, the first %+v", i, o, all[0])
		}
	}
	last := alice.do("chat.send_message", map[string]any{"conversation_id": conversationOf(started), "body": "last"})
	bob.awaitVersion(started.Stream, last.Version)
	bob.dense(started.Stream, 1, 3)
}

func testOneIDForTwoUsersAndTwoThings(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	other := alice.do("chat.start_group", map[string]any{"title": "other", "user_ids": []string{}})
	id := uuid.NewString()
	message := map[string]any{"conversation_id": conversationOf(started), "body": "one id"}
	a, err := alice.try(id, "chat.send_message", message)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bob.try(id, "chat.send_message", message)
	if err != nil || b.Version == a.Version {
		t.Fatalf("another user's command of that id: %+v %v", b, err)
	}
	elsewhere := map[string]any{"conversation_id": conversationOf(other), "body": "one id"}
	if _, err := alice.try(id, "chat.send_message", elsewhere); codeOf(err) != "id_reused" {
		t.Fatalf("the id for another conversation: %v", err)
	}
	if _, err := alice.try(id, "chat.leave", map[string]any{"conversation_id": conversationOf(started)}); codeOf(err) != "id_reused" {
		t.Fatalf("the id for another command: %v", err)
	}
	if again, err := alice.try(id, "chat.send_message", message); err != nil || again.Version != a.Version {
		t.Fatalf("the first one again: %+v %v", again, err)
	}
}

func testRefusalStays(t *testing.T, m *mesh) {
	owner, guest := m.connect(t, someone("owner"), 0), m.connect(t, someone("guest"), 0)
	elsewhere := m.connect(t, guest.id, 1)
	started := owner.do("chat.start_group", map[string]any{"title": "closed", "user_ids": []string{}})
	message := map[string]any{"conversation_id": conversationOf(started), "body": "let me in"}
	id := uuid.NewString()
	if _, err := guest.try(id, "chat.send_message", message); codeOf(err) != "not_a_member" {
		t.Fatal(err)
	}
	owner.do("chat.add_member", map[string]any{"conversation_id": conversationOf(started), "user_id": guest.id})
	if _, err := elsewhere.try(id, "chat.send_message", message); codeOf(err) != "not_a_member" {
		t.Fatalf("sent again, through another gateway, after joining: %v, want the same refusal", err)
	}
	elsewhere.do("chat.send_message", message)
}

func testStrangersReadAndWriteNothing(t *testing.T, m *mesh) {
	alice, bob, mallory := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 0), m.connect(t, someone("mallory"), 0)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	id := conversationOf(started)
	alice.do("chat.send_message", map[string]any{"conversation_id": id, "body": "between us"})
	for name, data := range map[string]map[string]any{
		"chat.send_message":  {"conversation_id": id, "body": "x"},
		"chat.add_member":    {"conversation_id": id, "user_id": mallory.id},
		"chat.remove_member": {"conversation_id": id, "user_id": bob.id},
		"chat.leave":         {"conversation_id": id},
		"chat.edit_message":  {"conversation_id": id, "message_id": "m", "body": "x"},
	} {
		mallory.refused("not_a_member", name, data)
		data["conversation_id"] = uuid.NewString() // commands for an unknown conversation must get the same refusal
		mallory.refused("not_a_member", name, data)
	}
	var page history
	for _, conversation := range []string{id, uuid.NewString()} {
		if err := mallory.ask("chat.history", map[string]any{"conversation_id": conversation}, &page); codeOf(err) != "not_a_member" {
			t.Fatalf("history: %v", err)
		}
	}
	if got := mallory.versions(started.Stream); len(got) != 0 {
		t.Fatalf("a stranger saw %v", got)
	}
}

func testPostReachesSubscribers(t *testing.T, m *mesh) {
	author, reader := m.connect(t, someone("author"), 0), m.connect(t, someone("reader"), 1)
	if _, err := reader.subscribe("author:" + author.id); err != nil {
		t.Fatal(err)
	}
	posted := author.do("feed.create_post", map[string]any{"body": "office hours moved"})
	got := reader.awaitVersion(posted.Stream, 1)
	if got.Type != "feed.post_created" || field(got, "body") != "office hours moved" || field(got, "author_id") != author.id {
		t.Fatalf("the reader saw %+v", got)
	}
}

func testNotification(t *testing.T, m *mesh) {
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	raised := func(e client.Event) bool { return e.Type == "notification.raised" }
	got := bob.await("a notification", raised)
	if field(got, "about_stream") != started.Stream || field(got, "by") != alice.id ||
		field(got, "recipient_id") != bob.id || field(got, "reason") != "added_to_conversation" {
		t.Fatalf("bob's notification: %+v %s", got, got.Data)
	}
	group := alice.do("chat.start_group", map[string]any{"title": "g", "user_ids": []string{bob.id}})
	bob.await("a second one", func(e client.Event) bool { return raised(e) && field(e, "about_stream") == group.Stream })
	bob.dense("notifications:"+bob.id, 1, 2)
	if got := alice.versions("notifications:" + alice.id); len(got) != 0 {
		t.Fatalf("the user who added bob was notified: %v", got)
	}
}

func testPresence(t *testing.T, m *mesh) {
	watcher := m.connect(t, someone("watcher"), 0)
	user := someone("bob")
	if _, err := watcher.subscribe("presence:" + user); err != nil {
		t.Fatal(err)
	}
	is := func(kind string, after int64) func(client.Event) bool {
		return func(e client.Event) bool { return e.Type == kind && field(e, "user_id") == user && e.Version > after }
	}
	bob := m.connect(t, user, 1)
	online := watcher.await("bob online", is("presence.came_online", 0))
	second := m.connect(t, user, 0)
	bob.Close()
	second.Abort()
	offline := watcher.await("bob offline", is("presence.went_offline", online.Version))
	m.connect(t, user, 1)
	watcher.await("bob online again", is("presence.came_online", offline.Version))
}

func testBadFrames(t *testing.T, m *mesh) {
	p := m.connect(t, someone("clumsy"), 0)
	ask := func(frame map[string]any) *client.Error {
		t.Helper()
		ctx, cancel := timeout()
		defer cancel()
		r, err := p.Request(ctx, frame)
		var refused *client.Error
		if !errors.As(err, &refused) {
			t.Fatalf("%v was answered with %+v, %v", frame, r, err)
		}
		return refused
	}
	for _, test := range []struct {
		frame          map[string]any
		code, wantText string
	}{
		{map[string]any{"type": "chat.send_mesage", "data": map[string]any{}}, "unknown_type", "chat.send_message"},
		{map[string]any{"data": map[string]any{}}, "malformed", "type"},
		{map[string]any{"type": "chat.send_message", "data": map[string]any{"conversation_id": 7, "body": "x"}}, "invalid_field", "conversation_id"},
		{map[string]any{"type": "chat.send_message", "data": map[string]any{"conversation_id": "7", "body": "x", "bdy": 1}}, "invalid_field", "bdy"},
		{map[string]any{"type": "chat.send_message", "data": map[string]any{"conversation_id": "7", "body": "a\x00b"}}, "invalid_field", "body"},
		{map[string]any{"type": "chat.send_message", "data": map[string]any{"conversation_id": "no;such", "body": "x"}}, "invalid_field", "conversation_id"},
		{map[string]any{"type": "chat.send_message", "data": "text"}, "", ""},
		{map[string]any{"type": "chat.send_message", "command_id": "no good id!", "data": map[string]any{"conversation_id": "7", "body": "x"}}, "invalid_field", "command_id"},
		{map[string]any{"type": "chat.history", "data": map[string]any{"conversation_id": "7", "limit": "many"}}, "invalid_field", "limit"},
		{map[string]any{"type": "subscribe", "data": map[string]any{"rooms": []string{"conversation:7"}}}, "", ""},
	} {
		if data, _ := test.frame["data"].(map[string]any); m.protobuf && (data["conversation_id"] == 7 || data["bdy"] != nil ||
			data["limit"] == "many" || test.frame["data"] == "text" || data["body"] == "a\x00b") {
			continue // Protobuf has no such message, or this client refuses to encode it
		}
		got := ask(test.frame)
		if test.code != "" && got.Code != test.code || !strings.Contains(got.Message, test.wantText) {
			t.Errorf("%v: got %v, want %s and a text with %q", test.frame, got, test.code, test.wantText)
		}
	}
	// Owners refuse these commands and queries. The refusal must name the field, also when a refused command is sent
	// again.
	self := map[string]any{"type": "chat.start_direct", "command_id": "with-myself", "data": map[string]any{"user_id": p.id}}
	for _, test := range []struct {
		frame map[string]any
		field string
	}{
		{self, "user_id"}, {self, "user_id"},
		{map[string]any{"type": "chat.conversations", "data": map[string]any{"limit": 100_000}}, "limit"},
		{map[string]any{"type": "chat.conversations", "data": map[string]any{"after": "none"}}, "after"},
	} {
		if got := ask(test.frame); got.Code != "invalid_field" || got.Field != test.field {
			t.Errorf("%v: got %+v, want a refusal of the field %s", test.frame, got, test.field)
		}
	}
	if m.protobuf {
		for _, raw := range []string{"{", "\x05ab", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x02\xff\xff", "\x00"} {
			if err := p.Write([]byte(raw)); err != nil {
				t.Fatalf("%q: %v", raw, err)
			}
		}
	}
	for _, raw := range []string{"{", "[]", "null", "\xff\xfe", strings.Repeat("[", 5000), `{"id":"1","id":"2","type":7}`} {
		if err := p.Write([]byte(raw)); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
	}
	p.do("chat.start_group", map[string]any{"title": "still usable", "user_ids": []string{}})

	// A frame above the maximum size closes the connection, with a reason. Other connections stay open.
	big := m.connect(t, someone("big"), 0)
	_ = big.Write([]byte(`{"id":"1","type":"chat.send_message","data":{"body":"` + strings.Repeat("x", 1<<20) + `"}}`))
	select {
	case <-big.Done():
	case <-time.After(patience):
		t.Fatal("an oversized frame was accepted")
	}
	p.do("chat.start_group", map[string]any{"title": "others go on", "user_ids": []string{}})
}

func testTokens(t *testing.T, m *mesh) {
	forged, err := auth.Mint("another secret", auth.User{ID: "eve"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"missing": "", "garbage": "x.y.z", "expired": mint(t, "eve", -time.Minute),
		"forged": forged,
	} {
		ctx, cancel := timeout()
		_, err := client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, Token: token})
		if name == "missing" {
			_, err = client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, TokenInFrame: true})
		}
		cancel()
		if codeOf(err) != "unauthorized" {
			t.Errorf("%s token: %v", name, err)
		}
	}
	ctx, cancel := timeout()
	defer cancel()
	c, err := client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, Token: mint(t, someone("eve"), time.Hour), TokenInFrame: true})
	if err != nil {
		t.Fatalf("token in the first frame: %v", err)
	}
	c.Close()
	if _, err := client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, Token: mint(t, someone("eve"), time.Hour),
		Header: http.Header{"Origin": {"https://evil.example"}}}); err == nil {
		t.Error("a foreign origin was accepted")
	}
}

func testNothingUndeclaredIsReachable(t *testing.T, m *mesh) {
	eve := someone("eve")
	procedures := innerProcedures(t)
	for _, path := range procedures {
		for _, prefix := range []string{"", "/api"} {
			if status, answer := m.post(t, eve, prefix+path, map[string]any{}); status < 400 || status >= 500 {
				t.Errorf("%s: %d %v", prefix+path, status, answer)
			}
		}
	}
	for _, name := range []string{"mesh.read_log", "ReadLog", "notification.raised", "chat.message_sent"} {
		if status, _ := m.post(t, eve, "/api/"+name, map[string]any{}); status < 400 || status >= 500 {
			t.Errorf("%s over HTTP: %d", name, status)
		}
		p := m.connect(t, eve, 0)
		p.refused("unknown_type", name, map[string]any{})
	}
	// The inner listeners require the installation's credential. They must not accept a user's token.
	for _, p := range m.processes {
		for _, variable := range p.Env {
			_, url, inner := strings.Cut(variable, "_URL=http://127.0.0.1")
			if !inner || strings.HasPrefix(variable, "DATABASE") {
				continue
			}
			at := &mesh{gateways: []string{"http://127.0.0.1" + url}}
			for _, path := range append(procedures, "/edumatrix.chat.v1.ChatService/History") {
				if status, answer := at.post(t, eve, path, map[string]any{}); status != http.StatusUnauthorized {
					t.Errorf("%s%s: %d %v", variable, path, status, answer)
				}
			}
		}
	}
}

// innerProcedures returns the paths (/service/method) of all methods in proto/ that are not public queries.
func innerProcedures(t *testing.T) (all []string) {
	t.Helper()
	missing := declaredServices(t)
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "edumatrix.") {
			return true
		}
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			if methods.Len() > 0 {
				delete(missing, string(f.Services().Get(i).FullName()))
			}
			for j := range methods.Len() {
				m := methods.Get(j)
				if o, _ := proto.GetExtension(m.Options(), routingv1.E_Query).(*routingv1.Query); !o.GetPublic() {
					all = append(all, "/"+string(m.Parent().FullName())+"/"+string(m.Name()))
				}
			}
		}
		return true
	})
	if len(missing) > 0 {
		t.Fatalf("the test cannot try these services, because it does not import their packages: %v", missing)
	}
	return all
}

// declaredServices returns the services in the files of proto/, including those that this program does not import.
func declaredServices(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../../../proto/edumatrix/*/v1/*.proto")
	if err != nil {
		t.Fatal(err)
	}
	inPackage, service := regexp.MustCompile(`(?m)^package (\S+);`), regexp.MustCompile(`(?m)^service (\w+)`)
	all := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range service.FindAllSubmatch(text, -1) {
			all[string(inPackage.FindSubmatch(text)[1])+"."+string(found[1])] = true
		}
	}
	if len(all) < 5 {
		t.Fatalf("services in proto/: %v", all)
	}
	return all
}

func testHTTP(t *testing.T, m *mesh) {
	alice, bob := someone("alice"), m.connect(t, someone("bob"), 1)
	status, answer := m.post(t, alice, "/api/chat.start_direct", map[string]any{"user_id": bob.id})
	outcome, _ := answer["outcome"].(map[string]any)
	stream, _ := outcome["stream"].(string)
	if status != http.StatusOK || !strings.HasPrefix(stream, "conversation:") {
		t.Fatalf("%d %v", status, answer)
	}
	bob.awaitVersion(stream, 1)
	status, answer = m.post(t, alice, "/api/chat.history", map[string]any{"conversation_id": strings.TrimPrefix(stream, "conversation:")})
	if status != http.StatusOK {
		t.Fatalf("history over HTTP: %d %v", status, answer)
	}
	if status, answer = m.post(t, "", "/api/chat.history", map[string]any{}); status != http.StatusUnauthorized {
		t.Fatalf("without a token: %d %v", status, answer)
	}
	if status, answer = m.post(t, someone("eve"), "/api/chat.history", map[string]any{"conversation_id": strings.TrimPrefix(stream, "conversation:")}); status != http.StatusForbidden {
		t.Fatalf("a stranger: %d %v", status, answer)
	}
}

func testHealth(t *testing.T, m *mesh) {
	const want = `{"status":"healthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":true}}`
	for i, gateway := range m.gateways {
		if got := get(t, gateway+"/health"); strings.TrimSpace(got) != want {
			t.Errorf("health: %s", got)
		}
		if metrics := get(t, m.metrics[i]+"/metrics"); !strings.Contains(metrics, "go_goroutines") {
			t.Errorf("metrics: %.200s", metrics)
		}
	}
}

// testOrder lets both members of several conversations send messages at the same time. Each member must get each
// message of the conversation once and in order.
func testOrder(t *testing.T, m *mesh) {
	const conversations, each = 6, 30
	var wait sync.WaitGroup
	for c := range conversations {
		wait.Go(func() {
			a, b := m.connect(t, someone("a"), c), m.connect(t, someone("b"), c+1)
			started := a.do("chat.start_direct", map[string]any{"user_id": b.id})
			var senders sync.WaitGroup
			for _, p := range []*person{a, b} {
				senders.Go(func() {
					for i := range each {
						if _, err := p.try(uuid.NewString(), "chat.send_message", map[string]any{
							"conversation_id": conversationOf(started), "body": fmt.Sprint(p.id, i)}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			senders.Wait()
			for _, p := range []*person{a, b} {
				p.awaitVersion(started.Stream, 2*each+1)
				p.dense(started.Stream, 1, 2*each+1)
			}
		})
	}
	wait.Wait()
}
