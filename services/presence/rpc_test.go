//go:build integration

package presence

import (
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/go-redis/v9"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/envelope"
)

func TestReport_RefusesInvalidReports(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		changed := 0
		c := &connections{store.New(r, "t.", time.Minute), func() { changed++ }}
		report := func(m *meshv1.ReportRequest) (again bool, code string) {
			t.Helper()
			answer, err := c.Report(t.Context(), connect.NewRequest(m))
			if refused, ok := refusal.Of(err); ok {
				return false, refused.Code
			} else if err != nil {
				t.Fatal(err)
			}
			return answer.Msg.GetReportAll(), ""
		}
		change := func(connection, user string) []*meshv1.ConnectionChange {
			return []*meshv1.ConnectionChange{{Connection: connection, User: user}}
		}
		for name, m := range map[string]*meshv1.ReportRequest{
			"no gateway":         {Number: 1, All: true},
			"an invalid gateway": {Gateway: "a b", Number: 1, All: true},
			"no connection":      {Gateway: "g", Number: 1, All: true, Changes: change("", "bob")},
			"an invalid user":    {Gateway: "g", Number: 1, All: true, Changes: change("c", "bob smith")},
			"an invalid session": {Gateway: "g", Number: 1, All: true, Changes: []*meshv1.ConnectionChange{
				{Connection: "c", User: "bob", Session: "a b"}}},
			"an invalid resume token": {Gateway: "g", Number: 1, All: true, Changes: []*meshv1.ConnectionChange{
				{Connection: "c", User: "bob", Session: "s", ResumeToken: "a b"}}},
			"an invalid room": {Gateway: "g", Number: 1, All: true, Changes: []*meshv1.ConnectionChange{
				{Connection: "c", User: "bob", Session: "s", Rooms: &meshv1.SubscribedRooms{Rooms: []string{"post:7 post:8"}}}}},
		} {
			if _, code := report(m); code != refusal.InvalidField {
				t.Errorf("%s: %q", name, code)
			}
		}
		if again, code := report(&meshv1.ReportRequest{Gateway: "g", Number: 5}); !again || code != "" {
			t.Errorf("an unknown gateway: %v %q", again, code)
		}
		if again, code := report(&meshv1.ReportRequest{Gateway: "g", Number: 6, All: true}); again || code != "" {
			t.Errorf("a full report: %v %q", again, code)
		}
		if again, code := report(&meshv1.ReportRequest{Gateway: "g", Number: 6, All: true}); again || code != "" {
			t.Errorf("the same report again, as after a lost answer: %v %q", again, code)
		}
		if _, code := report(&meshv1.ReportRequest{Gateway: "g", Number: 5}); code != "old_report" {
			t.Errorf("an old report: %q", code)
		}
		if changed != 3 {
			t.Errorf("%d reports were applied", changed)
		}
	})
}

func TestSessionRooms_AreThoseThatWereReported(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		c := &connections{store.New(r, "t.", time.Minute), func() {}}
		if _, err := c.Report(t.Context(), connect.NewRequest(&meshv1.ReportRequest{Gateway: "g", Number: 1, All: true,
			Changes: []*meshv1.ConnectionChange{{Connection: "c", User: "bob", Session: "s",
				Rooms: &meshv1.SubscribedRooms{Rooms: []string{"post:7", "presence:f%3A1"}}}}})); err != nil {
			t.Fatal(err)
		}
		ask := func(sessions ...*meshv1.SessionOf) ([]*meshv1.SubscribedRooms, error) {
			answer, err := c.SessionRooms(t.Context(), connect.NewRequest(&meshv1.SessionRoomsRequest{Sessions: sessions}))
			if err != nil {
				return nil, err
			}
			return answer.Msg.GetSessions(), nil
		}
		bob := &meshv1.SessionOf{User: "bob", Session: "s"}
		got, err := ask(&meshv1.SessionOf{User: "carol", Session: "s"}, bob)
		if err != nil || len(got) != 2 || len(got[0].GetRooms()) > 0 || !slices.Equal(got[1].GetRooms(), []string{"post:7", "presence:f%3A1"}) {
			t.Errorf("%v %v", got, err)
		}
		for _, wrong := range [][]*meshv1.SessionOf{{{User: "bob"}}, {{Session: "s"}}, {{User: "b b", Session: "s"}}, slices.Repeat([]*meshv1.SessionOf{bob}, 101)} {
			if _, err := ask(wrong...); err == nil {
				t.Errorf("an invalid request for %d sessions, the first of them %v, was answered", len(wrong), wrong[0])
			}
		}
		if got, err := ask(); err != nil || len(got) > 0 {
			t.Errorf("no sessions: %v %v", got, err)
		}
	})
}

func TestOwner_ShowsOnlyPresenceButToEveryUser(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		o := &owner{s, declared(t)}
		connected(t, s, "g", 1, "bob", "dan")
		connected(t, s, "g", 2, "bob")
		subscriptions := []*meshv1.Subscription{
			{User: "alice", Room: "presence:bob", Snapshot: true}, {User: "alice", Room: "presence:dan", Snapshot: true},
			{User: "alice", Room: "presence:nobody", Snapshot: true}, {User: "alice", Room: "presence:bob"},
			{User: "alice", Room: "presence:", Snapshot: true}, {User: "alice", Room: "presence:a b", Snapshot: true},
			{User: "alice", Room: "user:bob", Snapshot: true}, {User: "alice", Room: "conversation:7", Snapshot: true},
		}
		answer, err := o.AuthorizeSubscriptions(t.Context(), connect.NewRequest(&meshv1.AuthorizeSubscriptionsRequest{Subscriptions: subscriptions}))
		if err != nil || len(answer.Msg.GetAuthorizations()) != len(subscriptions) || answer.Msg.GetPosition() != 0 {
			t.Fatalf("%v %v", answer, err)
		}
		for i, want := range []struct {
			allowed bool
			shown   string
		}{{true, "presence.came_online"}, {true, "presence.went_offline"}, {true, "presence.went_offline"}, {true, ""},
			{false, ""}, {false, ""}, {false, ""}, {false, ""}} {
			got := answer.Msg.GetAuthorizations()[i]
			shown := ""
			for _, record := range got.GetSnapshot() {
				e, err := envelope.ReadRecord(record)
				if err != nil || record.GetTopic() != "user-actions" || e.Stream != subscriptions[i].GetRoom() || e.Version == 0 {
					t.Errorf("the snapshot of %s is %+v, %v", subscriptions[i].GetRoom(), e, err)
				}
				shown += e.Type
			}
			if got.GetAllowed() != want.allowed || shown != want.shown {
				t.Errorf("%s: %v %q", subscriptions[i].GetRoom(), got.GetAllowed(), shown)
			}
		}
		rooms, err := o.Rooms(t.Context(), connect.NewRequest(&meshv1.RoomsRequest{Users: []string{"bob", "dan"}}))
		if err != nil || rooms.Msg.GetPosition() != 0 || len(rooms.Msg.GetUsers()) != 2 ||
			rooms.Msg.GetUsers()[0].GetUser() != "bob" || len(rooms.Msg.GetUsers()[0].GetRooms()) != 0 {
			t.Errorf("rooms: %v %v", rooms, err)
		}
		log, err := o.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
		if err != nil || len(log.Msg.GetRecords()) != 0 || log.Msg.GetHead() != 0 {
			t.Errorf("log: %v %v", log, err)
		}
	})
}

func TestDropLetter_IsStored(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		o := &operator{store: store.New(r, "t.", time.Minute)}
		letter := &meshv1.DeadLetter{Partition: 1, Offset: 7, Id: "an id"}
		for range 2 {
			if _, err := o.DropDeadLetter(t.Context(), connect.NewRequest(&meshv1.DropDeadLetterRequest{DeadLetter: letter})); err != nil {
				t.Fatal(err)
			}
		}
		answer, err := o.ListDropped(t.Context(), connect.NewRequest(&meshv1.ListDroppedRequest{}))
		if err != nil || len(answer.Msg.GetDeadLetters()) != 1 || answer.Msg.GetDeadLetters()[0].String() != letter.String() {
			t.Fatalf("%v %v", answer, err)
		}
	})
}

// The gateway renews a subscription of a client that already has the state. AuthorizeSubscriptions must then not read
// the state from Redis again.
func TestSubscribe_ARenewalReadsNoStates(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	o := &owner{store: store.New(client, "", time.Minute), catalog: c}
	look := func(snapshot bool) (*connect.Response[meshv1.AuthorizeSubscriptionsResponse], error) {
		return o.AuthorizeSubscriptions(t.Context(), connect.NewRequest(&meshv1.AuthorizeSubscriptionsRequest{Subscriptions: []*meshv1.Subscription{
			{User: "ann", Room: "presence:bob", Snapshot: snapshot}, {User: "ann", Room: "post:7", Snapshot: true}}}))
	}
	answer, err := look(false)
	if err != nil || !answer.Msg.GetAuthorizations()[0].GetAllowed() || answer.Msg.GetAuthorizations()[1].GetAllowed() {
		t.Fatalf("%v %v", answer, err)
	}
	if _, err := look(true); err == nil {
		t.Fatal("a state was returned without Redis")
	}
}
