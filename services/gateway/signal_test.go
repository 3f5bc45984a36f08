package gateway

import (
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/client"
)

// signals is a client connection with the signals that it has received.
type signals struct {
	*inbox
	mu  sync.Mutex
	got []string
}

func signalling(t *testing.T, address, user string) *signals {
	t.Helper()
	s := &signals{}
	s.inbox = connect(t, address, user, func(o *client.Options) {
		o.OnSignal = func(g client.Signal) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.got = append(s.got, fmt.Sprint(g.Name, " ", g.Room, " ", g.Actor, " ", string(g.Data)))
		}
	})
	return s
}

func (s *signals) received() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// s.types sends the signal chat.typing. It returns the code of the refusal, or "" if the gateway accepts the signal.
func (s *signals) types(t *testing.T, conversation string) string {
	t.Helper()
	err := s.Signal(t.Context(), "chat.typing", map[string]any{"conversation_id": conversation})
	if err == nil {
		return ""
	}
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	return refused.Code
}

// typesUntilRelayed sends the signal chat.typing until the gateway accepts it. A gateway accepts signals as soon as it
// can relay them.
func (s *signals) typesUntilRelayed(t *testing.T, conversation string) {
	t.Helper()
	require.Eventually(t, func() bool { return s.types(t, conversation) == "" }, 20*time.Second, 100*time.Millisecond)
}

const typing = `chat.typing conversation:g %s {"conversation_id":"g"}`

func TestSignal_GoesOnlyToTheMembersOnEveryGateway(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob","carol"]`)
	one, _ := m.gateway(settings{})
	two, _ := m.gateway(settings{})
	alice, bob, bobToo := signalling(t, one, "alice"), signalling(t, one, "bob"), signalling(t, two, "bob")
	carol, eve := signalling(t, two, "carol"), signalling(t, two, "eve")
	m.owners["feed"].Allow("eve", "author:alice", true)

	alice.typesUntilRelayed(t, "g")
	require.Eventually(t, func() bool {
		return len(bob.received()) > 0 && len(bobToo.received()) > 0 && len(carol.received()) > 0
	}, 10*time.Second, time.Millisecond)
	require.Equal(t, fmt.Sprintf(typing, "alice"), bobToo.received()[0])
	carol.typesUntilRelayed(t, "g") // in the other direction
	require.Eventually(t, func() bool { return len(alice.received()) > 0 }, 10*time.Second, time.Millisecond)
	require.Equal(t, fmt.Sprintf(typing, "carol"), alice.received()[0])

	require.Equal(t, "not_a_member", eve.types(t, "g"))
	require.Equal(t, "invalid_field", alice.types(t, "no id"))
	require.Equal(t, "invalid_field", alice.types(t, string(make([]byte, 300))))

	// A removed member must neither send nor receive signals any more.
	m.member("chat.member_left", "carol")
	carol.expect(t, "member_left carol")
	before := len(carol.received())
	require.Equal(t, "not_a_member", carol.types(t, "g"))
	had := len(bobToo.received())
	alice.typesUntilRelayed(t, "g")
	require.Eventually(t, func() bool { return len(bobToo.received()) > had }, 10*time.Second, time.Millisecond)
	require.Len(t, carol.received(), before)
	require.Empty(t, eve.received())

	// A client that connects later must not get earlier signals.
	back := signalling(t, two, "bob")
	require.Empty(t, back.received())
}

func TestSignal_IsLimitedForAConnectionAndAUser(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(settings{})
	one, two := signalling(t, address, "alice"), signalling(t, address, "alice")
	one.typesUntilRelayed(t, "g")
	sent := 0
	for n := range 200 {
		if []*signals{one, two}[n%2].types(t, "g") == "" {
			sent++
		}
	}
	require.Less(t, sent, 100)
	require.Equal(t, "too_many_waiting", one.types(t, "g"))
	bob := signalling(t, address, "bob")
	require.Empty(t, bob.types(t, "g"), "other users are not affected")
}

func TestSignal_WithoutRedisOnlySignalsAreRefused(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.onCommand(m.commits)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(settings{})
	alice, bob := signalling(t, address, "alice"), signalling(t, address, "bob")
	alice.typesUntilRelayed(t, "g")

	at, err := url.Parse(m.redis.URL())
	require.NoError(t, err)
	port, err := strconv.Atoi(at.Port())
	require.NoError(t, err)
	m.redis.Stop()
	require.Eventually(t, func() bool { return alice.types(t, "g") == "unavailable" }, 20*time.Second, 50*time.Millisecond)
	_, err = alice.Command(t.Context(), "chat.send_message", hello)
	require.NoError(t, err)
	bob.expect(t, "hello")
	back, err := embedded.StartRedis(embedded.RedisOptions{Port: port})
	require.NoError(t, err)
	t.Cleanup(back.Stop)
	had := len(bob.received())
	alice.typesUntilRelayed(t, "g")
	require.Eventually(t, func() bool { return len(bob.received()) > had }, 10*time.Second, time.Millisecond)
}
