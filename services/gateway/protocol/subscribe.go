package protocol

import (
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// roomsOf decodes the data of a frame into the message m, and returns the rooms in it, sorted and without duplicates.
func roomsOf(r frame.Request, m interface {
	proto.Message
	GetRooms() []string
}) ([]string, *refusal.Error) {
	if err := r.Data.Read(m); err != nil {
		return nil, access.Refusal(err)
	}
	rooms := m.GetRooms()
	if len(rooms) == 0 {
		return nil, refusal.NewField("rooms", `is missing; data looks like {"rooms":["presence:bob"]}`)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms), nil
}

// subscribing collects the owners' answers for the rooms of one frame.
type subscribing struct {
	mu      sync.Mutex
	missing int
	rooms   []string
	refused []*gatewayv1.RefusedRoom
	first   *refusal.Error // the refusal of the room that was refused first
	done    func(*subscribing)
}

func (a *subscribing) answer(room string, refused *refusal.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if refused == nil {
		a.rooms = append(a.rooms, room)
	} else {
		if a.first == nil {
			a.first = refused
		}
		a.refused = append(a.refused, &gatewayv1.RefusedRoom{Room: room, Error: frame.ErrorOf(refused)})
	}
	if a.missing--; a.missing == 0 {
		a.done(a)
	}
}

func (a *subscribing) reply(replyTo string) frame.Frame {
	if len(a.rooms) == 0 {
		return frame.Refused(replyTo, a.first)
	}
	slices.Sort(a.rooms)
	return frame.Answer(replyTo, &gatewayv1.Subscribed{Rooms: a.rooms, Refused: a.refused})
}

var subscribedTooFast = refusal.New(refusal.TooManyWaiting, "you have subscribed to too many rooms in a short time; try again later")

// subscribe subscribes the client to rooms. The reply lists which rooms of the frame the client is subscribed to, and
// which were refused. If all rooms were refused, the reply is the error of the room that was refused first.
func (h *Handler) subscribe(r frame.Request) {
	reply := h.controls.begin(h.conn)
	rooms, problem := roomsOf(r, &gatewayv1.Subscribe{})
	if problem == nil && h.parts.Rooms.CountSubscriptions(h.conn)+int(h.pending.Load())+len(rooms) > maxSubscriptions {
		problem = refusal.New(refusal.TooManyWaiting, "a connection can subscribe to at most %d rooms", maxSubscriptions)
	}
	if problem == nil && !h.quota.Subscribe(len(rooms)) {
		problem = subscribedTooFast
	}
	if problem != nil {
		reply(frame.Refused(r.ID, problem))
		return
	}
	all := &subscribing{missing: len(rooms), done: func(a *subscribing) {
		if len(a.rooms) > 0 && !h.connect.subscribed() {
			h.parts.Lease.Subscribed(h.conn.ID)
		}
		reply(a.reply(r.ID))
	}}
	h.subscribeTo(rooms, all.answer)
}

// subscribeTo subscribes the client to rooms. The function answer is called once for each room, with a refusal or nil,
// unless the connection ends first.
func (h *Handler) subscribeTo(rooms []string, answer func(room string, refused *refusal.Error)) {
	h.pending.Add(int64(len(rooms)))
	done := h.allowed(answer)
	for _, room := range rooms {
		if known := h.parts.Rooms.Subscribe(h.conn, room, func(refused bool) { done(room, refused) }); !known {
			h.pending.Add(-1)
			answer(room, unknownRoom(room))
		}
	}
}

// allowed returns a callback for the owner's answer about each room. Each call subtracts one from h.pending, and calls
// the function answer with a refusal or nil.
func (h *Handler) allowed(answer func(room string, refused *refusal.Error)) func(room string, refused bool) {
	return func(room string, refused bool) {
		h.pending.Add(-1)
		if refused {
			answer(room, refusal.New(refusal.NotAMember, "you may not subscribe to %s", access.Clip(room)))
			return
		}
		answer(room, nil)
	}
}

func unknownRoom(room string) *refusal.Error {
	return refusal.New(refusal.NotFound, "there is no room %s to subscribe to", access.Clip(room))
}

func (h *Handler) unsubscribe(r frame.Request) {
	reply := h.controls.begin(h.conn)
	rooms, problem := roomsOf(r, &gatewayv1.Unsubscribe{})
	if problem != nil {
		reply(frame.Refused(r.ID, problem))
		return
	}
	for _, room := range rooms {
		h.parts.Rooms.Unsubscribe(h.conn, room)
	}
	h.connect.unsubscribe(rooms, func() { reply(frame.Done(r.ID)) })
}
