package membership

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/interval"
)

func joined(conversation, user string) proto.Message {
	return &chatv1.MemberAdded{ConversationId: conversation, UserId: user}
}

func parted(conversation, user string) proto.Message {
	return &chatv1.MemberLeft{ConversationId: conversation, UserId: user}
}

// comings returns a log in which bob enters and leaves rooms repeatedly. The log has an event at each of these
// positions:
//
//	1 started  2 a  3 bob enters  4 b  5 bob leaves  6 c  7 bob enters  8 d   conversation 1
//	9 started with bob  10 e  11 bob leaves  12 f                             conversation 2
func comings(t *testing.T) *eventlog.Log {
	t.Helper()
	l := fresh(t)
	commit(t, l, on("1", "c1", started("1", "alice"), sent("1", "a", "a"), joined("1", "bob"), sent("1", "b", "b"),
		parted("1", "bob"), sent("1", "c", "c"), joined("1", "bob"), sent("1", "d", "d")))
	commit(t, l, on("2", "c2", started("2", "alice", "bob"), sent("2", "e", "e"), parted("2", "bob"), sent("2", "f", "f")))
	return l
}

func TestResume_ReturnsIntervalsAndTheEventsInThem(t *testing.T) {
	t.Parallel()
	l := comings(t)
	one, two := "conversation:1", "conversation:2"
	in := func(room string, from, until catalog.Position) interval.Interval {
		return interval.Interval{Room: room, From: from, Until: until}
	}
	for name, test := range map[string]struct {
		resumers  []Resumer
		intervals [][]interval.Interval
		want      []catalog.Position
	}{
		"from the beginning": {[]Resumer{{"bob", 0, 0, nil}},
			[][]interval.Interval{{in(one, 3, 5), in(one, 7, 0), in(two, 9, 11)}}, []catalog.Position{3, 4, 5, 7, 8, 9, 10, 11}},
		"within an interval": {[]Resumer{{"bob", 3, 3, nil}}, [][]interval.Interval{{in(one, 3, 5), in(one, 7, 0), in(two, 9, 11)}},
			[]catalog.Position{4, 5, 7, 8, 9, 10, 11}},
		"at the end of an interval":    {[]Resumer{{"bob", 5, 5, nil}}, [][]interval.Interval{{in(one, 7, 0), in(two, 9, 11)}}, []catalog.Position{7, 8, 9, 10, 11}},
		"with EventsAfter above After": {[]Resumer{{"bob", 4, 9, nil}}, [][]interval.Interval{{in(one, 3, 5), in(one, 7, 0), in(two, 9, 11)}}, []catalog.Position{10, 11}},
		"at the head":                  {[]Resumer{{"bob", 12, 12, nil}}, [][]interval.Interval{{in(one, 7, 0)}}, nil},
		"above the head":               {[]Resumer{{"bob", 99, 99, nil}}, [][]interval.Interval{{in(one, 7, 0)}}, nil},
		"a stranger":                   {[]Resumer{{"eve", 0, 0, nil}}, [][]interval.Interval{nil}, nil},
		"several, with events that they share": {[]Resumer{{"eve", 0, 0, nil}, {"bob", 9, 9, nil}, {"alice", 10, 10, nil}},
			[][]interval.Interval{nil, {in(one, 7, 0), in(two, 9, 11)}, {in(one, 1, 0), in(two, 9, 0)}}, []catalog.Position{10, 11, 12}},
	} {
		got, err := Resume(t.Context(), l, test.resumers, Bounds{})
		if err != nil {
			t.Fatal(err)
		}
		var intervals [][]interval.Interval
		for _, r := range got.Resumed {
			intervals = append(intervals, r.Intervals)
			if r.NotRecovered != nil {
				t.Errorf("%s: not recovered %v", name, r.NotRecovered)
			}
		}
		if !reflect.DeepEqual(intervals, test.intervals) || !slices.Equal(positions(got.Events), test.want) || got.Head.Position != 12 {
			t.Errorf("%s: %v %v head %d", name, intervals, positions(got.Events), got.Head.Position)
		}
	}
}

func TestResume_LeavesOutOnlyRoomsThatAreNotRecovered(t *testing.T) {
	t.Parallel()
	l := comings(t)
	got, err := Resume(t.Context(), l, []Resumer{{"bob", 0, 0, nil}, {"bob", 5, 5, nil}, {"alice", 10, 10, nil}},
		Bounds{Events: 4})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]string{{"conversation:1"}, nil, nil} {
		if !slices.Equal(got.Resumed[i].NotRecovered, want) {
			t.Errorf("%d: %v, want %v", i, got.Resumed[i].NotRecovered, want)
		}
	}
	if want := []catalog.Position{7, 8, 9, 10, 11, 12}; !slices.Equal(positions(got.Events), want) {
		t.Errorf("%v, want %v", positions(got.Events), want)
	}
	message := got.Message()
	if len(message.GetRecords()) != 6 || message.GetPosition() != 12 || message.GetResumed()[0].GetNotRecovered()[0] != "conversation:1" {
		t.Errorf("%v", message)
	}
}

func TestResume_RedactsDeletedMessages(t *testing.T) {
	t.Parallel()
	l := comings(t)
	commit(t, l, on("1", "c3", &chatv1.MessageDeleted{ConversationId: "1", MessageId: "d"}))
	got, err := Resume(t.Context(), l, []Resumer{{"bob", 7, 7, nil}}, Bounds{})
	if err != nil {
		t.Fatal(err)
	}
	var m chatv1.MessageSent
	if err := proto.Unmarshal(got.Events[0].Body, &m); err != nil || m.GetBody() != "" || !got.Events[0].Redacted {
		t.Errorf("%+v %v %v", got.Events[0], &m, err)
	}
}

func TestResume_AnswersFewerResumersIfTheAnswerIsTooLarge(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const rooms, events = 12, 1000
	var resumers []Resumer
	for i := range rooms {
		id := fmt.Sprint(i)
		all := []proto.Message{started(id, "u"+id, "everywhere")}
		for n := range events - 1 {
			all = append(all, sent(id, fmt.Sprint(n), "x"))
		}
		commit(t, l, on(id, id, all...))
		resumers = append(resumers, Resumer{User: "u" + id})
	}
	got, err := Resume(t.Context(), l, resumers, Bounds{})
	if err != nil || len(got.Resumed) != 10 || len(got.Events) != 10*events {
		t.Fatalf("%d users, %d events, %v", len(got.Resumed), len(got.Events), err)
	}
	// The user "everywhere" has missed more events than one result may have. Resume must return the names of the rooms
	// that it does not recover.
	got, err = Resume(t.Context(), l, append([]Resumer{{User: "everywhere"}}, resumers[:3]...), Bounds{})
	if err != nil || len(got.Resumed) != 4 || len(got.Resumed[0].NotRecovered) != 2 || len(got.Events) != 10*events {
		t.Fatalf("%d users, %v not recovered, %d events, %v",
			len(got.Resumed), got.Resumed[0].NotRecovered, len(got.Events), err)
	}
}

// large commits a conversation of alice and the given other users. Each message has 32 KiB.
func large(t *testing.T, l *eventlog.Log, id string, messages int, others ...string) {
	t.Helper()
	all := []proto.Message{started(id, append(others, "alice")...)}
	for n := range messages {
		all = append(all, sent(id, fmt.Sprint(n), strings.Repeat("x", 32<<10)))
	}
	commit(t, l, on(id, id, all...))
}

func TestResume_LeavesOutTheLargestRoomsIfTheirSumIsTooLarge(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	large(t, l, "two", 64, "bob")
	large(t, l, "one", 32)
	large(t, l, "half", 16)
	for name, test := range map[string]struct {
		user         string
		after        catalog.Position
		bytes        int
		notRecovered []string
		events       int
	}{
		"everything fits by default":    {"alice", 0, 0, nil, 115},
		"the largest room is left out":  {"alice", 0, 3 << 20, []string{"conversation:two"}, 50},
		"the larger rooms are left out": {"alice", 0, 1 << 20, []string{"conversation:one", "conversation:two"}, 17},
		"a user who is in fewer rooms":  {"bob", 0, 3 << 20, nil, 65},
		"only newer events count":       {"alice", 40, 3 << 20, nil, 75},
	} {
		got, err := Resume(t.Context(), l, []Resumer{{User: test.user, After: test.after, EventsAfter: test.after}},
			Bounds{Bytes: test.bytes})
		if err != nil || !slices.Equal(got.Resumed[0].NotRecovered, test.notRecovered) || len(got.Events) != test.events {
			t.Errorf("%s: %d events, not recovered %v, %v", name, len(got.Events), got.Resumed[0].NotRecovered, err)
		}
	}
}

func TestResume_AnswersFewerWhenTheirEventsAreLarge(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	var resumers []Resumer
	for i := range 6 { // the messages of each conversation have 3 MiB
		id := fmt.Sprint(i)
		large(t, l, id, 96, "u"+id)
		resumers = append(resumers, Resumer{User: "u" + id})
	}
	for asked, answered := range map[int]int{6: 5, 4: 4} {
		got, err := Resume(t.Context(), l, resumers[:asked], Bounds{})
		bytes := 0
		for _, e := range got.Events {
			bytes += len(e.Body)
		}
		if err != nil || len(got.Resumed) != answered || bytes > 17<<20 {
			t.Errorf("%d of %d answered, %d bytes, %v", len(got.Resumed), asked, bytes, err)
		}
	}
}

// Bob misses one message, and many events of the markers of others, which are counters. He must get the message and the
// newest event of each marker. The many superseded events must not make the room count as not recovered.
func TestResume_CountsOnlyTheNewestEventOfACounter(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, on("1", "c1", started("1", "alice", "bob", "carol"))) // position 1
	seen := func(user string, upTo int64) proto.Message {
		return &chatv1.MessagesSeen{ConversationId: "1", UserId: user, UpTo: upTo}
	}
	move := func(user string, from, to int64) {
		w := eventlog.Write{}
		for upTo := from; upTo <= to; upTo++ {
			w.Appends = append(w.Appends, eventlog.Append{Stream: "seen:1:" + user, Expected: eventlog.AnyVersion, Actor: user,
				Events: []proto.Message{seen(user, upTo)}})
		}
		commit(t, l, w)
	}
	move("alice", 1, 1)  // position 2
	move("carol", 1, 30) // positions 3 to 32, in one commit
	commit(t, l, on("1", "c2", sent("1", "m", "x")))
	move("alice", 2, 30) // positions 34 to 62
	for upTo := range int64(3) {
		move("carol", 31+upTo, 31+upTo) // positions 63 to 65, each in a commit of its own
	}
	got, err := Resume(t.Context(), l, []Resumer{{"bob", 1, 1, nil}}, Bounds{Events: 3})
	if err != nil || got.Resumed[0].NotRecovered != nil || !slices.Equal(positions(got.Events), []catalog.Position{33, 62, 65}) {
		t.Errorf("%v %v %v", got.Resumed, positions(got.Events), err)
	}
	page, err := l.Read(t.Context(), eventlog.Query{Stream: "seen:1:carol"})
	if err != nil || len(page.Events) != 33 {
		t.Errorf("the log has %d events of carol's marker, %v", len(page.Events), err)
	}
}
