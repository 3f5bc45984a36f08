// Package session is the conversation with one client, whatever carries its frames: each frame is a command, a query,
// or one of the few that the gateway answers itself, and gets one reply.
package session

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/lease"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/services/gateway/signal"
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
	Signals *signal.Signals
	Users   quota.Users // what is bounded for each user
	Guard   *guard.Guard
	Tracer  trace.Tracer
	Log     *slog.Logger
}

// Bounds of one session.
const (
	maxQueries = 16
	maxLooked  = 500

	// A client that sends faster is not read for a while, and after that its frames are refused.
	frameRate, frameBurst = 1000, 2000
	maxWait               = 2 * time.Second
)

// ErrTooFast says that a user has opened too many connections in a short time.
var ErrTooFast = errors.New("too many connections of one user in a short time")

// Session is one client that has proved who it is.
type Session struct {
	mesh   *Mesh
	user   string
	device string
	conn   *hub.Conn
	sender *intake.Sender
	quota  *quota.User
	frames quota.Bucket // of the goroutine that reads
	expiry *time.Timer

	queries sync.WaitGroup
	looks   atomic.Int64 // rooms asked for and not answered yet

	mu     sync.Mutex
	asking int // queries under way, and those whose answers are not written yet
	closed bool

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
func (m *Mesh) Open(user auth.User, o Opening) (_ *Session, err error) {
	s := &Session{mesh: m, user: user.ID, device: o.Device, quota: m.Users.Enter(user.ID),
		frames: quota.NewBucket(frameRate, frameBurst)}
	opened := false
	defer func() {
		if !opened { // also by a panic
			s.Close()
		}
	}()
	if !s.quota.Connect() {
		return nil, ErrTooFast
	}
	if s.conn, err = m.Hub.Add(user.ID); err != nil {
		return nil, err
	}
	s.sender = m.Intake.NewSender()
	if !user.Expires.IsZero() {
		// Clocks differ: the token was taken until then, too.
		s.expiry = s.after(time.Until(user.Expires.Add(auth.Leeway)), func() { s.conn.Close(hub.TokenExpired) })
	}
	if o.Resume {
		s.resuming.Store(true)
		s.patience = s.after(o.Patience, func() {
			if s.resuming.Load() {
				s.conn.Close(hub.HandshakeTimeout)
			}
		})
	} else {
		s.begin(uuid.NewString())
		m.Rooms.Attach(s.conn)
	}
	opened = true
	return s, nil
}

// after calls f when the time has come.
func (s *Session) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() {
		defer s.mesh.Guard.Recover("timer", func() { s.conn.Close(hub.Internal) })
		f()
	})
}

// begin has the session known to its user, by an id that is the same on all connections that resume it.
func (s *Session) begin(id string) {
	s.conn.Begin(id)
	s.mesh.Lease.Open(lease.Connection{ID: s.conn.ID, User: s.user, Session: id, Device: s.device, Since: time.Now(),
		Mark: s.conn.Written, End: func() { s.conn.Close(hub.SessionEnded) }})
}

// Conn is where the frames to the client wait.
func (s *Session) Conn() *hub.Conn { return s.conn }

// Close ends the session. Commands that it sent are still carried out.
func (s *Session) Close() {
	// Deferred, so that a panic in one of them leaves none of the others out.
	defer s.quota.Leave()
	if s.conn == nil {
		return
	}
	defer s.forgetQueries()
	defer s.sender.Close()
	defer s.mesh.Lease.Gone(s.conn.ID)
	defer s.mesh.Hub.Remove(s.conn)
	if s.expiry != nil {
		s.expiry.Stop()
	}
	if s.patience != nil {
		s.patience.Stop()
	}
}

// forgetQueries waits for the queries under way, and forgets those whose answers will not be written.
func (s *Session) forgetQueries() {
	s.queries.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.quota.QueriesDone(s.asking)
}

// Handle takes one frame. It does not wait for other services, so that a client's frames are taken in order; it waits
// when the client sends too fast.
func (s *Session) Handle(ctx context.Context, text []byte) {
	slowEnough := s.admit(len(text))
	s.quota.Turn(func() { s.handle(ctx, text, slowEnough) })
}

func (s *Session) handle(ctx context.Context, text []byte, slowEnough bool) {
	f, err := ReadFrame(text)
	if err == nil && !slowEnough {
		err = tooFast
	}
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
		s.conn.Send(Failed(f.ID, refusal.New(refusal.Malformed, "auth has to be the first frame, and is sent once")))
		return
	}
	if declared, ok := s.mesh.Catalog.Signal(f.Type); ok {
		s.signal(f, declared)
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

// HandleBinary refuses a binary frame of so many bytes.
func (s *Session) HandleBinary(bytes int) {
	s.admit(bytes)
	s.conn.Send(Failed("", refusal.New(refusal.Malformed, "no frame: it is binary; frames are JSON in text frames")))
}

var tooFast = refusal.New(refusal.TooManyWaiting, "more frames are sent than %d a second; send fewer", frameRate)

// admit counts a frame, and waits as long as the client is too fast; it reports false when that would be too long.
func (s *Session) admit(bytes int) bool {
	wait, ok := s.frames.Reserve(time.Now(), quota.Cost(bytes), maxWait)
	all, fair := s.quota.Frame(bytes, maxWait)
	if wait = max(wait, all); wait > 0 {
		time.Sleep(wait)
	}
	return ok && fair
}
