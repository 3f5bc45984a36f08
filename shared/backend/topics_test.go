package backend

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// A topic has fewer replicas than the number of brokers allows, for example because only one of three brokers was up
// when the topic was created, or its min.insync.replicas is too low. The method differences must report both problems.
func TestDifferences_ReportMissingReplicas(t *testing.T) {
	t.Parallel()
	declared := catalog.Topic{Name: "chat-events", Partitions: 3, Retention: time.Hour}
	for name, test := range map[string]struct {
		brokers, replicas, inSync int
		wantText                  string
	}{
		"one broker":                      {1, 1, 1, ""},
		"two brokers":                     {2, 2, 1, ""},
		"three brokers":                   {3, 3, 2, ""},
		"five brokers":                    {5, 3, 2, ""},
		"more than the mesh would create": {5, 5, 3, ""},
		"created with one broker":         {3, 1, 1, "topic p.chat-events has 1 replicas, 3 brokers could have 3"},
		"confirmed by only one":           {3, 3, 1, "topic p.chat-events has min.insync.replicas=1, with 3 replicas it should be 2"},
		"a broker is unavailable":         {2, 3, 2, ""},
	} {
		f := found{partitions: 3, retention: time.Hour, replicas: test.replicas, inSync: test.inSync}
		require.Equal(t, test.wantText, strings.Join(f.differences(declared, "p.chat-events", test.brokers), "; "), name)
	}
}

// One of three brokers gets the metadata of new topics later than the others. EnsureTopics must not return before all
// three have the metadata.
func TestEnsureTopics_WaitsUntilEveryBrokerHasThem(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(3))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	const late, behind = 2, 5
	var asked atomic.Int64
	c.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		request := r.(*kmsg.MetadataRequest)
		if c.CurrentNode() != late || len(request.Topics) == 0 || asked.Add(1) > behind {
			return nil, nil, false
		}
		c.KeepControl()
		answer := request.ResponseKind().(*kmsg.MetadataResponse)
		for node, address := range c.ListenAddrs() {
			b := kmsg.NewMetadataResponseBroker()
			host, port, _ := net.SplitHostPort(address)
			n, _ := strconv.Atoi(port)
			b.NodeID, b.Host, b.Port = int32(node), host, int32(n)
			answer.Brokers = append(answer.Brokers, b)
		}
		for _, t := range request.Topics {
			own := kmsg.NewMetadataResponseTopic()
			own.Topic, own.ErrorCode = t.Topic, kerr.UnknownTopicOrPartition.Code
			answer.Topics = append(answer.Topics, own)
		}
		return answer, nil, true
	})
	k := Kafka{Brokers: c.ListenAddrs()[:1], ClientID: "test"}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = k.EnsureTopics(ctx, []catalog.Topic{{Name: "one", Partitions: 3, Retention: time.Hour},
		{Name: "other", Partitions: 2, Retention: time.Hour}})
	require.NoError(t, err)
	require.Greater(t, asked.Load(), int64(behind), "requests to the broker that knows the topics late")
}
