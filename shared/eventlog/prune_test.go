package eventlog

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

func seen(user string, upTo int64) Append {
	return Append{Stream: "seen:1:" + user, Expected: AnyVersion, Actor: user,
		Events: []proto.Message{&chatv1.MessagesSeen{ConversationId: "1", UserId: user, UpTo: upTo}}}
}

// The log has old and new events of counters and of a conversation. Only the superseded events of counters that are old
// and published may be deleted. The streams must continue with their next versions.
func TestPruneSuperseded_KeepsTheNewestValueAndWhatIsNotPublished(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, said("1", "c1")) // position 1
	for upTo := range int64(4) {
		commit(t, l, Write{Appends: []Append{seen("ann", upTo), seen("bob", upTo)}}) // positions 2 to 9
	}
	commit(t, l, Write{Appends: []Append{seen("cid", 1)}}) // position 10
	commit(t, l, said("1", "c2"))                          // position 11
	commit(t, l, Write{Appends: []Append{seen("ann", 4)}}) // position 12
	exec := func(statement string, args ...any) {
		t.Helper()
		_, err := l.o.Pool.Exec(t.Context(), statement, args...)
		require.NoError(t, err)
	}
	// All events at positions up to 8 are old. At first, only the events at positions up to 4 are published.
	exec("UPDATE chat.events SET time = time - interval '32 days' WHERE position <= 8")
	positions := func() (all string) {
		page, err := l.Read(t.Context(), Query{})
		require.NoError(t, err)
		for _, e := range page.Events {
			all += fmt.Sprint(" ", e.Position)
		}
		return all
	}
	for _, step := range []struct {
		published, removed int64
		want               string
	}{
		{4, 3, " 1 5 6 7 8 9 10 11 12"},
		{12, 4, " 1 9 10 11 12"}, // 8 is ann's event before the newest one
		{12, 0, " 1 9 10 11 12"},
	} {
		exec("UPDATE chat.relay SET position = $1", step.published)
		removed, err := l.PruneSuperseded(t.Context(), SupersededKept)
		require.NoError(t, err)
		require.Equal(t, step.removed, removed)
		require.Equal(t, step.want, positions())
	}
	commit(t, l, Write{Appends: []Append{seen("ann", 5)}})
	loaded, err := l.Load(t.Context(), Selection{Stream: "seen:1:ann", Newest: true})
	require.NoError(t, err)
	require.EqualValues(t, 6, loaded.Version)
	require.Len(t, loaded.Events, 1)
}

// Most counters are old and have one event only, and there are more of them than one statement examines. All of them
// must be examined, so that the superseded events behind them are found.
func TestPruneSuperseded_ExaminesAllOldEvents(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.events (position, stream, version, id, type, topic, actor, cause, command_type,
  correlation, time, class, rooms, subject, answers, traceparent, body)
SELECT n, 'seen:1:' || CASE WHEN n > 12000 THEN 'ann' ELSE n::text END, greatest(n - 12000, 1), gen_random_uuid(),
  'chat.messages_seen', 'chat-events', 'ann', '', '', '', date_trunc('day', now()) - interval '40 days', 2, '{}', '', false, '', ''
FROM generate_series(1, 18000) n`)
	require.NoError(t, err)
	_, err = l.o.Pool.Exec(t.Context(), "UPDATE chat.relay SET position = 18000")
	require.NoError(t, err)
	removed, err := l.PruneSuperseded(t.Context(), SupersededKept)
	require.NoError(t, err)
	require.EqualValues(t, 5_999, removed)
}

// A gateway or a consumer that lacks an event of a topic reads the log. So the log must store events longer than
// topics.
func TestPruneSuperseded_OnlyWhatNoTopicStoresAnyMore(t *testing.T) {
	t.Parallel()
	c := fresh(t).o.Catalog
	require.EqualValues(t, 2, routingv1.Class_CLASS_COUNTER, "the statement and the index contain the number of the class")
	for _, topic := range c.Topics("") {
		require.Less(t, topic.Retention, SupersededKept, topic.Name)
	}
}
