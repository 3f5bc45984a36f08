// Package session handles the frames of one client, independently of the transport and the encoding. A frame is a
// command, a query, a signal, or a control frame, which the gateway answers itself; each gets one reply.
package session

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/lease"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/services/gateway/signal"
)

// Mesh has the parts of the gateway that sessions use.
type Mesh struct {
	Catalog *catalog.Catalog
	Access  *access.Access
	Hub     *hub.Hub
	Rooms   *rooms.Rooms
	Intake  *intake.Intake
	Queries *query.Asker
	Lease   *lease.Lease
	Signals *signal.Signals
	Users   quota.Users // with the bounds of each user
	Guard   *guard.Guard
	Tracer  trace.Tracer
	Log     *slog.Logger
	// ConnectWithin is how long the reply to connect may take; 30 s when 0.
	ConnectWithin time.Duration
	// RestoreWithin is how long connect waits for the rooms of its session; 2 s when 0. Frames behind it wait as long,
	// so that they take effect after it.
	RestoreWithin time.Duration
}

// Bounds of one session.
const (
	maxQueries       = 16
	maxSubscriptions = 500

	// frameRate and frameBurst bound the frames of one client. Frames beyond them are read later, by up to maxWait, and
	// after that they are refused.
	frameRate, frameBurst = 1000, 2000
	maxWait               = 2 * time.Second
)

// Session is the connection of one authenticated client.
type Session struct {
	mesh   *Mesh
	user   string
	conn   *hub.Conn
	sender *intake.Sender
	quota  *quota.User
	frames quota.Bucket // used by the goroutine that reads

	token   token
	connect *connecting
	// connected is set with the reply to connect.
	connected atomic.Bool
	controls  controls

	work    sync.WaitGroup // queries and renewals of the token under way
	pending atomic.Int64   // rooms asked for and not answered yet

	mu     sync.Mutex
	asking int // queries under way, and those whose answers are not written yet
	closed bool
}

// Conn returns the connection in the hub, where the frames to the client wait.
func (s *Session) Conn() *hub.Conn { return s.conn }

// after calls f after a time. A panic in f closes the connection.
func (s *Session) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() {
		defer s.mesh.Guard.Recover("timer", func() { s.conn.Close(hub.Internal) })
		f()
	})
}

// Close ends the session. Commands that it sent are still carried out.
func (s *Session) Close() {
	// Deferred, so that all of them run although one panics.
	defer s.quota.Leave()
	if s.conn == nil {
		return
	}
	defer s.finishWork()
	defer s.sender.Close()
	defer s.mesh.Hub.Remove(s.conn)
	defer s.mesh.Lease.Gone(s.conn.ID) // before it leaves its rooms
	s.token.stop()
	s.connect.stop()
}

// finishWork waits for the queries under way, and forgets those whose answers will not be written.
func (s *Session) finishWork() {
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.quota.QueriesDone(s.asking)
}

// Handle handles a message of a client: one or more frames, in order. It does not wait for other services. It waits
// when the client sends too fast.
func (s *Session) Handle(ctx context.Context, message []byte) {
	for r, err := range frame.Decode(s.conn.Encoding(), message) {
		s.HandleRequest(ctx, r, err)
	}
}

// HandleRequest handles one frame, or refuses it with the error with which it was read.
func (s *Session) HandleRequest(ctx context.Context, r frame.Request, err error) {
	slowEnough := s.admit(len(r.Data.Bytes))
	if err == nil && !slowEnough {
		err = tooFast
	}
	s.quota.Turn(func() {
		if err != nil {
			s.conn.Send(frame.Refused(r.ID, access.Refusal(err)))
			return
		}
		s.handle(ctx, r)
	})
}

func (s *Session) handle(ctx context.Context, r frame.Request) {
	switch r.Type {
	case "ping":
		s.controls.begin(s.conn)(frame.Done(r.ID))
		return
	case "subscribe":
		s.subscribe(r)
		return
	case "unsubscribe":
		s.unsubscribe(r)
		return
	case "authenticate":
		s.authenticate(ctx, r)
		return
	case "connect":
		s.conn.Send(frame.Refused(r.ID, refusal.New(refusal.Malformed,
			"connect is sent once, as the first frame; use authenticate to renew the token")))
		return
	}
	if declared, ok := s.mesh.Catalog.Signal(r.Type); ok {
		s.signal(r, declared)
		return
	}
	command, query := access.Public(s.mesh.Catalog, r.Type)
	switch {
	case command != nil:
		s.command(ctx, r, command)
	case query != nil:
		s.query(ctx, r, query)
	default:
		s.conn.Send(frame.Refused(r.ID, access.Unknown(s.mesh.Catalog, r.Type)))
	}
}

// HandleOther refuses a WebSocket message of the kind that the connection's encoding does not have.
func (s *Session) HandleOther(bytes int) {
	s.admit(bytes)
	s.conn.Send(frame.Refused("", WrongKind(s.conn.Encoding())))
}

// WrongKind is the refusal of a WebSocket message that is binary where frames are text, or the other way round.
func WrongKind(e frame.Encoding) *refusal.Error {
	if e == frame.JSON {
		return refusal.New(refusal.Malformed, "the message is binary; this connection speaks %s, in text messages; "+
			"to speak %s, ask for that subprotocol", e.Subprotocol(), frame.Protobuf.Subprotocol())
	}
	return refusal.New(refusal.Malformed, "the message is text; this connection speaks %s, in binary messages", e.Subprotocol())
}

var tooFast = refusal.New(refusal.TooManyWaiting, "more frames are sent than %d a second; send fewer", frameRate)

// admit counts a frame, and waits while the client is too fast. It returns false when that would take longer than
// maxWait.
func (s *Session) admit(bytes int) bool {
	wait, ok := s.frames.Reserve(time.Now(), quota.Cost(bytes), maxWait)
	all, fair := s.quota.Frame(bytes, maxWait)
	if wait = max(wait, all); wait > 0 {
		time.Sleep(wait)
	}
	return ok && fair
}

// reasonOf returns the reason for which a connection ends that the hub does not add.
func reasonOf(err error) hub.Reason {
	switch {
	case errors.Is(err, hub.ErrTooMany):
		return hub.TooManyConnections
	case errors.Is(err, hub.ErrClosed):
		return hub.Shutdown
	}
	return hub.Internal
}
