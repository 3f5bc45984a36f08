package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// look asks for leave for everyone who wants to look. Who could not be answered waits on.
func (a *asker) look(ctx context.Context) error {
	for {
		a.mu.Lock()
		n := min(most, len(a.looking))
		batch := a.looking[:n:n]
		a.looking = a.looking[n:]
		a.mu.Unlock()
		if n == 0 {
			return nil
		}
		again, err := a.lookAll(ctx, batch)
		if len(again) > 0 {
			a.want(func() { a.looking = append(again, a.looking...) })
		}
		if err != nil {
			return err
		}
		if len(again) > 0 && len(again) == n {
			return fmt.Errorf("look at rooms of %s: %d connections are not attached yet", a.owner, n)
		}
	}
}

func (a *asker) lookAll(ctx context.Context, batch []*look) (again []*look, err error) {
	var asking []*look
	var moments []hub.Moment
	request := &meshv1.LookRequest{}
	for _, l := range batch {
		if ended(l.conn) {
			a.settled(l)
			continue
		}
		moment, attached := a.view.Now(l.conn)
		if !attached {
			again = append(again, l)
			continue
		}
		asking, moments = append(asking, l), append(moments, moment)
		request.Lookers = append(request.Lookers, &meshv1.Looker{User: l.conn.User, Room: l.room, Snapshot: true})
	}
	if len(asking) == 0 {
		return again, nil
	}
	answer, err := a.ask(ctx, request)
	if err != nil {
		return batch, err
	}
	for i, l := range asking {
		if !answer.Looked[i].Allowed {
			a.settled(l)
			l.answer(true)
			continue
		}
		looked := hub.Looked{Room: l.room, Asked: moments[i], Position: answer.Position,
			Snapshot: a.events(answer.Looked[i].Snapshot), Until: time.Now().Add(a.options.Lease)}
		if !a.view.Look(l.conn, looked) {
			again = append(again, l)
			continue
		}
		if a.settled(l) {
			a.view.Unlook(l.conn, l.room)
		}
		l.answer(false)
	}
	return again, nil
}

func (a *asker) ask(ctx context.Context, request *meshv1.LookRequest) (*meshv1.LookResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	response, err := a.client.Look(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fmt.Errorf("ask %s for leave to look at %d rooms: %w", a.owner, len(request.Lookers), err)
	}
	if len(response.Msg.Looked) != len(request.Lookers) {
		return nil, fmt.Errorf("ask %s for leave to look: %d answers to %d questions", a.owner,
			len(response.Msg.Looked), len(request.Lookers))
	}
	return response.Msg, nil
}

func (a *asker) events(records []*meshv1.Record) (events []*hub.Event) {
	for _, r := range records {
		e, err := envelope.ReadRecord(r)
		if err != nil {
			a.options.Log.Error("rooms: a snapshot cannot be read", "owner", a.owner, "error", err)
			continue
		}
		declared, _ := a.options.Catalog.Event(e.Type)
		events = append(events, hub.NewEvent(e, declared))
	}
	return events
}

// renew asks again, by the half lease, for everyone who looks; who is refused, or not answered in time, looks no more
// and is told so.
func (a *asker) renew(ctx context.Context) error {
	for sleep(ctx, a.options.Lease/2) {
		all := a.view.Lookers()
		for len(all) > 0 {
			n := min(most, len(all))
			if err := a.renewAll(ctx, all[:n]); err != nil && ctx.Err() == nil {
				a.options.Log.Warn("rooms: looking is not renewed", "owner", a.owner, "error", err)
			}
			all = all[n:]
		}
		for _, l := range a.view.Expire(time.Now()) {
			l.Conn.Send(Unlooked(l.Room, refusal.Unavailable, "nobody answers for this room, look again"))
		}
	}
	return nil
}

func (a *asker) renewAll(ctx context.Context, lookers []hub.Looker) error {
	request := &meshv1.LookRequest{}
	for _, l := range lookers {
		request.Lookers = append(request.Lookers, &meshv1.Looker{User: l.Conn.User, Room: l.Room})
	}
	until := time.Now().Add(a.options.Lease)
	answer, err := a.ask(ctx, request)
	if err != nil {
		return err
	}
	for i, l := range lookers {
		if answer.Looked[i].Allowed {
			a.view.Renew(l, until)
			continue
		}
		a.view.Unlook(l.Conn, l.Room)
		l.Conn.Send(Unlooked(l.Room, refusal.NotAMember, "you may not look at this any more"))
	}
	return nil
}

// Unlooked is the frame that tells a client that it looks at a room no longer.
func Unlooked(room, code, text string) []byte {
	type problem struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	frame, _ := json.Marshal(struct {
		Unlooked string  `json:"unlooked"`
		Error    problem `json:"error"`
	}{room, problem{code, text}})
	return frame
}
