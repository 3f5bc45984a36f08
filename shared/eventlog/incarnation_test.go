package eventlog

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// lose deletes the events above a position from the log's database. A failover to a replica that lags behind has the
// same effect.
func lose(t *testing.T, l *Log, above int64) {
	t.Helper()
	for _, s := range []string{"DELETE FROM chat.events WHERE position > $1", "DELETE FROM chat.event_rooms WHERE position > $1",
		"DELETE FROM chat.outcomes WHERE position > $1",
		"UPDATE chat.relay SET position = least(position, $1), partitions = '{}'"} {
		_, err := l.o.Pool.Exec(t.Context(), s, above)
		require.NoError(t, err)
	}
}

// A failover loses events while an instance keeps running. The instance remembers a higher position than the log now
// has, so it can notice the loss. It must begin a new incarnation above that position, and other instances must be
// notified of the new incarnation.
func TestIncarnation_ChangesIfAnInstanceHasSeenAHigherPosition(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	for i := range 10 {
		commit(t, l, said("1", fmt.Sprint(i)))
	}
	first := l.Incarnation()
	lose(t, l, 6)
	c := commit(t, l, said("1", "after"))
	assert.Equal(t, catalog.Position(10+incarnationMargin+1), c.Position)
	assert.NotEqual(t, first, l.Incarnation())
	meshtest.Eventually(t, "the other instance is notified", func() bool { return other.Incarnation() == l.Incarnation() })
	assert.Equal(t, c.Position+1, commit(t, other, said("1", "other")).Position)
}

// An operator begins a new incarnation and names a position. All later events must get positions above it.
func TestReincarnate_ContinuesAboveAPosition(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, said("1", "a"))
	at, err := l.Reincarnate(t.Context(), 500)
	require.NoError(t, err)
	assert.Equal(t, catalog.Position(500+incarnationMargin), at.Position)
	newest, err := l.Newest(t.Context())
	require.NoError(t, err)
	assert.Equal(t, at, newest)
	assert.Equal(t, at.Position+1, commit(t, l, said("1", "b")).Position)
}
