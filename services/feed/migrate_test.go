//go:build integration

package feed

import (
	"io/fs"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// An earlier release stored feed.post_created with a subject. Commands for posts have no subject now, so a decision
// loads only events without a subject. After the migration, a decision must also load the events of the earlier
// release.
func TestMigration_PostsThatWereLoggedWithASubjectAreLoaded(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	pool, err := backend.Postgres{URL: meshtest.Postgres(t)}.Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	open := func(changes fs.FS) *eventlog.Log {
		log, err := eventlog.Open(t.Context(), eventlog.Options{Owner: "feed", Pool: pool, Catalog: c, Migrations: changes,
			Log: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		return log
	}
	loaded := func(l *eventlog.Log) int {
		found, err := l.Load(t.Context(), eventlog.Selection{Stream: "post:7"})
		require.NoError(t, err)
		require.EqualValues(t, 1, found.Version)
		return len(found.Events)
	}
	before := open(nil)
	_, err = pool.Exec(t.Context(), `INSERT INTO feed.events (position, stream, version, id, type, topic, actor, cause,
command_type, correlation, time, class, rooms, subject, answers, traceparent, body)
VALUES (1, 'post:7', 1, gen_random_uuid(), 'feed.post_created', 'post-events', 'ann', '1', 'feed.create_post', '', now(), 1,
'{post:7,author:ann}', '7', true, '', '')`)
	require.NoError(t, err)
	require.Zero(t, loaded(before))
	changes, err := fs.Sub(migrations, "migrations")
	require.NoError(t, err)
	require.Equal(t, 1, loaded(open(changes)))
}
