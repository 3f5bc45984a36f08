package protocol

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/shared/auth"
)

// hourly is a verifier that treats every token as a token of alice. The token "eternal" does not expire; every other
// token expires in an hour.
type hourly struct{}

func (hourly) Verify(_ context.Context, token string) (auth.User, error) {
	if token == "eternal" {
		return auth.User{ID: "alice"}, nil
	}
	return auth.User{ID: "alice", Expires: time.Now().Add(time.Hour)}, nil
}

// The connection of a client ends auth.Leeway after the expiry of the client's token. The client must get the frame
// token_expiring a minute before this end. A renewal of the token must postpone the frame and the end, and so must a
// second renewal.
func TestToken_ItsExpiryIsAnnouncedAgainAfterARenewal(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		connections := hub.New(hub.Options{Catalog: c})
		conn, err := connections.Add("alice", frame.JSON)
		require.NoError(t, err)
		parts := &Parts{Catalog: c, Access: &access.Access{Verifier: hourly{}, Log: log}, Hub: connections, Guard: guard.New(log, nil), Log: log}
		s := &Handler{parts: parts, user: "alice", conn: conn, quota: parts.Users.Enter("alice"), frames: quota.NewBucket(frameRate, frameBurst)}
		type sent struct {
			Type        string
			ReplyTo     string `json:"reply_to"`
			OK          bool
			ExpiresInMS int64 `json:"expires_in_ms"`
		}
		next := func() (all []sent) {
			synctest.Wait()
			for _, text := range fake.Take(conn, 10) {
				var f sent
				require.NoError(t, json.Unmarshal(text, &f))
				all = append(all, f)
			}
			return all
		}
		announced := []sent{{Type: "token_expiring", ExpiresInMS: 60_000}}
		s.expires(time.Now().Add(time.Hour))
		for range 2 {
			time.Sleep(time.Hour + auth.Leeway - time.Minute - time.Nanosecond)
			require.Empty(t, next())
			time.Sleep(time.Nanosecond)
			require.Equal(t, announced, next())
			time.Sleep(30 * time.Second)
			s.Handle(t.Context(), []byte(`{"id":"a","type":"authenticate","data":{"token":"hourly"}}`))
			require.Equal(t, []sent{{Type: "reply", ReplyTo: "a", OK: true}}, next())
		}
		s.Handle(t.Context(), []byte(`{"id":"a","type":"authenticate","data":{"token":"eternal"}}`))
		require.Len(t, next(), 1)
		time.Sleep(24 * time.Hour)
		require.Empty(t, next(), "a token that does not expire")
		s.Handle(t.Context(), []byte(`{"id":"a","type":"authenticate","data":{"token":"hourly"}}`))
		require.Len(t, next(), 1)
		time.Sleep(time.Hour + auth.Leeway)
		require.Equal(t, announced[0], next()[0])
		reason, ended := conn.Reason()
		require.True(t, ended)
		require.Equal(t, hub.TokenExpired, reason)
	})
}
