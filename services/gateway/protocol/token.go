package protocol

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

// expiryNotice is the time from the frame "token_expiring" to the end of the connection, unless the token is valid for
// less. The connection ends auth.Leeway after the token's expiry.
const expiryNotice = time.Minute

// token holds the timers of the connection's current token.
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

// expires sets the timers for a token that expires at the given time. Because clocks differ, a token is accepted until
// auth.Leeway after its expiry, and the connection is closed only then. The zero time means that the token does not
// expire.
func (h *Handler) expires(at time.Time) {
	h.token.mu.Lock()
	defer h.token.mu.Unlock()
	h.token.stopTimers()
	h.token.notice, h.token.end = nil, nil
	if at.IsZero() {
		return
	}
	left := time.Until(at.Add(auth.Leeway))
	h.token.end = h.after(left, func() { h.conn.Close(hub.TokenExpired) })
	h.token.notice = h.after(left-expiryNotice, func() {
		h.conn.Send(frame.TokenExpiring(max(0, time.Until(at.Add(auth.Leeway)))))
	})
}

// authenticate renews the token. Checking the new token may wait for keys from the identity provider. So the check runs
// on a goroutine of its own, and does not delay later frames. If the new token is refused, the old one remains valid
// until it expires.
func (h *Handler) authenticate(ctx context.Context, r frame.Request) {
	reply := h.controls.begin(h.conn)
	var a gatewayv1.Authenticate
	if err := r.Data.Read(&a); err != nil {
		reply(frame.Refused(r.ID, access.Refusal(err)))
		return
	}
	h.work.Go(func() {
		defer h.parts.Guard.Recover("authenticate", func() { h.conn.Close(hub.Internal) })
		user, err := h.parts.Access.User(ctx, a.Token)
		if err == nil && user.ID != h.user {
			err = refusal.New(refusal.Unauthorized, "the token is of another user than this connection; open a new connection for that user")
		}
		if err != nil {
			reply(frame.Refused(r.ID, access.Refusal(err)))
			return
		}
		h.expires(user.Expires)
		answer := &gatewayv1.Authenticated{}
		if !user.Expires.IsZero() {
			left := time.Until(user.Expires.Add(auth.Leeway)).Milliseconds()
			answer.ExpiresInMs = &left
		}
		reply(frame.Answer(r.ID, answer))
	})
}
