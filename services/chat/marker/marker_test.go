package marker_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/marker"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

const stream = "marker:7:ann"

func read(upTo int64) proto.Message {
	return &chatv1.MarkRead{ConversationId: "7", UpTo: upTo}
}

func unread(from int64) proto.Message {
	return &chatv1.MarkUnread{ConversationId: "7", From: from}
}

func moved(upTo, seen int64) proto.Message {
	return &chatv1.ReadMarkerMoved{ConversationId: "7", UserId: "ann", UpTo: upTo, SeenUpTo: seen}
}

func seen(upTo int64) proto.Message {
	return &chatv1.MessagesSeen{ConversationId: "7", UserId: "ann", UpTo: upTo}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	at := func(upTo, seen int64) decidetest.History {
		return decidetest.Given(decidetest.By("ann", moved(upTo, seen)))
	}
	none := decidetest.Given()
	small := catalog.Room{Version: 20, Joined: 1, Members: marker.MaxShown}
	large := catalog.Room{Version: 20, Joined: 1, Members: marker.MaxShown + 1}
	late := catalog.Room{Version: 20, Joined: 8, Members: 3}
	decidetest.Test(t, stream, marker.New, map[string]decidetest.Case{
		"read":                         none.When("ann", read(5)).In(small).Then(moved(5, 5), seen(5)),
		"read further":                 at(5, 5).When("ann", read(9)).In(small).Then(moved(9, 9), seen(9)),
		"read the same":                at(5, 5).When("ann", read(5)).In(small).Unchanged(),
		"read less":                    at(5, 5).When("ann", read(3)).In(small).Unchanged(),
		"read up to the newest":        none.When("ann", read(20)).In(small).Then(moved(20, 20), seen(20)),
		"read beyond the newest":       none.When("ann", read(21)).In(small).Then(moved(20, 20), seen(20)),
		"read up to the largest":       none.When("ann", read(math.MaxInt64)).In(small).Then(moved(20, 20), seen(20)),
		"read beyond, read already":    at(20, 20).When("ann", read(math.MaxInt64)).In(small).Unchanged(),
		"read in a large group":        none.When("ann", read(5)).In(large).Then(moved(5, 5)),
		"read in a group that shrank":  at(5, 5).When("ann", read(6)).In(small).Then(moved(6, 6), seen(6)),
		"read before joining":          none.When("ann", read(7)).In(late).Unchanged(),
		"read the joining itself":      none.When("ann", read(8)).In(late).Unchanged(),
		"read after joining":           none.When("ann", read(9)).In(late).Then(moved(9, 9), seen(9)),
		"read after joining again":     at(5, 5).When("ann", read(9)).In(late).Then(moved(9, 9), seen(9)),
		"read old after joining again": at(5, 5).When("ann", read(6)).In(late).Unchanged(),
		"read an unknown conversation": none.When("ann", read(5)).In(catalog.Room{}).Unchanged(), // the log refuses it

		"unread":                   at(9, 9).When("ann", unread(6)).In(small).Then(moved(5, 9)),
		"unread the newest":        at(20, 20).When("ann", unread(20)).In(small).Then(moved(19, 20)),
		"unread everything":        at(9, 9).When("ann", unread(1)).In(small).Then(moved(1, 9)),
		"unread what is unread":    at(9, 9).When("ann", unread(10)).In(small).Unchanged(),
		"unread the future":        at(9, 9).When("ann", unread(math.MaxInt64)).In(small).Unchanged(),
		"unread what was not read": none.When("ann", unread(1)).In(small).Unchanged(),
		"unread before joining":    at(9, 9).When("ann", unread(2)).In(late).Then(moved(8, 9)),
		"unread after joining":     none.When("ann", unread(9)).In(late).Unchanged(),
		// Other members do not see that ann reads the same messages again.
		"read again after unread":   at(5, 9).When("ann", read(8)).In(small).Then(moved(8, 9)),
		"read further after unread": at(5, 9).When("ann", read(10)).In(small).Then(moved(10, 10), seen(10)),

		"a message that is not a command": none.When("ann", moved(1, 1)).In(small).Refused(refusal.UnknownType),
	})
}

// A run of commands is decided with and without merging. The last event must be the same, and merging must never lead
// to more events.
func TestMerge_LeadsToTheSameMarker(t *testing.T) {
	t.Parallel()
	by := decidetest.Origin("ann")
	by.Room = catalog.Room{Version: 20, Joined: 2, Members: 3}
	decide := func(commands ...proto.Message) (s *marker.State, last proto.Message, n int) {
		s = marker.New(stream)
		decidetest.Evolve(t, s, stream, decidetest.By("ann", moved(10, 12)))
		for _, c := range commands {
			for _, e := range decidetest.Decide(t, s, by, c).Events {
				if _, own := e.(*chatv1.ReadMarkerMoved); own {
					s.Evolve(catalog.Fact{}, e)
					last, n = e, n+1
				}
			}
		}
		return s, last, n
	}
	var all []proto.Message
	for _, v := range []int64{1, 4, 9, 11, 13, 14, 99} {
		all = append(all, read(v), unread(v))
	}
	merged := 0
	for _, first := range all {
		for _, second := range all {
			both := marker.New(stream).Merge(first, second)
			if both == nil {
				require.NotEqual(t, proto.MessageName(first), proto.MessageName(second), "%v %v", first, second)
				continue
			}
			merged++
			apart, last, n := decide(first, second)
			together, lastMerged, nMerged := decide(both)
			require.Equal(t, apart, together, "%v %v", first, second)
			require.True(t, proto.Equal(last, lastMerged))
			require.LessOrEqual(t, nMerged, n)
		}
	}
	require.Equal(t, 2*7*7, merged)
}

// The commands must count at least one member more than the number in which others see the marker. Otherwise every
// conversation would be small.
func TestMarkRead_CountsMoreMembersThanAreShown(t *testing.T) {
	t.Parallel()
	o := proto.GetExtension((&chatv1.MarkRead{}).ProtoReflect().Descriptor().Options(), routingv1.E_Command).(*routingv1.Command)
	require.EqualValues(t, marker.MaxShown+1, o.CountMembersUpTo)
}
