package quota_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/quota"
)

// Of one user only so many queries are asked at a time, and after large answers none for a while. Others do not wait.
func TestAsk_BoundsWhatOneUserIsAnswered(t *testing.T) {
	t.Parallel()
	users := &quota.Users{Limits: quota.Limits{Asked: 2, AnswerBurst: 100}}
	never, cancel := context.WithCancel(t.Context())
	cancel() // who has to wait gives up
	eve, bob := users.Enter("eve"), users.Enter("bob")
	first, err := eve.Ask(never)
	require.NoError(t, err)
	second, err := eve.Ask(never)
	require.NoError(t, err)
	_, err = eve.Ask(never)
	require.ErrorIs(t, err, context.Canceled, "two are under way")
	got := make(chan error)
	go func() {
		done, err := users.Enter("eve").Ask(t.Context()) // on another connection
		if err == nil {
			done(0)
		}
		got <- err
	}()
	first(0)
	require.NoError(t, <-got, "one goes on as soon as another is answered")
	second(1 << 40)
	_, err = eve.Ask(never)
	require.ErrorIs(t, err, context.Canceled, "its answers were too large")
	done, err := bob.Ask(never)
	require.NoError(t, err)
	done(0)
}

// A client that shows many things when it starts asks for all of them, on all devices of its user, and waits for none.
func TestAsk_AnOrdinaryUserDoesNotWait(t *testing.T) {
	t.Parallel()
	users := &quota.Users{}
	never, cancel := context.WithCancel(t.Context())
	cancel()
	for range 5 {
		ann := users.Enter("ann")
		for range 15 {
			done, err := ann.Ask(never)
			require.NoError(t, err)
			done(50_000) // a page of 200 messages
		}
	}
}
