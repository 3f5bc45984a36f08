// Package session is the conversation with one client, whatever carries its frames: each frame is a command, a query,
// or one of the few that the gateway answers itself, and gets one reply.
package session

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/lease"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/shared/auth"
)

// Mesh is what sessions talk to.
type Mesh struct {
	Catalog *catalog.Catalog
	Hub     *hub.Hub
	Rooms   *rooms.Rooms
	Intake  *intake.Intake
	Queries *query.Asker
	Lease   *lease.Lease
	Tracer  trace.Tracer
	Log     *slog.Logger
}

// most of what one session may have going on at a time.
const (
	mostQueries = 16
	mostLooked  = 500
)

// Session is one client that has proved who it is.
type Session struct {
	mesh   *Mesh
	user   auth.User
	device string
	conn   *hub.Conn
	sender *intake.Sender
	expiry *time.Timer

	queries sync.WaitGroup
	asking  chan struct{}
	looks   atomic.Int64 // rooms asked for and not answered yet

	resuming atomic.Bool // its first frame will say what it has
	patience *time.Timer // for that
}

// Opening says how a session begins.
type Opening struct {
	// Resume: the client was here before, and says in its first frame what it has.
	Resume bool
	// Patience is how long that frame may take.
	Patience time.Duration
	// Device is what the client says of itself.
	Device string
}

// Open begins a session: the user's rooms are asked for, and the client hears when it misses nothing any more.
func (m *Mesh) Open(user auth.User, o Opening) (*Session, error) {
	conn, err := m.Hub.Add(user.ID)
	if err != nil {
		return nil, err
	}
	s := &Session{mesh: m, user: user, device: o.Device, conn: conn, sender: m.Intake.NewSender(),
		asking: make(chan struct{}, mostQueries)}
	if !user.Expires.IsZero() {
		s.expiry = time.AfterFunc(time.Until(user.Expires), func() { conn.Close(hub.TokenExpired) })
	}
	if o.Resume {
		s.resuming.Store(true)
		s.patience = time.AfterFunc(o.Patience, func() {
			if s.resuming.Load() {
				conn.Close(hub.HandshakeTimeout)
			}
		})
		return s, nil
	}
	s.begin(uuid.NewString())
	m.Rooms.Attach(conn)
	return s, nil
}

// begin has the session known to its user, by an id that is the same on all connections that resume it.
func (s *Session) begin(id string) {
	s.conn.Begin(id)
	s.mesh.Lease.Open(lease.Connection{ID: s.conn.ID, User: s.user.ID, Session: id, Device: s.device, Since: time.Now(),
		Mark: s.conn.Written, End: func() { s.conn.Close(hub.SessionEnded) }})
}

// Conn is where the frames to the client wait.
func (s *Session) Conn() *hub.Conn { return s.conn }

// Close ends the session. What it sent is done all the same.
func (s *Session) Close() {
	if s.expiry != nil {
		s.expiry.Stop()
	}
	if s.patience != nil {
		s.patience.Stop()
	}
	s.mesh.Hub.Remove(s.conn)
	s.mesh.Lease.Gone(s.conn.ID)
	s.sender.Close()
	s.queries.Wait()
}

// Handle takes one frame. It does not wait for other services, so that a client's frames are taken in order.
func (s *Session) Handle(ctx context.Context, text []byte) {
	f, err := ReadFrame(text)
	if err != nil {
		s.conn.Send(Failed(f.ID, access.Refusal(err)))
		return
	}
	if f.Type == "ping" {
		s.conn.Send(Done(f.ID))
		return
	}
	if s.resuming.Load() != (f.Type == "resume") {
		s.conn.Send(Failed(f.ID, resumeFirst))
		return
	}
	switch f.Type {
	case "resume":
		s.resume(f)
		return
	case "look":
		s.look(f)
		return
	case "unlook":
		s.unlook(f)
		return
	case "auth":
		s.conn.Send(Failed(f.ID, refusal.New(refusal.Malformed, "auth comes first, and once")))
		return
	}
	command, query := access.Public(s.mesh.Catalog, f.Type)
	switch {
	case command != nil:
		s.command(ctx, f, command)
	case query != nil:
		s.query(ctx, f, query)
	default:
		s.conn.Send(Failed(f.ID, access.Unknown(s.mesh.Catalog, f.Type)))
	}
}
