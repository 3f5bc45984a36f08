package session

import (
	"context"
	"sync"
	"time"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/auth"
)

// expiryNotice is how long before its token expires a client gets the frame "token_expiring".
const expiryNotice = time.Minute

// token holds the timers of a session's current token.
type token struct {
	mu     sync.Mutex
	notice *time.Timer
	end    *time.Timer
}

func (t *token) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopTimers()
}

func (t *token) stopTimers() {
	for _, timer := range []*time.Timer{t.notice, t.end} {
		if timer != nil {
			timer.Stop()
		}
	}
}

// expires closes the connection when its token expires. Because clocks differ, a token is accepted for auth.Leeway
// after its expiry, and the connection lasts as long. The zero time means that the token does not expire.
func (s *Session) expires(at time.Time) {
	s.token.mu.Lock()
	defer s.token.mu.Unlock()
	s.token.stopTimers()
	s.token.notice, s.token.end = nil, nil
	if at.IsZero() {
		return
	}
	left := time.Until(at.Add(auth.Leeway))
	s.token.end = s.after(left, func() { s.conn.Close(hub.TokenExpired) })
	s.token.notice = s.after(left-expiryNotice, func() {
		s.conn.Send(frame.TokenExpiring(max(0, time.Until(at.Add(auth.Leeway)))))
	})
}

// authenticate renews the token. Checking it may wait for keys from the identity provider, so it does not delay later
// frames. If the new token is refused, the old one remains valid until it expires.
func (s *Session) authenticate(ctx context.Context, r frame.Request) {
	reply := s.controls.begin(s.conn)
	var a gatewayv1.Authenticate
	if err := r.Data.Read(&a); err != nil {
		reply(frame.Refused(r.ID, access.Refusal(err)))
		return
	}
	s.work.Go(func() {
		defer s.mesh.Guard.Recover("authenticate", func() { s.conn.Close(hub.Internal) })
		user, err := s.mesh.Access.User(ctx, a.Token)
		if err == nil && user.ID != s.user {
			err = refusal.New(refusal.Unauthorized, "the token is of another user than this connection; open a new connection for that user")
		}
		if err != nil {
			reply(frame.Refused(r.ID, access.Refusal(err)))
			return
		}
		s.expires(user.Expires)
		answer := &gatewayv1.Authenticated{}
		if !user.Expires.IsZero() {
			left := time.Until(user.Expires.Add(auth.Leeway)).Milliseconds()
			answer.ExpiresInMs = &left
		}
		reply(frame.Answer(r.ID, answer))
	})
}
