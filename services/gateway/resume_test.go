package gateway

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/session"
	"github.com/edumatrix/interlinked/shared/client"
)

// often is settings with marks that a test need not wait for.
var often = settings{mark: 20 * time.Millisecond}

// settled waits for a mark that covers all there is.
func (m *mesh) settled(in *inbox) string {
	m.t.Helper()
	m.positions() // as relays write them
	head := int64(len(m.owners["chat"].Log()))
	require.Eventually(m.t, func() bool {
		mark, err := hub.ParseMark(in.Mark())
		return err == nil && mark["chat"].Position == head
	}, 10*time.Second, time.Millisecond)
	return in.Mark()
}

// returns connects with a mark, as one who knows nothing else of the time before.
func (m *mesh) returns(address, user, mark string, look ...string) *inbox {
	m.t.Helper()
	return connect(m.t, address, user, func(o *client.Options) { o.Resume, o.Rooms = mark, look })
}

func metric(t *testing.T, address, line string) bool {
	t.Helper()
	return strings.Contains(metrics(t, address), line+"\n")
}

func TestResume_FillsTheGapOnceAndInOrder(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	one, _ := m.gateway(often)
	two, _ := m.gateway(often)
	bob := connect(t, one, "bob")
	m.said("seen")
	bob.expect(t, "seen")
	mark := m.settled(bob)
	bob.Abort()
	m.said("missed")
	m.member("chat.member_left", "bob")
	m.said("between")
	m.member("chat.member_added", "bob")
	m.said("back")
	want := []string{"missed", "member_left bob", "member_added bob", "back", "live"}

	same, other := m.returns(one, "bob", mark), m.returns(two, "bob", mark)
	stands, ok := same.Resumed()
	require.True(t, ok)
	require.Equal(t, client.Resumed{Resumed: true, TooFar: []string{}}, stands)
	require.Equal(t, want[:4], same.seen(), "before the connection is ready")
	require.Equal(t, want[:4], other.seen())
	third, _ := m.gateway(often) // began after all that
	restarted := m.returns(third, "bob", mark)
	m.said("live")
	for _, in := range []*inbox{same, other, restarted} {
		in.expect(t, want...)
	}
	require.True(t, metric(t, one, `gateway_resumed_total{from="recent",owner="chat"} 1`))
	require.True(t, metric(t, third, `gateway_resumed_total{from="log",owner="chat"} 1`))

	require.Empty(t, m.returns(two, "eve", mark).seen(), "the mark of somebody else grants nothing")
	require.Empty(t, m.returns(two, "bob", m.settled(restarted)).seen(), "nothing was missed")
}

func TestResume_GivesWhatAGatewayThatLagsHasNotReadYet(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	mark := m.settled(bob)
	bob.Abort()
	m.said("read")
	m.hold()
	m.said("held")
	m.member("chat.member_left", "bob")
	m.said("gone")
	back := m.returns(address, "bob", mark)
	require.Equal(t, []string{"read", "held", "member_left bob"}, back.seen())
	m.letGo()
	m.member("chat.member_added", "bob")
	back.expect(t, "read", "held", "member_left bob", "member_added bob")
}

func TestRedial_DropsWhatCameAfterTheMark(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	one, _ := m.gateway(settings{})
	two, _ := m.gateway(settings{})
	bob := connect(t, one, "bob") // its only mark is the first
	m.said("1")
	m.said("2")
	bob.expect(t, "1", "2")
	bob.Abort()
	m.said("3")
	next, err := bob.Redial(t.Context(), "ws://"+two+"/ws")
	require.NoError(t, err)
	defer next.Close()
	bob.expect(t, "1", "2", "3")
	next.Abort()
	m.said("4")
	last, err := next.Redial(t.Context(), "ws://"+one+"/ws")
	require.NoError(t, err)
	defer last.Close()
	bob.expect(t, "1", "2", "3", "4")
}

func TestResume_IsRefusedWhereItDoesNotBelongAndWithAMarkThatIsNone(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(settings{mark: often.mark, handshake: time.Second})
	bob := connect(t, address, "bob")
	mark := m.settled(bob)
	_, err := bob.Request(t.Context(), map[string]any{"type": "resume", "data": map[string]any{"at": mark}})
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, session.ResumeFirst, refused.Code)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	o := client.Options{URL: "ws://" + address + "/ws", Token: token(t, "bob", "")}
	for _, mangled := range []string{"nonsense", mark[:len(mark)-1], mark + "A", strings.Repeat("A", 40_000)} {
		o.Resume = mangled
		_, err = client.Dial(ctx, o)
		require.ErrorAs(t, err, &refused)
		require.Equal(t, "invalid_field", refused.Code)
	}

	// Another frame is refused, and none at all ends the connection.
	socket := raw(t, address, "bob")
	for _, frame := range []string{`{"id":"1","type":"look","data":{"rooms":["presence:bob"]}}`,
		`{"id":"1","type":"chat.leave","data":{"conversation_id":"g"}}`} {
		require.Contains(t, socket(frame), `"code":"resume_first"`)
	}
	require.Contains(t, socket(`{"id":"1","type":"ping"}`), `"ok":true`)
	require.Contains(t, socket(`{"id":"1","type":"resume","data":{"at":1}}`), `"code":"invalid_field"`)
	require.Equal(t, `{"re":"1","ok":true,"data":{"resumed":false,"too_far":[]}}`, socket(`{"id":"1","type":"resume"}`),
		"without a mark it is a beginning")
	require.Contains(t, socket(""), `{"ready":true,"at":"`)
	silent := raw(t, address, "bob")
	require.Contains(t, silent(""), "3500")
}

func TestResume_LooksAgainAtWhatWasLookedAt(t *testing.T) {
	t.Parallel()
	m := begin(t)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	mark := m.settled(bob)
	bob.Abort()
	online := m.owners["presence"].Event("alice", "presence.came_online", `{"user_id":"alice"}`)
	online.Version = 5
	m.owners["presence"].Allow("bob", "presence:alice", true, online)
	m.returns(address, "bob", mark, "presence:alice").expect(t, "presence.came_online alice")

	socket := raw(t, address, "bob")
	first := socket(`{"id":"1","type":"resume","data":{"rooms":["presence:eve","nothing:x"]}}`)
	all := first + socket("") + socket("") + socket("")
	require.Contains(t, all, `{"unlooked":"presence:eve","error":{"code":"not_a_member"`)
	require.Contains(t, all, `{"unlooked":"nothing:x","error":{"code":"not_found"`)
}

func TestResume_TheBoundIsASetting(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.config.ResumeEvents = 2
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	mark := m.settled(bob)
	m.said("1")
	m.said("2")
	require.Equal(t, []string{"1", "2"}, m.returns(address, "bob", mark).seen())
	m.said("3")
	back := m.returns(address, "bob", mark)
	require.Empty(t, back.seen())
	stands, _ := back.Resumed()
	require.Equal(t, client.Resumed{Resumed: true, TooFar: []string{"conversation:g"}}, stands)
}

func TestShutdown_LeavesAMarkBehind(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	one, stop := m.gateway(settings{mark: time.Hour})
	two, _ := m.gateway(settings{})
	bob := connect(t, one, "bob")
	first := bob.Mark()
	m.said("seen")
	bob.expect(t, "seen")
	m.positions()
	for n := range 3 {
		require.Eventually(t, func() bool {
			return metric(t, one, fmt.Sprintf(`gateway_partition_position{partition="%d",topic="chat-events"} 2`, n))
		}, 10*time.Second, time.Millisecond)
	}
	stop()
	<-bob.Done()
	require.NotEqual(t, first, bob.Mark())
	m.said("missed")
	m.returns(two, "bob", bob.Mark()).expect(t, "missed")
}
