package membership

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

func TestFacts_AreThoseOfTheMembersNow(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	added := func(user string) proto.Message { return &chatv1.MemberAdded{ConversationId: "1", UserId: user} }
	left := func(user string) proto.Message { return &chatv1.MemberLeft{ConversationId: "1", UserId: user} }
	commit(t, l, on("2", "c0", started("2", "alice", "bob", "carol", "dan")))
	commit(t, l, on("1", "c1", started("1", "alice", "bob"), sent("1", "m", "x"))) // versions 1 and 2
	commit(t, l, on("1", "c2", left("bob"), added("bob"), added("carol"), left("carol")))
	const one, two = "conversation:1", "conversation:2"
	got, err := Facts(t.Context(), l, []Fact{{one, "bob", 9}, {one, "alice", 1}, {one, "carol", 9}, {two, "dan", 3},
		{"conversation:none", "alice", 9}})
	require.NoError(t, err)
	require.Equal(t, []catalog.Room{
		{Version: 6, Joined: 4, Members: 2},
		{Version: 6, Joined: 1, Members: 1}, // members are counted up to 1
		{Version: 6, Members: 2},            // carol has left
		{Version: 1, Joined: 1, Members: 3},
		{},
	}, got)
}

// A room has 2,000 members, and 20,000 users have left it. Reading facts about it must read only the members that are
// counted.
func TestPlans_FactsAboutALargeRoomAreBounded(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	_, err := l.Options().Pool.Exec(t.Context(), `
INSERT INTO chat.memberships (room, member, opened_version, opened_position, closed_version, closed_position)
SELECT 'conversation:big', 'user' || n, n, n, CASE WHEN n > 2000 THEN n END, CASE WHEN n > 2000 THEN n END
FROM generate_series(1, 22000) n`)
	require.NoError(t, err)
	others(t, l, 30_000)
	_, err = l.Options().Pool.Exec(t.Context(), "VACUUM ANALYZE chat.memberships")
	require.NoError(t, err)
	p := explain(t, l, sqlFacts, []string{"conversation:big"}, []string{"user7"}, []int32{33})
	require.LessOrEqual(t, p.RowsRead(), int64(33+2))
	require.Empty(t, p.Scanned())
}
