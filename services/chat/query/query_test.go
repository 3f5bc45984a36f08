//go:build integration

package query_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1/chatv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// fixture is chat's log and its projection, with clients for the queries.
type fixture struct {
	*eventlogtest.Log
	t     *testing.T
	chat  chatv1connect.ChatServiceClient
	marks chatv1connect.MarkerServiceClient
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	l := eventlogtest.Open(t, "chat", store.Migrations())
	server := query.New(l.Log, store.New(l.Pool))
	client, url := l.Serve(query.Projections, func(o ...connect.HandlerOption) (string, http.Handler) {
		return chatv1connect.NewChatServiceHandler(server, o...)
	})
	_, marksURL := l.Serve(query.Projections, func(o ...connect.HandlerOption) (string, http.Handler) {
		return chatv1connect.NewMarkerServiceHandler(server, o...)
	})
	return &fixture{l, t, chatv1connect.NewChatServiceClient(client, url),
		chatv1connect.NewMarkerServiceClient(client, marksURL)}
}

func (f *fixture) follow() { f.Follow(store.DeclareConversations()) }

func (f *fixture) history(user string, r *chatv1.HistoryRequest) (*chatv1.HistoryResponse, error) {
	return eventlogtest.Ask(f.As(user), f.chat.History, r)
}

func (f *fixture) conversations(user, after string, limit int32) (ids []string, next string) {
	f.t.Helper()
	answer, err := eventlogtest.Ask(f.As(user), f.chat.Conversations,
		&chatv1.ConversationsRequest{After: after, Limit: asked(limit)})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, c := range answer.GetConversations() {
		ids = append(ids, c.GetConversationId())
	}
	return ids, answer.GetNext()
}

// asked returns the value of the field limit of a request. For 0 it returns nil, and the server then uses its default.
func asked(limit int32) *int32 {
	if limit == 0 {
		return nil
	}
	return &limit
}

func started(id string, fromJoining bool, users ...string) decidetest.Event {
	return decidetest.By(users[0], &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: users,
		HistoryFromJoining: fromJoining})
}

func added(id, user string) decidetest.Event {
	return decidetest.By("ann", &chatv1.MemberAdded{ConversationId: id, UserId: user})
}

func left(id, user string) decidetest.Event {
	return decidetest.By(user, &chatv1.MemberLeft{ConversationId: id, UserId: user})
}

func sent(id, author, message, body string) decidetest.Event {
	return decidetest.By(author, &chatv1.MessageSent{ConversationId: id, MessageId: message, Body: body})
}

func edited(id, author, message, body string) decidetest.Event {
	return decidetest.By(author, &chatv1.MessageEdited{ConversationId: id, MessageId: message, Body: body})
}

func deleted(id, actor, message string) decidetest.Event {
	return decidetest.By(actor, &chatv1.MessageDeleted{ConversationId: id, MessageId: message})
}

func bodies(all []*chatv1.Message) (list []string) {
	for _, m := range all {
		list = append(list, m.GetBody())
	}
	return list
}

func codeOf(err error) string {
	refused, ok := rpc.Refusal(err)
	if !ok {
		return fmt.Sprint(err)
	}
	return refused.Code
}

func TestHistory_ShowsOnlyReadableMessages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	for _, fromJoining := range []bool{false, true} {
		id := fmt.Sprint("c-", fromJoining)
		f.AppendAll(started(id, fromJoining, "ann", "bob"), // version 1
			sent(id, "ann", "m1", "one"), sent(id, "ann", "m2", "two"), // versions 2 and 3
			added(id, "cid"), left(id, "bob"), // versions 4 and 5
			sent(id, "ann", "m3", "three"), edited(id, "ann", "m1", "ONE"), // versions 6 and 7
			sent(id, "ann", "m4", "four"), deleted(id, "ann", "m2"), // versions 8 and 9
			left(id, "cid"), sent(id, "ann", "m5", "five"), edited(id, "ann", "m3", "THREE"), // versions 10 to 12
			added(id, "cid"), sent(id, "ann", "m6", "six")) // versions 13 and 14
	}
	for _, test := range []struct {
		user    string
		id      string
		version catalog.Version
		want    []string
	}{
		{"ann", "c-false", 14, []string{"ONE", "", "THREE", "four", "five", "six"}},
		{"ann", "c-true", 14, []string{"ONE", "", "THREE", "four", "five", "six"}},
		// Bob reads the old text of a message that was edited after he left. Nobody reads the text of a deleted
		// message.
		{"bob", "c-false", 5, []string{"one", ""}},
		{"bob", "c-true", 5, []string{"one", ""}},
		{"cid", "c-false", 14, []string{"ONE", "", "THREE", "four", "five", "six"}},
		{"cid", "c-true", 14, []string{"three", "four", "six"}}, // nothing from the times when cid was not a member
	} {
		got, err := f.history(test.user, &chatv1.HistoryRequest{ConversationId: test.id})
		if err != nil || catalog.Version(got.GetVersion()) != test.version || got.GetMore() ||
			!slices.Equal(bodies(got.GetMessages()), test.want) {
			t.Errorf("%s reads %q of %s at version %d, %v; want %q at %d", test.user, bodies(got.GetMessages()), test.id,
				got.GetVersion(), err, test.want, test.version)
		}
	}
	got, err := f.history("ann", &chatv1.HistoryRequest{ConversationId: "c-true"})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range got.GetMessages() {
		if m.GetAuthor() != "ann" || m.GetMessageId() != fmt.Sprint("m", i+1) || m.GetDeleted() != (i == 1) ||
			time.Since(m.GetSentAt().AsTime()).Abs() > time.Minute || (m.GetEditedAt() != nil) != (i == 0 || i == 2) {
			t.Errorf("message %d: %v", i, m)
		}
	}
	// A stranger gets the same error for a conversation that exists and for one that does not.
	_, known := f.history("eve", &chatv1.HistoryRequest{ConversationId: "c-true"})
	_, unknown := f.history("eve", &chatv1.HistoryRequest{ConversationId: "c-none"})
	if codeOf(known) != refusal.NotAMember || known.Error() != unknown.Error() {
		t.Errorf("a stranger gets %v, and %v for a conversation that does not exist", known, unknown)
	}
}

func TestHistory_Pages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	all := []decidetest.Event{started("c", false, "ann", "bob")}
	for i := range 250 {
		all = append(all, sent("c", "bob", fmt.Sprint("m", i), fmt.Sprint(i+2)))
	}
	f.AppendAll(all...)
	for _, test := range []struct {
		before, after *int64
		limit         int32
		first, last   string // the text of a message is its version
		more          bool
	}{
		{nil, nil, 0, "202", "251", true}, {nil, nil, 200, "52", "251", true}, {nil, nil, 1, "251", "251", true},
		{new(int64(52)), nil, 50, "2", "51", false}, {new(int64(53)), nil, 50, "3", "52", true},
		{new(int64(3)), nil, 50, "2", "2", false}, {new(int64(1000)), nil, 2, "250", "251", true},
		// If the field after is 0, it selects the oldest messages. This is not the same as a request without the field.
		{nil, new(int64(0)), 50, "2", "51", true}, {nil, new(int64(1)), 50, "2", "51", true},
		{nil, new(int64(201)), 50, "202", "251", false}, {nil, new(int64(200)), 50, "201", "250", true},
		{new(int64(math.MaxInt64)), nil, 1, "251", "251", true},
	} {
		r := &chatv1.HistoryRequest{ConversationId: "c", Before: test.before, After: test.after,
			Limit: asked(test.limit)}
		got, err := f.history("ann", r)
		if err != nil {
			t.Fatal(err)
		}
		list := bodies(got.GetMessages())
		ascending := slices.IsSortedFunc(got.GetMessages(),
			func(a, b *chatv1.Message) int { return int(a.GetVersion() - b.GetVersion()) })
		if list[0] != test.first || list[len(list)-1] != test.last || got.GetMore() != test.more ||
			got.GetVersion() != 251 || !ascending {
			t.Errorf("%+v: %s to %s, more %v", test, list[0], list[len(list)-1], got.GetMore())
		}
	}
	for name, r := range map[string]*chatv1.HistoryRequest{
		"after the newest, with the largest limit": {After: new(int64(251)), Limit: new(int32(200))}, "after every version": {After: new(int64(math.MaxInt64))},
		"before the start": {Before: new(int64(0))},
	} {
		r.ConversationId = "c"
		if got, err := f.history("ann", r); err != nil || len(got.GetMessages()) != 0 || got.GetMore() {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	for name, r := range map[string]*chatv1.HistoryRequest{
		"a limit above 200": {Limit: new(int32(201))}, "a negative limit": {Limit: new(int32(-1))},
		"a limit of 0": {Limit: new(int32(0))}, "before and after": {Before: new(int64(5)), After: new(int64(2))},
		"before, and after 0": {Before: new(int64(5)), After: new(int64(0))},
		"a negative before":   {Before: new(int64(-1))}, "a negative after": {After: new(int64(-1))},
	} {
		r.ConversationId = "c"
		if _, err := f.history("ann", r); codeOf(err) != refusal.InvalidField {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConversations_Pages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	for i := range 6 {
		id := fmt.Sprint("c", i)
		f.AppendAll(started(id, false, "ann", "bob"))
	}
	f.AppendAll(sent("c1", "ann", "m", "the newest"))
	f.AppendAll(left("c3", "bob"))
	for user, want := range map[string][]string{
		"ann": {"c3", "c1", "c5", "c4", "c2", "c0"}, "bob": {"c1", "c5", "c4", "c2", "c0"}} {
		for _, limit := range []int32{1, 2, 3, 4, 5, 6, 0} {
			got, next := f.conversations(user, "", limit)
			for next != "" {
				var page []string
				page, next = f.conversations(user, next, limit)
				if len(page) == 0 {
					t.Errorf("%s, limit %d: next led to an empty page", user, limit)
				}
				got = append(got, page...)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, limit %d: %v, want %v", user, limit, got, want)
			}
		}
	}
	if got, _ := f.conversations("eve", "", 0); len(got) != 0 {
		t.Errorf("a stranger lists %v", got)
	}
	for name, r := range map[string]*chatv1.ConversationsRequest{"a limit above 200": {Limit: new(int32(201))},
		"a limit of 0": {Limit: new(int32(0))}, "an invalid cursor": {After: "c!"},
		"the cursor of a negative number": {After: "LTE"},
		"a cursor of members":             {After: page.Cursor(int64(1), int32(0))}} {
		if _, err := f.chat.Conversations(f.As("ann"), connect.NewRequest(r)); codeOf(err) != refusal.InvalidField {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Only current members can list the members of a conversation.
func TestMembers_OnlyMembersGetPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob", "cid"), added("c", "dan"), left("c", "bob"), added("c", "bob"), left("c", "cid"))
	ask := func(user, id, after string, limit int32) (*chatv1.MembersResponse, error) {
		return eventlogtest.Ask(f.As(user), f.chat.Members, &chatv1.MembersRequest{ConversationId: id, After: after, Limit: asked(limit)})
	}
	for _, limit := range []int32{1, 2, 3, 4, 0} {
		var got []string
		for next, pages := "", 0; ; pages++ {
			page, err := ask("dan", "c", next, limit)
			require.NoError(t, err)
			require.EqualValues(t, 3, page.GetMemberCount())
			require.EqualValues(t, 5, page.GetVersion())
			require.Less(t, pages, 3)
			if got, next = append(got, page.GetUserIds()...), page.GetNext(); next == "" {
				break
			}
		}
		require.Equal(t, []string{"ann", "dan", "bob"}, got)
	}
	for _, user := range []string{"cid", "eve"} { // cid has left, eve was never a member
		_, err := ask(user, "c", "", 0)
		require.Equal(t, refusal.NotAMember, codeOf(err))
	}
	_, err := ask("ann", "none", "", 0)
	require.Equal(t, refusal.NotAMember, codeOf(err))
	for _, cursor := range []string{"c!", "LTE", page.Cursor(int64(1)), page.Cursor(int64(1), int64(1<<31))} {
		_, err := ask("ann", "c", cursor, 0)
		require.Equal(t, refusal.InvalidField, codeOf(err), cursor)
	}
}

// A user queries what they have just written, but the projection has not applied it yet. The query must wait until the
// projection has applied it. If the projection does not apply it in time, the query must fail as unavailable.
func TestQuery_WaitsForEarlierWrites(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m", "hi"))
	early := connect.NewRequest(&chatv1.HistoryRequest{ConversationId: "c"})
	if _, err := f.chat.History(f.As("ann"), early); codeOf(err) != refusal.Unavailable {
		t.Fatalf("while the projection has applied nothing: %v", err)
	}
	now := rpc.WithPosition(rpc.WithActor(t.Context(), "ann"), rpc.Now)
	list := &chatv1.ConversationsRequest{}
	if _, err := f.chat.Conversations(now, connect.NewRequest(list)); codeOf(err) != refusal.Unavailable {
		t.Fatalf("while the projection has applied nothing, a query for everything that is committed: %v", err)
	}
	answered := make(chan error, 2)
	go func() {
		got, err := f.history("ann", &chatv1.HistoryRequest{ConversationId: "c"})
		if err == nil && len(got.GetMessages()) != 1 {
			err = fmt.Errorf("the history has %d messages", len(got.GetMessages()))
		}
		answered <- err
	}()
	go func() {
		got, err := eventlogtest.Ask(f.As("ann"), f.chat.Conversations, &chatv1.ConversationsRequest{})
		if err == nil && len(got.GetConversations()) != 1 {
			err = fmt.Errorf("the list has %d conversations", len(got.GetConversations()))
		}
		answered <- err
	}()
	f.follow()
	for range 2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if got, err := eventlogtest.Ask(now, f.chat.Conversations, list); err != nil || len(got.GetConversations()) != 1 {
		t.Errorf("a query for everything that is committed: %v %v", got, err)
	}
}

// model computes in a simple way which texts a user may read, whether the user is a member after the last event, and
// whether the user ever was a member.
func model(all []decidetest.Event, fromJoining bool, user string) (want []string, member, ever bool) {
	in := make([]bool, len(all)+1) // in[v]: the user is a member at version v, or version v removes them
	for i, h := range all {
		version := i + 1
		switch e := h.Message.(type) {
		case *chatv1.ConversationStarted:
			member = slices.Contains(e.UserIds, user)
		case *chatv1.MemberAdded:
			member = member || e.UserId == user
		}
		in[version] = member
		if e, ok := h.Message.(*chatv1.MemberLeft); ok && e.UserId == user {
			member = false
		}
		ever = ever || in[version]
	}
	if !fromJoining {
		last := len(in) - 1
		for last > 0 && !in[last] {
			last--
		}
		for v := range last {
			in[v] = true
		}
	}
	order, texts, gone := []string{}, map[string]string{}, map[string]bool{}
	for i, h := range all {
		switch e := h.Message.(type) {
		case *chatv1.MessageSent:
			if in[i+1] {
				order = append(order, e.MessageId)
				texts[e.MessageId] = e.Body
			}
		case *chatv1.MessageEdited:
			if _, there := texts[e.MessageId]; in[i+1] && there {
				texts[e.MessageId] = e.Body
			}
		case *chatv1.MessageDeleted:
			gone[e.MessageId] = true
		}
	}
	for _, m := range order {
		if gone[m] {
			texts[m] = ""
		}
		want = append(want, texts[m])
	}
	return want, member, ever
}

var people = []string{"ann", "bob", "cid", "dan"}

// made returns n random events of a conversation, in an order that the rules allow. The text of a message or an edit is
// the version of the event.
func made(r *rand.Rand, id string, fromJoining bool, n int) []decidetest.Event {
	all := []decidetest.Event{started(id, fromJoining, "ann", "bob")}
	members, messages, gone := []string{"ann", "bob"}, []string{}, map[string]bool{}
	for len(all) < n {
		user, text := people[r.IntN(len(people))], strconv.Itoa(len(all)+1)
		is := slices.Contains(members, user)
		message := ""
		if len(messages) > 0 {
			message = messages[r.IntN(len(messages))]
		}
		switch what := r.IntN(8); {
		case what < 2 && !is:
			all, members = append(all, added(id, user)), append(members, user)
		case what == 2 && is && len(members) > 1:
			all = append(all, left(id, user))
			members = slices.DeleteFunc(members, func(u string) bool { return u == user })
		case what > 2 && what < 6:
			messages = append(messages, fmt.Sprint("m", len(messages)))
			all = append(all, sent(id, members[0], messages[len(messages)-1], text))
		case what == 6 && message != "" && !gone[message]:
			all = append(all, edited(id, members[0], message, text))
		case what == 7 && message != "" && !gone[message] && r.IntN(3) == 0:
			gone[message] = true
			all = append(all, deleted(id, members[0], message))
		}
	}
	return all
}

func TestQuery_AgreesWithTheLog(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for c := range 15 {
		id, fromJoining := fmt.Sprint("c", c), c%2 == 0
		all := made(r, id, fromJoining, 10+r.IntN(60))
		f.AppendAll(all...)
		for _, user := range people {
			want, member, ever := model(all, fromJoining, user)
			limit := int32(1 + r.IntN(20))
			var up, down []string
			for after := int64(0); ; {
				page, err := f.history(user, &chatv1.HistoryRequest{ConversationId: id, After: &after, Limit: &limit})
				if ever != (err == nil) || err != nil && codeOf(err) != refusal.NotAMember {
					t.Fatalf("seed %d: %s in %s: %v", seed, user, id, err)
				}
				up = append(up, bodies(page.GetMessages())...)
				if !page.GetMore() {
					break
				}
				after = page.GetMessages()[len(page.GetMessages())-1].GetVersion()
			}
			for before := int64(math.MaxInt64); ever; {
				page, err := f.history(user, &chatv1.HistoryRequest{ConversationId: id, Before: &before, Limit: &limit})
				if err != nil {
					t.Fatal(err)
				}
				down = append(bodies(page.GetMessages()), down...)
				if !page.GetMore() {
					break
				}
				before = page.GetMessages()[0].GetVersion()
			}
			if !slices.Equal(up, want) || !slices.Equal(down, want) {
				t.Fatalf("seed %d: %s reads in %s\n upwards   %q\n downwards %q\n want      %q", seed, user, id, up, down, want)
			}
			if ids, _ := f.conversations(user, "", 200); slices.Contains(ids, id) != member {
				t.Fatalf("seed %d: the list of %s is %v; member of %s: %v", seed, user, ids, id, member)
			}
		}
	}
}

// A user reads the history in a loop while they are removed and added again. They must never see a text that was
// written while they were not a member, even while the projection lags behind the log.
func TestHistory_ReadWhileMembershipChanges(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	const id = "c"
	all := []decidetest.Event{started(id, true, "ann", "bob"), sent(id, "ann", "m", "2")}
	f.AppendAll(all...)
	done := make(chan struct{})
	var reads sync.WaitGroup
	seen := make([]map[string]int64, 2) // for each reader: a text → the version in the newest answer with this text
	for i := range seen {
		seen[i] = map[string]int64{}
		reads.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				// Without a position, the query does not wait for the projection.
				ctx := rpc.WithActor(f.t.Context(), "bob")
				got, err := f.chat.History(ctx, connect.NewRequest(&chatv1.HistoryRequest{ConversationId: id}))
				if err != nil {
					t.Error(err)
					return
				}
				for _, m := range got.Msg.GetMessages() {
					seen[i][m.GetBody()] = got.Msg.GetVersion()
				}
			}
		})
	}
	write := func(h decidetest.Event) {
		all = append(all, h)
		f.AppendAll(h)
	}
	next := func() string { return strconv.Itoa(len(all) + 1) }
	for n := range 25 {
		write(left(id, "bob"))
		write(sent(id, "ann", fmt.Sprint("out", n), next()))
		write(edited(id, "ann", "m", next()))
		write(added(id, "bob"))
		write(sent(id, "ann", fmt.Sprint("in", n), next()))
	}
	close(done)
	reads.Wait()
	in := map[int]bool{}
	member := true
	for i, h := range all {
		if _, back := h.Message.(*chatv1.MemberAdded); back {
			member = true
		}
		in[i+1] = member
		if _, gone := h.Message.(*chatv1.MemberLeft); gone {
			member = false
		}
	}
	count := 0
	for _, texts := range seen {
		count += len(texts)
		for text, at := range texts {
			if version, err := strconv.Atoi(text); err != nil || !in[version] || int64(version) > at {
				t.Errorf("bob read the text %q at version %d, but was not a member when it was written", text, at)
			}
		}
	}
	if count == 0 {
		t.Error("nothing was read")
	}
}
