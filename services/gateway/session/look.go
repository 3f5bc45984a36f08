package session

import (
	"slices"
	"sync"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// readRooms reads what look and unlook name.
func readRooms(data []byte) ([]string, *refusal.Error) {
	const example = `{"rooms":["presence:bob",…]}`
	var rooms []string
	if len(data) == 0 {
		data = []byte("{}")
	}
	if r, ok := refusal.Of(inData(wirejson.Object(data, wirejson.Texts("rooms", &rooms)), example)); ok {
		return nil, r
	}
	if len(rooms) == 0 {
		return nil, refusal.New(refusal.InvalidField, "data: rooms is missing; it looks like %s", example)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms), nil
}

// looked gathers the answers for all rooms of one frame.
type looked struct {
	mu      sync.Mutex
	missing int
	rooms   []string
	refused []refusedRoom
	done    func(l *looked)
}

type refusedRoom struct {
	Room string `json:"room"`
	problem
}

func (l *looked) answer(room string, refused *refusal.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if refused == nil {
		l.rooms = append(l.rooms, room)
	} else {
		l.refused = append(l.refused, refusedRoom{room, *problemOf(refused)})
	}
	if l.missing--; l.missing == 0 {
		l.done(l)
	}
}

var lookedTooFast = refusal.New(refusal.TooManyWaiting, "too many rooms are looked at in a short time; wait a while")

// look asks for leave to look at rooms. The reply lists those that may be looked at and those that may not; when none
// may, it is the refusal of the first.
func (s *Session) look(f Frame) {
	rooms, problem := readRooms(f.Data)
	if problem == nil && s.mesh.Rooms.Looking(s.conn)+int(s.looks.Load())+len(rooms) > maxLooked {
		problem = refusal.New(refusal.TooManyWaiting, "a connection looks at %d rooms at most", maxLooked)
	}
	if problem == nil && !s.quota.Look(len(rooms)) {
		problem = lookedTooFast
	}
	if problem != nil {
		s.conn.Send(Failed(f.ID, problem))
		return
	}
	all := &looked{missing: len(rooms), done: func(l *looked) { s.conn.Send(l.reply(f.ID)) }}
	s.lookAt(rooms, all.answer)
}

// lookAt asks for leave to look at rooms. Each is answered by itself, by a refusal or nil.
func (s *Session) lookAt(rooms []string, answer func(room string, refused *refusal.Error)) {
	s.looks.Add(int64(len(rooms)))
	done := s.looked(answer)
	for _, room := range rooms {
		if known := s.mesh.Rooms.Look(s.conn, room, func(refused bool) { done(room, refused) }); !known {
			s.looks.Add(-1)
			answer(room, unknownRoom(room))
		}
	}
}

// looked turns an owner's word into the answer for a room that was counted in s.looks.
func (s *Session) looked(answer func(room string, refused *refusal.Error)) func(room string, refused bool) {
	return func(room string, refused bool) {
		s.looks.Add(-1)
		if refused {
			answer(room, refusal.New(refusal.NotAMember, "you may not look at %s", access.Clip(room)))
			return
		}
		answer(room, nil)
	}
}

func unknownRoom(room string) *refusal.Error {
	return refusal.New(refusal.NotFound, "there is no %s to look at", access.Clip(room))
}

func (l *looked) reply(re string) []byte {
	if len(l.rooms) == 0 {
		return Failed(re, &refusal.Error{Code: l.refused[0].Code, Text: l.refused[0].Message})
	}
	return answered(re, encode(struct {
		Rooms   []string      `json:"rooms"`
		Refused []refusedRoom `json:"refused,omitempty"`
	}{l.rooms, l.refused}))
}

func (s *Session) unlook(f Frame) {
	rooms, problem := readRooms(f.Data)
	if problem != nil {
		s.conn.Send(Failed(f.ID, problem))
		return
	}
	for _, room := range rooms {
		s.mesh.Rooms.Unlook(s.conn, room)
	}
	s.conn.Send(Done(f.ID))
}
