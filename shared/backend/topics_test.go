package backend

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// A topic that was made when one of three brokers was up has one replica, and keeps it until somebody is told.
func TestDifferences_TellOfReplicasThatAreMissing(t *testing.T) {
	t.Parallel()
	declared := catalog.Topic{Name: "chat-events", Partitions: 3, Retention: time.Hour}
	for name, test := range map[string]struct {
		brokers, replicas, inSync int
		says                      string
	}{
		"one broker":                   {1, 1, 1, ""},
		"two":                          {2, 2, 1, ""},
		"three":                        {3, 3, 2, ""},
		"five":                         {5, 3, 2, ""},
		"more than we would have":      {5, 5, 3, ""},
		"made when there was one":      {3, 1, 1, "topic p.chat-events has 1 replicas, 3 brokers could have 3"},
		"confirmed by one alone":       {3, 3, 1, "topic p.chat-events has min.insync.replicas=1, with 3 replicas it should be 2"},
		"a broker is away at the time": {2, 3, 2, ""},
	} {
		f := found{partitions: 3, retention: time.Hour, replicas: test.replicas, inSync: test.inSync}
		require.Equal(t, test.says, strings.Join(f.differences(declared, "p.chat-events", test.brokers), "; "), name)
	}
}
