package fanout

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// fetched returns an event as the broker returns it.
func fetched(e envelope.Event) *bus.Fetched {
	r := record("chat-events", e.Message())
	return &bus.Fetched{Key: []byte(e.Stream), Value: r.Value, Headers: r.Headers}
}

func (w *world) reacted(user, message string) envelope.Event {
	return w.chat.Answer(user, fmt.Sprint("c-", user, message), "chat.add_reaction", "chat.reactions_changed",
		fmt.Sprintf(`{"conversation_id":"g","message_id":%q,"emoji":"👍"}`, message))
}

// takeAll takes events of one partition in order, as if one fetch had returned all of them. It returns the frames that
// the client gets, which reads each of them at once.
func (w *world) takeAll(t *testing.T, partition int32, events ...envelope.Event) (frames []string) {
	t.Helper()
	var ahead []*bus.Fetched
	for _, e := range events {
		ahead = append(ahead, fetched(e))
	}
	for i := range events {
		require.NoError(t, w.partition(partition).take(t.Context(), w.fan, &events[i], ahead[i+1:]...))
		frames = append(frames, w.seen(t)...)
	}
	return frames
}

// Many events of one counter arrive in one fetch. A client must get the newest one, and all that its own user has
// caused. All outcomes must be resolved.
func TestSuperseded_OfManyEventsOfACounterTheNewestIsDelivered(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	w.take(t, p, first)
	own := w.reacted("bob", "m")
	events := []envelope.Event{own}
	for n := range 250 {
		events = append(events, w.reacted(fmt.Sprint("user", n), "m"))
	}
	w.seen(t)
	require.Equal(t, []string{"chat.reactions_changed", "chat.reactions_changed"}, w.takeAll(t, w.chat.Partition(own), events...),
		"bob's own event, and the newest one")
	require.Len(t, w.results, len(events), "each command has its outcome")
}

func TestSuperseded_OnlyByANewerEventOfTheSameCounter(t *testing.T) {
	t.Parallel()
	w := begin(t)
	older, newer, other := w.reacted("alice", "m"), w.reacted("bob", "m"), w.reacted("bob", "n")
	message := w.messageSent("g", "hi")
	later := w.messageSent("g", "there")
	restored := newer
	restored.Incarnation = "another"
	broken := fetched(newer)
	broken.Headers = nil
	for name, test := range map[string]struct {
		event envelope.Event
		ahead []*bus.Fetched
		want  bool
	}{
		"by a newer event":                       {older, []*bus.Fetched{fetched(newer)}, true},
		"by one that follows others":             {older, []*bus.Fetched{fetched(other), fetched(message), fetched(newer)}, true},
		"not by an older event that is repeated": {newer, []*bus.Fetched{fetched(older)}, false},
		"not by a repeat of itself":              {newer, []*bus.Fetched{fetched(newer)}, false},
		"not by another counter":                 {older, []*bus.Fetched{fetched(other)}, false},
		"not by an event that was lost":          {older, []*bus.Fetched{fetched(restored)}, false},
		"not by a record that cannot be read":    {older, []*bus.Fetched{broken}, false},
		"not at the end of a fetch":              {older, nil, false},
		"not a durable event":                    {message, []*bus.Fetched{fetched(later)}, false},
	} {
		require.Equal(t, test.want, superseded(&test.event, test.ahead), name)
	}
}
