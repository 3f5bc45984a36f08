package session

import (
	"slices"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// ResumeFirst is the code for a resume frame that nobody waits for, and for others where one is waited for.
const ResumeFirst = "resume_first"

var resumeFirst = refusal.New(ResumeFirst,
	"resume is the first frame, and only of a connection that has said that it resumes: /ws?resume=true")

// comeback is what a resume frame says.
type comeback struct {
	At      string   // the mark; empty: the client has nothing
	Rooms   []string // that it looks at
	Session string   // that it goes on with; empty: another one
}

func readComeback(data []byte) (comeback, hub.Mark, *refusal.Error) {
	var c comeback
	if len(data) > 0 {
		err := wirejson.Object(data, wirejson.Text("at", &c.At), wirejson.Texts("rooms", &c.Rooms),
			wirejson.Text("session", &c.Session))
		if r, ok := refusal.Of(inData(err, `{"at":"…","session":"…","rooms":["presence:bob",…]}`)); ok {
			return c, nil, r
		}
	}
	slices.Sort(c.Rooms)
	c.Rooms = slices.Compact(c.Rooms)
	if len(c.Rooms) > maxLooked {
		return c, nil, refusal.New(refusal.TooManyWaiting, "a connection looks at %d rooms at most", maxLooked)
	}
	if c.Session != "" && !catalog.ValidID(c.Session) {
		return c, nil, refusal.New(refusal.InvalidField, "session is none that a gateway gave")
	}
	if c.At == "" {
		return c, nil, nil
	}
	mark, err := hub.ParseMark(c.At)
	if err != nil {
		return c, nil, refusal.New(refusal.InvalidField, "at is %v", err)
	}
	return c, mark, nil
}

// resume attaches the session: it gets what it missed, then the reply.
func (s *Session) resume(f Frame) {
	c, mark, problem := readComeback(f.Data)
	if problem != nil {
		s.conn.Send(Failed(f.ID, problem)) // the client may try again, without a mark
		return
	}
	s.resuming.Store(false)
	s.patience.Stop()
	if c.Session == "" {
		c.Session = uuid.NewString()
	}
	s.begin(c.Session)
	s.conn.Greet(func(tooFar []string) []byte {
		return answered(f.ID, encode(struct {
			Resumed bool     `json:"resumed"`
			TooFar  []string `json:"too_far"`
		}{mark != nil, append([]string{}, tooFar...)}))
	})
	answer := func(room string, refused *refusal.Error) {
		if refused != nil {
			s.conn.Send(rooms.Unlooked(room, refused.Code, refused.Text))
		}
	}
	if len(c.Rooms) > 0 && !s.quota.Look(len(c.Rooms)) {
		for _, room := range c.Rooms {
			answer(room, lookedTooFast)
		}
		c.Rooms = nil
	}
	if mark == nil {
		s.mesh.Rooms.Attach(s.conn)
		s.lookAt(c.Rooms, answer)
		return
	}
	s.looks.Add(int64(len(c.Rooms)))
	for _, room := range s.mesh.Rooms.Resume(s.conn, mark, c.Rooms, s.looked(answer)) {
		s.looks.Add(-1)
		answer(room, unknownRoom(room))
	}
}
