package eventlog

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// bounded runs a log in which each user may be in at most the given number of conversations.
func bounded(t *testing.T, url string, conversations int) *Log {
	t.Helper()
	l := instance(t, url)
	l.BoundRooms("conversation", conversations)
	during(t, l.Run)
	return l
}

func starts(conversation, actor string, users ...string) Write {
	return Write{Stream: "conversation:" + conversation, Expected: AnyVersion, Commands: []Decided{{Actor: actor,
		CommandID: "start-" + conversation, Type: "chat.start_group", Events: []proto.Message{started(conversation, users...)}}}}
}

func change(conversation, actor, id string, event proto.Message) Write {
	return Write{Stream: "conversation:" + conversation, Expected: AnyVersion, Commands: []Decided{{Actor: actor,
		CommandID: id, Type: "chat.add_member", Events: []proto.Message{event}}}}
}

// assertCounts asserts that the table member_rooms contains, for each user, the number of rooms in which the user is.
func assertCounts(t *testing.T, l *Log) {
	t.Helper()
	rows, err := l.o.Pool.Query(t.Context(), `
SELECT member || ' ' || kind || ': ' || coalesce(m.rooms, 0) || ' counted, ' || coalesce(h.rooms, 0) || ' in fact'
FROM (SELECT member, split_part(room, ':', 1) AS kind, count(*) AS rooms FROM chat.memberships
  WHERE closed_position IS NULL GROUP BY 1, 2) h
FULL JOIN chat.member_rooms m USING (member, kind) WHERE coalesce(m.rooms, 0) <> coalesce(h.rooms, 0)`)
	require.NoError(t, err)
	wrong, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	assert.Empty(t, wrong)
}

func assertTooMany(t *testing.T, err error, text string) {
	t.Helper()
	refused := failsAs[*RefusedError](t, err)
	require.Len(t, refused.Refusals, 1)
	for _, r := range refused.Refusals {
		assert.Equal(t, refusal.TooMany, r.Code)
		assert.Contains(t, r.Text, text)
	}
}

// A user is in as many rooms as the bound allows. A command that would add the user to another room must be refused,
// whether the user or somebody else sends it. After the user has left a room, such a command must succeed.
func TestBoundRooms_RefusesOneMore(t *testing.T) {
	t.Parallel()
	l := bounded(t, database(t), 3)
	for n := range 3 {
		commit(t, l, starts(fmt.Sprint(n), "bob", "bob"))
	}
	_, err := l.Commit(t.Context(), starts("more", "bob", "bob", "ann"))
	assertTooMany(t, err, "you may be in at most 3 conversations; leave one first")
	_, err = l.Commit(t.Context(), starts("more", "ann", "ann", "bob"))
	assertTooMany(t, err, "a user whom you named would be in more than 3 conversations")
	commit(t, l, starts("hers", "ann", "ann"))
	_, err = l.Commit(t.Context(), change("hers", "ann", "add", &chatv1.MemberAdded{ConversationId: "hers", UserId: "bob"}))
	assertTooMany(t, err, "a user whom you named")
	assertCounts(t, l)

	commit(t, l, change("1", "bob", "leave", &chatv1.MemberLeft{ConversationId: "1", UserId: "bob"}))
	commit(t, l, change("hers", "ann", "add again", &chatv1.MemberAdded{ConversationId: "hers", UserId: "bob"}))
	_, err = l.Commit(t.Context(), starts("more", "bob", "bob"))
	assertTooMany(t, err, "you may be in at most 3")
	assertCounts(t, l)
	for user, want := range map[string][]string{"bob": {"conversation:0", "conversation:2", "conversation:hers"},
		"ann": {"conversation:hers"}} {
		var rooms []string
		require.NoError(t, l.o.Pool.QueryRow(t.Context(), `SELECT array_agg(room ORDER BY room) FROM chat.memberships
WHERE member = $1 AND closed_position IS NULL`, user).Scan(&rooms))
		assert.Equal(t, want, rooms)
	}
}

// Many commands add one user to rooms at the same time, on two instances, often several in one transaction. Only as
// many as the bound allows must be committed.
func TestBoundRooms_IsExact(t *testing.T) {
	t.Parallel()
	const rooms, tries = 5, 40
	url := database(t)
	instances := []*Log{bounded(t, url, rooms), bounded(t, url, rooms)}
	var all sync.WaitGroup
	var mu sync.Mutex
	committed := 0
	for n := range tries {
		all.Go(func() {
			_, err := instances[n%2].Commit(t.Context(), starts(fmt.Sprint(n), fmt.Sprint("friend", n), fmt.Sprint("friend", n), "bob"))
			var refused *RefusedError
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				committed++
			} else if !errors.As(err, &refused) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	assert.Equal(t, rooms, committed)
	assertCounts(t, instances[0])

	// One Write has two commands, and the bound allows one room. The second command must be refused.
	l := bounded(t, database(t), 1)
	w := starts("1", "bob", "bob")
	w.Commands = append(w.Commands, starts("2", "bob", "bob").Commands[0])
	w.Commands[1].Stream, w.Commands[1].Expected = "conversation:2", AnyVersion
	_, err := l.Commit(t.Context(), w)
	refused := failsAs[*RefusedError](t, err)
	assert.Contains(t, refused.Refusals, 1)
	assert.NotContains(t, refused.Refusals, 0)
}

// A user is in more rooms than a new bound allows. The user must stay in them. Events that no command has caused must
// not be refused, even if they add the user to another room.
func TestBoundRooms_KeepsExistingRooms(t *testing.T) {
	t.Parallel()
	url := database(t)
	before := running(t, url)
	for n := range 4 {
		commit(t, before, starts(fmt.Sprint(n), "bob", "bob"))
	}
	l := bounded(t, url, 2)
	commit(t, l, said("1", "hello"))
	commit(t, l, change("1", "bob", "leave", &chatv1.MemberLeft{ConversationId: "1", UserId: "bob"}))
	_, err := l.Commit(t.Context(), starts("more", "bob", "bob"))
	assertTooMany(t, err, "you may be in at most 2 conversations; leave one first")
	commit(t, l, Write{Appends: []Append{{Stream: "conversation:learnt", Expected: AnyVersion,
		Events: []proto.Message{started("learnt", "bob")}}}})
	assertCounts(t, l)
}

// Memberships exist before the migration that adds the counts of rooms. The migration must count them.
func TestBoundRooms_CountsEarlierEvents(t *testing.T) {
	t.Parallel()
	l := bounded(t, database(t), 3)
	in(t, l, "bob", 0, 3)
	in(t, l, "ann", 1, 3)
	assertCounts(t, l)
	for _, part := range []string{"Down", "Up"} {
		_, err := l.o.Pool.Exec(t.Context(), "SET search_path = chat;"+part60(t, part)+";RESET search_path",
			pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err, part)
	}
	assertCounts(t, l)
	_, err := l.Commit(t.Context(), starts("more", "bob", "bob"))
	assertTooMany(t, err, "you may be in at most 3")
	commit(t, l, starts("more", "ann", "ann"))
	assertCounts(t, l)
}

// part60 returns the statements of migration 60, which adds the counts of rooms, for one direction ("Up" or "Down").
func part60(t *testing.T, direction string) string {
	t.Helper()
	raw, err := migrations.ReadFile("migrations/00060_member_rooms.sql")
	require.NoError(t, err)
	_, statements, found := strings.Cut(string(raw), "-- +goose "+direction)
	require.True(t, found)
	statements, _, _ = strings.Cut(statements, "-- +goose Down")
	return statements
}
