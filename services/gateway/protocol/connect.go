package protocol

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/lease"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/shared/auth"
)

// Opening contains the data of a new connection that Open needs.
type Opening struct {
	// User is the user of the token in the handshake's header, or nil if there was none.
	User *auth.User
	// Device is the name of the client's device if the connect frame contains none.
	Device   string
	Encoding frame.Encoding
	// Request is the first frame. Err is nil, or the reason why the frame could not be read.
	Request frame.Request
	Err     error
}

// RejectedError is the error of a connection that is closed before it has a handler.
type RejectedError struct {
	Reason  hub.Reason     // the reason for closing the connection
	Refusal *refusal.Error // the reply to the first frame, or nil for none
}

func (e *RejectedError) Error() string {
	if e.Refusal != nil {
		return e.Refusal.Error()
	}
	return e.Reason.Text
}

func protocolError(r *refusal.Error) error { return &RejectedError{hub.ProtocolError, r} }

// connecting holds the state of the reply to connect: its contents, and the answers that it waits for.
type connecting struct {
	replyTo   string
	sessionID string // the session id in the reply
	// restores is true if the client has sent a valid session id and named no rooms. The client is then subscribed to
	// the rooms of the session.
	restores  bool
	had       hub.Progress // the client's progress, if it resumes
	resumed   bool
	requested []string // the rooms that the client named
	late      *time.Timer

	mu      sync.Mutex
	rooms   []string
	refused []*gatewayv1.RefusedRoom
	// changed is true if the rooms may differ from the rooms that are stored for the session. If so, the rooms must be
	// reported with package lease.
	changed bool
	replied bool
	// waiting maps each room without an answer to the functions that are called after the answer.
	waiting map[string][]func()
	// unsubscribed contains the rooms from which the client has unsubscribed since its connect. The reply does not list
	// them.
	unsubscribed map[string]bool
}

func (c *connecting) stop() {
	if c != nil && c.late != nil {
		c.late.Stop()
	}
}

// expect sets the rooms to which the client is to be subscribed. The reply waits for an answer for each of them.
func (c *connecting) expect(rooms []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting, c.unsubscribed = make(map[string][]func(), len(rooms)), map[string]bool{}
	for _, room := range rooms {
		c.waiting[room] = nil
	}
}

// answer records the answer for a room, and calls the functions that wait for it.
func (c *connecting) answer(room string, refused *refusal.Error) {
	c.mu.Lock()
	after := c.waiting[room]
	delete(c.waiting, room)
	switch {
	case c.unsubscribed[room]:
	case refused == nil:
		c.rooms = append(c.rooms, room)
	default:
		c.refused = append(c.refused, &gatewayv1.RefusedRoom{Room: room, Error: frame.ErrorOf(refused)})
		c.changed = true
	}
	c.mu.Unlock()
	for _, f := range after {
		f()
	}
}

// unsubscribe records that the client has unsubscribed from rooms. It calls the function done, which replies to the
// client, once none of these rooms waits for an answer. Until then the client may still get events of these rooms, and
// no such event may follow the reply.
func (c *connecting) unsubscribe(rooms []string, done func()) {
	c.mu.Lock()
	left := new(atomic.Int64)
	for _, room := range rooms {
		if after, waits := c.waiting[room]; waits {
			left.Add(1)
			c.waiting[room] = append(after, func() {
				if left.Add(-1) == 0 {
					done()
				}
			})
		}
		if c.unsubscribed != nil { // the reply was not made yet
			c.unsubscribed[room], c.changed = true, true
			c.rooms = slices.DeleteFunc(c.rooms, func(other string) bool { return other == room })
		}
	}
	waits := left.Load() > 0
	c.mu.Unlock()
	if !waits {
		done()
	}
}

// subscribed records that the client has subscribed to further rooms. It returns true if the reply to connect was not
// made yet.
func (c *connecting) subscribed() (before bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = true
	return !c.replied
}

// reply returns the rooms and the refused rooms for the reply, and whether the rooms must be reported for the session.
// It is called once, when no room waits for an answer.
func (c *connecting) reply() (rooms []string, refused []*gatewayv1.RefusedRoom, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.rooms)
	rooms, refused = c.rooms, c.refused
	c.rooms, c.refused, c.waiting, c.unsubscribed = nil, nil, nil, nil
	c.replied = true
	return rooms, refused, c.changed
}

// Open returns the handler of a connection, given its first frame, which must be connect. Start must be called as soon
// as frames can be written to the client. The error is a *RejectedError.
func (m *Parts) Open(ctx context.Context, o Opening) (_ *Handler, err error) {
	if o.Err != nil {
		return nil, protocolError(access.Refusal(o.Err))
	}
	if o.Request.Type != "connect" {
		return nil, protocolError(refusal.New(refusal.Malformed, "the first frame has to be connect, not %q",
			access.Clip(o.Request.Type)))
	}
	var c gatewayv1.Connect
	if err := o.Request.Data.ReadKnown(&c); err != nil {
		return nil, protocolError(access.Refusal(err))
	}
	slices.Sort(c.Rooms)
	if c.Rooms = slices.Compact(c.Rooms); len(c.Rooms) > maxSubscriptions {
		return nil, protocolError(refusal.NewField("rooms", "has %d rooms, a connection subscribes to at most %d",
			len(c.Rooms), maxSubscriptions))
	}
	user, err := m.user(ctx, o.User, c.Token)
	if err != nil {
		r := access.Refusal(err)
		if r.Code != refusal.Unauthorized {
			return nil, &RejectedError{hub.Unavailable, r}
		}
		return nil, &RejectedError{hub.Unauthorized, r}
	}
	s := &Handler{parts: m, user: user.ID, quota: m.Users.Enter(user.ID), frames: quota.NewBucket(frameRate, frameBurst)}
	opened := false
	defer func() {
		if !opened { // also after a panic
			s.Close()
		}
	}()
	if !s.quota.Connect() {
		return nil, &RejectedError{Reason: hub.TooFast}
	}
	if s.conn, err = m.Hub.Add(user.ID, o.Encoding); err != nil {
		return nil, &RejectedError{Reason: reasonOf(err)}
	}
	s.sender = m.Intake.NewSender()
	s.expires(user.Expires)
	s.begin(o, &c)
	opened = true
	return s, nil
}

// user returns the user of the token in the first frame or, if that contains none, in the handshake. If both contain a
// token, the two tokens must be of the same user.
func (m *Parts) user(ctx context.Context, handshake *auth.User, token string) (auth.User, error) {
	if token == "" {
		if handshake == nil {
			return auth.User{}, refusal.New(refusal.Unauthorized,
				"a token is missing; send it in the connect frame or in the Authorization header")
		}
		return *handshake, nil
	}
	user, err := m.Access.User(ctx, token)
	if err == nil && handshake != nil && handshake.ID != user.ID {
		err = refusal.New(refusal.Unauthorized,
			"the tokens in the connect frame and in the Authorization header are of different users")
	}
	return user, err
}

// begin prepares the reply to connect, and adds the connection to the reported ones (package lease).
func (h *Handler) begin(o Opening, c *gatewayv1.Connect) {
	// An invalid session id begins a new session. If it were an error, a client that has stored such an id could never
	// connect again.
	session := c.SessionId
	if !catalog.ValidID(session) {
		session = uuid.NewString()
	}
	device := deviceName(c.Device)
	if device == "" {
		device = deviceName(o.Device)
	}
	had, resumed := h.parts.Hub.ReadResumeToken(h.user, c.ResumeToken)
	h.connect = &connecting{replyTo: o.Request.ID, sessionID: session, had: had, resumed: resumed, requested: c.Rooms,
		restores: len(c.Rooms) == 0 && session == c.SessionId, changed: len(c.Rooms) > 0}
	h.conn.DelayGreeting(1) // released by Start
	h.conn.Greet(h.greet)
	within := h.parts.ConnectWithin
	if within == 0 {
		within = 30 * time.Second
	}
	h.connect.late = h.after(within, func() { h.conn.Close(hub.ConnectTimeout) })
	h.parts.Lease.Open(lease.Connection{ID: h.conn.ID, User: h.user, Session: session, Device: device, Since: time.Now(),
		Token: h.conn.Written, Rooms: h.rooms, End: func() { h.conn.Close(hub.SessionEnded) }})
}

// greet returns the reply to connect.
func (h *Handler) greet(g hub.Greeting) frame.Frame {
	c := h.connect
	c.stop()
	// Set connected before calling c.reply. From that call on, the rooms may be reported, and h.rooms must return them.
	h.connected.Store(true)
	rooms, refused, changed := c.reply()
	if changed {
		h.parts.Lease.Subscribed(h.conn.ID)
	}
	return frame.Answer(c.replyTo, &gatewayv1.Connected{UserId: h.user, SessionId: c.sessionID,
		ResumeToken: g.ResumeToken, Resumed: c.resumed, NotRecovered: g.NotRecovered, Rooms: rooms,
		Refused: refused, Protocol: frame.Protocol, HeartbeatMs: h.parts.Hub.HeartbeatEvery().Milliseconds(),
		DenseStreams: h.parts.Catalog.DenseStreams(), ServerTime: timestamppb.Now(),
		Limits: &gatewayv1.Limits{FrameBytes: frame.MaxMessage, PendingCommands: intake.MaxWaiting}})
}

// Start requests the user's rooms, and the subscriptions to the rooms that the client has named or that are stored for
// its session. The client gets the reply to connect when the owners have answered about all of them. Start waits up to
// Parts.RestoreWithin for the rooms of the session, so that later frames take effect after these subscriptions.
func (h *Handler) Start(ctx context.Context) {
	subscribed := h.connect.requested
	if h.connect.restores {
		subscribed = h.restore(ctx, h.connect.sessionID)
	}
	h.connect.expect(subscribed)
	h.conn.DelayGreeting(len(subscribed))
	defer h.conn.Release() // see DelayGreeting in begin
	answer := func(room string, refused *refusal.Error) {
		h.connect.answer(room, refused)
		h.conn.Release()
	}
	if len(subscribed) > 0 && !h.quota.Subscribe(len(subscribed)) {
		for _, room := range subscribed {
			answer(room, subscribedTooFast)
		}
		subscribed = nil
	}
	if !h.connect.resumed {
		h.parts.Rooms.Attach(h.conn)
		h.subscribeTo(subscribed, answer)
		return
	}
	h.pending.Add(int64(len(subscribed)))
	for _, room := range h.parts.Rooms.Resume(h.conn, h.connect.had, subscribed, h.allowed(answer)) {
		h.pending.Add(-1)
		answer(room, unknownRoom(room))
	}
}

// restore returns the rooms that are stored for the session, or none if they cannot be read in time. In that case, the
// reply to connect lists no rooms, and the client can subscribe again.
func (h *Handler) restore(ctx context.Context, session string) []string {
	within := h.parts.RestoreWithin
	if within == 0 {
		within = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	rooms, err := h.parts.Lease.Rooms(ctx, h.user, session)
	if err != nil {
		h.parts.Log.Debug("protocol: the rooms of a session are not restored", "user", h.user, "session", session, "error", err)
		return nil
	}
	return rooms[:min(len(rooms), maxSubscriptions)]
}

// rooms returns the rooms that the client is subscribed to. It returns false until the reply to connect is made,
// because some rooms may still be missing.
func (h *Handler) rooms() ([]string, bool) {
	if !h.connected.Load() {
		return nil, false
	}
	return h.parts.Rooms.SubscribedRooms(h.conn), true
}

// maxDevice is the maximum length of the name of a device, in characters.
const maxDevice = 64

// deviceName returns the first maxDevice printable characters of a name from a client, without spaces around them.
func deviceName(text string) string {
	var name []rune
	for _, r := range text {
		if len(name) == maxDevice {
			break
		}
		if unicode.IsPrint(r) {
			name = append(name, r)
		}
	}
	return strings.TrimSpace(string(name))
}
