package bus_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

func TestDeadLetters_AreReadUpToTheEnd(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		prepare(t, k)
		read := func() []bus.DeadLetterRecord {
			t.Helper()
			all, err := bus.DeadLetters(t.Context(), k, "dead")
			require.NoError(t, err)
			return all
		}
		require.Empty(t, read())

		var sent []*message.Message
		for i := range 300 {
			sent = append(sent, keyed("k", fmt.Sprint(i)))
		}
		sent[0].Metadata.Set("own", "kept")
		publish(t, publisher(t, k), "topic", sent...)
		route(t, k, bus.RouterOptions{DeadLetterTopic: "dead"},
			func(*message.Message) error { return retry.Permanent(errors.New("no way")) })
		var all []bus.DeadLetterRecord
		meshtest.Eventually(t, "all messages are dead letters", func() bool { all = read(); return len(all) == 300 })
		for i, l := range all {
			require.Equal(t, fmt.Sprint("k/", i), l.ID)
			require.EqualValues(t, i, l.Offset)
			require.EqualValues(t, i, l.FromOffset)
			require.Equal(t, []string{"topic", "k", "no way", "test", "handler"}, []string{l.Topic, l.Key, l.Error, l.Service, l.Handler})
			require.WithinDuration(t, time.Now(), l.Time, time.Minute)
			require.Equal(t, fmt.Sprint(i), string(l.Message.Payload))
		}
		require.Equal(t, message.Metadata{"own": "kept", bus.MetadataKey: "k"}, all[0].Message.Metadata)

		// DeadLetters must not wait for records that were deleted from the topic.
		deleteBefore(t, k, "dead", 0, 299)
		all = read()
		require.Len(t, all, 1)
		require.Equal(t, "k/299", all[0].ID)
		deleteBefore(t, k, "dead", 0, 300)
		require.Empty(t, read())

		_, err := bus.DeadLetters(t.Context(), k, "nowhere")
		require.ErrorContains(t, err, "nowhere")
	})
}
