package quota_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/quota"
)

// A user sends several queries, one of which has a very large answer. The owner must get only two of these queries at a
// time, and must not get a further query for a while after the large answer. Other users must not wait.
func TestAsk_LimitsTheQueriesAndAnswersOfOneUser(t *testing.T) {
	t.Parallel()
	users := &quota.Users{Limits: quota.Limits{Asked: 2, AnswerBurst: 100}}
	never, cancel := context.WithCancel(t.Context())
	cancel() // so that a query that has to wait fails
	eve, bob := users.Enter("eve"), users.Enter("bob")
	first, err := eve.Ask(never)
	require.NoError(t, err)
	second, err := eve.Ask(never)
	require.NoError(t, err)
	_, err = eve.Ask(never)
	require.ErrorIs(t, err, context.Canceled, "two queries are in flight")
	got := make(chan error)
	go func() {
		done, err := users.Enter("eve").Ask(t.Context()) // from another connection
		if err == nil {
			done(0)
		}
		got <- err
	}()
	first(0)
	require.NoError(t, <-got, "a query continues as soon as another is answered")
	second(1 << 40)
	_, err = eve.Ask(never)
	require.ErrorIs(t, err, context.Canceled, "the answers were too large")
	done, err := bob.Ask(never)
	require.NoError(t, err)
	done(0)
}

// Five devices of a user start, one after the other. Each sends 15 queries, one at a time. No query may have to wait.
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
