package eventlog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// A command has the id of an earlier command. If the digests of the two commands differ, the second is refused. If the
// digests are the same, or one of them is unknown because an earlier release stored none, the second command gets the
// outcome of the first.
func TestCommit_AnIDStandsForOneCommand(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	write := func(id, digest string) Write {
		w := said("1", id)
		w.Commands[0].Digest = digest
		return w
	}
	commit(t, l, write("new", "first"))
	commit(t, l, write("old", ""))
	for _, c := range []struct {
		id, digest string
		kind       envelope.Kind
		code       string
	}{
		{"new", "first", envelope.Committed, ""},
		{"new", "second", envelope.Refused, refusal.IDReused},
		{"new", "", envelope.Committed, ""},
		{"old", "first", envelope.Committed, ""},
	} {
		_, err := l.Commit(t.Context(), write(c.id, c.digest))
		got := failsAs[*RepeatedError](t, err).Outcomes[0]
		assert.Equal(t, []any{c.kind, c.code}, []any{got.Kind, got.Code}, "%s %s", c.id, c.digest)
	}
}

// An event is too large for any topic. The write that contains the event must fail, and the log must stay empty.
func TestCommit_RefusesAnEventThatNoTopicTakes(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	users := make([]string, 7000)
	for i := range users {
		users[i] = fmt.Sprint(strings.Repeat("u", 128), i)
	}
	_, err := l.Commit(t.Context(), Write{Stream: "conversation:1", Expected: AnyVersion, Commands: []Decided{{Actor: "alice",
		CommandID: "c", Type: "chat.start_group", Events: []proto.Message{started("1", users...)}}}})
	failsAs[*WriteError](t, err)
	head, err := l.Head(t.Context())
	require.NoError(t, err)
	assert.Zero(t, head)
}
