// Package protocol handles the frames of one client, independently of the transport and the encoding. A frame is a
// command, a query, a signal, or a control frame, such as subscribe or ping. Each frame gets one reply (a refused frame
// without an id gets the frame "error"), unless the connection ends first. If the reply to a command is "queued", the
// outcome follows in a frame of its own.
package protocol

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

// Parts holds the parts of the gateway that handlers use.
type Parts struct {
	Catalog *catalog.Catalog
	Access  *access.Access
	Hub     *hub.Hub
	Rooms   *rooms.Rooms
	Intake  *intake.Intake
	Queries *query.Asker
	Lease   *lease.Lease
	Signals *signal.Signals
	Users   quota.Users // with the limits of each user
	Guard   *guard.Guard
	Tracer  trace.Tracer
	Log     *slog.Logger
	// ConnectWithin is how long the reply to connect may take (0: 30 s).
	ConnectWithin time.Duration
	// RestoreWithin is how long connect waits for the rooms of the client's session (0: 2 s). Later frames wait during
	// that time, so that they take effect after connect.
	RestoreWithin time.Duration
}

// Limits of one connection: maxQueries limits the queries in flight, and maxSubscriptions limits the subscriptions.
const (
	maxQueries       = 16
	maxSubscriptions = 500

	// frameRate and frameBurst limit the frames of one connection: the frames per second, and the frames at once.
	// Further frames wait up to maxWait before they are handled. Frames that would have to wait longer are refused.
	frameRate, frameBurst = 1000, 2000
	maxWait               = 2 * time.Second
)

// Handler handles the frames of one authenticated client.
type Handler struct {
	parts  *Parts
	user   string
	conn   *hub.Conn
	sender *intake.Sender
	quota  *quota.User
	frames quota.Bucket // used only by the goroutine that reads messages

	token   token
	connect *connecting
	// connected is set when the reply to connect is made.
	connected atomic.Bool
	controls  controls

	work    sync.WaitGroup // queries and renewals of the token in flight
	pending atomic.Int64   // number of rooms for which the owner has not answered yet whether the client may subscribe

	mu     sync.Mutex
	asking int // number of queries in flight; see query
	closed bool
}

// Conn returns the connection in the hub, which queues the frames for the client.
func (h *Handler) Conn() *hub.Conn { return h.conn }

// after calls f after the duration d, unless the returned timer is stopped. A panic in f closes the connection.
func (h *Handler) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() {
		defer h.parts.Guard.Recover("timer", func() { h.conn.Close(hub.Internal) })
		f()
	})
}

// Close ends the handling. Commands that the client sent are still published; see intake.Sender.Close.
func (h *Handler) Close() {
	// These calls are deferred so that all of them run even if one panics.
	defer h.quota.Leave()
	if h.conn == nil {
		return
	}
	defer h.finishWork()
	defer h.sender.Close()
	defer h.parts.Hub.Remove(h.conn)
	defer h.parts.Lease.Gone(h.conn.ID) // before Hub.Remove, because Gone reports the rooms of the connection
	h.token.stop()
	h.connect.stop()
}

// finishWork waits for the queries and renewals of the token in flight. After a panic in one of the other calls of
// Close, some queries may still count as in flight, because their answers are still in the connection's queue. So
// finishWork also subtracts these queries from the number of the user's queries in flight.
func (h *Handler) finishWork() {
	h.work.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.quota.QueriesDone(h.asking)
}

// Handle handles the frames in a message of a client, in order. It does not wait for other services, but it waits if
// the client sends too fast.
func (h *Handler) Handle(ctx context.Context, message []byte) {
	rest := len(message)
	for r, err := range frame.Decode(h.conn.Encoding(), message) {
		h.HandleRequest(ctx, r, err)
		rest -= r.Size
	}
	if quota.Cost(rest) > 1 { // white space between JSON frames takes time too
		h.admit(rest)
	}
}

// HandleRequest handles one frame. If the parameter err is not nil, the frame could not be read, and is refused with
// that error.
func (h *Handler) HandleRequest(ctx context.Context, r frame.Request, err error) {
	slowEnough := h.admit(r.Size)
	if err == nil && !slowEnough {
		err = tooFast
	}
	h.quota.Turn(func() {
		if err != nil {
			h.conn.Send(frame.Refused(r.ID, access.Refusal(err)))
			return
		}
		h.handle(ctx, r)
	})
}

func (h *Handler) handle(ctx context.Context, r frame.Request) {
	switch r.Type {
	case "ping":
		h.controls.begin(h.conn)(frame.Done(r.ID))
		return
	case "subscribe":
		h.subscribe(r)
		return
	case "unsubscribe":
		h.unsubscribe(r)
		return
	case "authenticate":
		h.authenticate(ctx, r)
		return
	case "connect":
		h.conn.Send(frame.Refused(r.ID, refusal.New(refusal.Malformed,
			"connect is sent once, as the first frame; use authenticate to renew the token")))
		return
	}
	if declared, ok := h.parts.Catalog.Signal(r.Type); ok {
		h.signal(r, declared)
		return
	}
	command, query := access.Public(h.parts.Catalog, r.Type)
	switch {
	case command != nil:
		h.command(ctx, r, command)
	case query != nil:
		h.query(ctx, r, query)
	default:
		h.conn.Send(frame.Refused(r.ID, access.Unknown(h.parts.Catalog, r.Type)))
	}
}

// HandleOther refuses a WebSocket message of the type that the connection's encoding does not use, such as a binary
// message if the encoding is JSON.
func (h *Handler) HandleOther(bytes int) {
	h.admit(bytes)
	h.conn.Send(frame.Refused("", WrongKind(h.conn.Encoding())))
}

// WrongKind returns the refusal of a binary message on a connection whose frames are text, or of a text message on a
// connection whose frames are binary.
func WrongKind(e frame.Encoding) *refusal.Error {
	if e == frame.JSON {
		return refusal.New(refusal.Malformed, "the message is binary; this connection uses %s, in text messages; "+
			"to use %s, offer that subprotocol", e.Subprotocol(), frame.Protobuf.Subprotocol())
	}
	return refusal.New(refusal.Malformed, "the message is text; this connection uses %s, in binary messages", e.Subprotocol())
}

var tooFast = refusal.New(refusal.TooManyWaiting, "you have sent more than %d frames per second; send fewer", frameRate)

// admit counts a frame, and waits if the client is too fast. If the wait would exceed maxWait, admit waits for maxWait
// and returns false.
func (h *Handler) admit(bytes int) bool {
	wait, ok := h.frames.Reserve(time.Now(), quota.Cost(bytes), maxWait)
	all, fair := h.quota.Frame(bytes, maxWait)
	if wait = max(wait, all); wait > 0 {
		time.Sleep(wait)
	}
	return ok && fair
}

// reasonOf returns the reason for closing a connection that the hub does not accept.
func reasonOf(err error) hub.Reason {
	switch {
	case errors.Is(err, hub.ErrTooMany):
		return hub.TooManyConnections
	case errors.Is(err, hub.ErrClosed):
		return hub.Shutdown
	}
	return hub.Internal
}
