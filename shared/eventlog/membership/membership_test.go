package membership

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/interval"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var (
	fresh, commit, sent = logtest.Fresh, logtest.Commit, logtest.Sent
)

func started(conversation string, users ...string) proto.Message {
	return &chatv1.ConversationStarted{ConversationId: conversation, UserIds: users, Title: "title of " + conversation}
}

func on(conversation, commandID string, events ...proto.Message) eventlog.Write {
	return eventlog.Write{Stream: "conversation:" + conversation, Expected: eventlog.AnyVersion, Commands: []eventlog.Decided{{
		Actor: "alice", CommandID: commandID, Type: "chat.any", Events: events}}}
}

func fill(t testing.TB, l *eventlog.Log, f eventlog.Fill) {
	t.Helper()
	if err := l.FillForTest(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func positions(events []eventlog.Logged) (all []catalog.Position) {
	for _, e := range events {
		all = append(all, e.Position)
	}
	return all
}

func TestIntervals_FromTheOpeningToTheClosingEvent(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	added := func(user string) proto.Message { return &chatv1.MemberAdded{ConversationId: "1", UserId: user} }
	left := func(user string) proto.Message { return &chatv1.MemberLeft{ConversationId: "1", UserId: user} }
	commit(t, l, on("2", "c0", started("2", "bob")))
	commit(t, l, on("1", "c1", started("1", "alice", "bob"), sent("1", "m", "x")))
	commit(t, l, on("1", "c2", left("bob"), added("bob"), added("bob"), left("bob"), left("bob"), added("bob")))
	commit(t, l, on("1", "c3", left("alice")))
	const room = "conversation:1"
	in := func(from, until catalog.Position, fromVersion, untilVersion catalog.Version) interval.Interval {
		return interval.Interval{Room: room, From: from, Until: until, FromVersion: fromVersion, UntilVersion: untilVersion}
	}
	for user, want := range map[string][]interval.Interval{
		"alice": {in(2, 10, 1, 9)},
		"bob":   {in(2, 4, 1, 3), in(5, 7, 4, 6), in(9, 0, 8, 0)},
		"carol": nil,
	} {
		got, err := Intervals(t.Context(), l, room, user)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v", user, got, err)
		}
	}
	rooms, asOf, err := Rooms(t.Context(), l, []string{"alice", "bob", "carol"})
	want := map[string][]string{"bob": {"conversation:1", "conversation:2"}}
	if err != nil || asOf != (eventlog.Point{Position: 10, Incarnation: l.Incarnation()}) || !reflect.DeepEqual(rooms, want) {
		t.Errorf("%v at %v, %v", rooms, asOf, err)
	}
}

// storeLists sets maxChanges for one test. The tests that call storeLists do not run in parallel with other tests.
func storeLists(t *testing.T, changes int) {
	was := maxChanges
	maxChanges = changes
	t.Cleanup(func() { maxChanges = was })
}

// A user enters and leaves a room while Rooms is called. The rooms that a call returns must be the rooms as of the
// position that the call returns, whether Rooms has stored the users' rooms in lists (see maxChanges) or not.
func TestRooms_AreAsOfTheirPosition(t *testing.T) {
	for name, changes := range map[string]int{"without lists": maxChanges, "with lists": 0} {
		t.Run(name, func(t *testing.T) {
			storeLists(t, changes)
			l := fresh(t)
			commit(t, l, on("1", "start", started("1", "alice")))
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range 60 {
					m := proto.Message(&chatv1.MemberAdded{ConversationId: "1", UserId: "bob"})
					if i%2 == 1 {
						m = &chatv1.MemberLeft{ConversationId: "1", UserId: "bob"}
					}
					if _, err := l.Commit(t.Context(), on("1", fmt.Sprint(i), m)); err != nil {
						t.Error(err)
					}
				}
			}()
			for going := true; going; {
				select {
				case <-done:
					going = false
				default:
				}
				rooms, asOf, err := Rooms(t.Context(), l, []string{"bob"})
				if err != nil {
					t.Fatal(err)
				}
				position := asOf.Position
				if in := position > 1 && position%2 == 0; in != (len(rooms["bob"]) == 1) {
					t.Fatalf("at %d: %v", position, rooms)
				}
			}
		})
	}
}

// Users enter and leave rooms at random. Rooms must return the rooms of the open memberships, whatever lists it has
// stored before.
func TestRooms_ListsDoNotChangeTheAnswer(t *testing.T) {
	storeLists(t, 3)
	l := fresh(t)
	users := []string{"alice", "bob", "carol"}
	r := rand.New(rand.NewPCG(1, 2))
	written := 0
	for i := range 150 {
		conversation, user := fmt.Sprint(r.IntN(12)), users[r.IntN(len(users))]
		m := proto.Message(&chatv1.MemberAdded{ConversationId: conversation, UserId: user})
		if r.IntN(3) == 0 {
			m = &chatv1.MemberLeft{ConversationId: conversation, UserId: user}
		}
		commit(t, l, on(conversation, fmt.Sprint(i), m))
		if r.IntN(3) > 0 {
			continue // without reading rooms, so that the next read finds a stored list that lacks several changes
		}
		want := map[string][]string{}
		found, err := l.Options().Pool.Query(t.Context(), l.SQL(`SELECT member, array_agg(room ORDER BY room)
FROM owner.memberships WHERE closed_position IS NULL GROUP BY member`))
		require.NoError(t, err)
		var member string
		var rooms []string
		_, err = pgx.ForEachRow(found, []any{&member, &rooms}, func() error { want[member] = rooms; return nil })
		require.NoError(t, err)
		got, _, err := Rooms(t.Context(), l, users)
		require.NoError(t, err)
		require.Equal(t, want, got, "after %d commits", i+1)
		require.NoError(t, l.Options().Pool.QueryRow(t.Context(),
			l.SQL("SELECT count(DISTINCT position) + $1 FROM owner.room_lists"), written).Scan(&written))
	}
	require.Greater(t, written, 20, "lists were stored, at several positions")
}
