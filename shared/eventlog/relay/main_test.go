package relay

import (
	"testing"

	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var (
	database, pool           = pgtest.Database, pgtest.Pool
	instance, running, fresh = logtest.Instance, logtest.Running, logtest.Fresh
	commit, said             = logtest.Commit, logtest.Said
	during                   = pgtest.During
)

// topicOf returns the topic of an event.
func topicOf(l *eventlog.Log, e envelope.Event) string {
	declared, _ := l.Options().Catalog.Event(e.Type)
	return declared.Topic
}
