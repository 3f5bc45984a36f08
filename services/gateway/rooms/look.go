package rooms

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// look asks for permission for everyone who wants to look.
func (a *asker) look(ctx context.Context, batch []*look) (again []*look, err error) {
	var asking []*look
	var moments []hub.Moment
	request := &meshv1.LookRequest{}
	for _, l := range batch {
		moment, attached := a.view.Now(l.conn)
		if !attached {
			a.wait(l)
			continue
		}
		asking, moments = append(asking, l), append(moments, moment)
		request.Lookers = append(request.Lookers, &meshv1.Looker{User: l.conn.User, Room: l.room, Snapshot: true})
	}
	if len(asking) == 0 {
		return nil, nil
	}
	answer, err := a.ask(ctx, request)
	if err != nil {
		return nil, err
	}
	for i, l := range asking {
		a.guard(l.conn, func() {
			if !a.looked(l, moments[i], answer.Looked[i], answer.Position) {
				again = append(again, l)
			}
		})
	}
	return again, nil
}

// looked does what the owner answers to one look. It returns false when the owner has to be asked again.
func (a *asker) looked(l *look, asked hub.Moment, answer *meshv1.Looked, position int64) bool {
	if !answer.Allowed {
		a.settled(l)
		l.answer(true)
		return true
	}
	if !a.view.Look(l.conn, hub.Looked{Room: l.room, Asked: asked, Position: position,
		Snapshot: a.events(answer.Snapshot), Until: time.Now().Add(a.options.Lease)}) {
		return false
	}
	if a.settled(l) {
		a.view.Unlook(l.conn, l.room)
	}
	a.options.Changed(l.conn)
	l.answer(false)
	return true
}

// lookEnded reports whether a look needs no answer any more.
func (a *asker) lookEnded(l *look) bool {
	if !ended(l.conn) {
		return false
	}
	a.settled(l)
	return true
}

// lookFailed lets a look that could not be asked for, alone, wait before it is asked for again.
func (a *asker) lookFailed(l *look, err error) {
	if errors.Is(err, errPanic) {
		a.settled(l)
		l.conn.Close(hub.Internal)
		return
	}
	l.failures++
	a.later(l.failures, l.conn, func() { a.looking.add(l) })
}

func (a *asker) ask(ctx context.Context, request *meshv1.LookRequest) (*meshv1.LookResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	response, err := a.client.Look(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fmt.Errorf("ask %s for permission to look at %d rooms: %w", a.owner, len(request.Lookers), err)
	}
	if len(response.Msg.Looked) != len(request.Lookers) {
		return nil, fmt.Errorf("ask %s for permission to look: %d answers to %d questions", a.owner,
			len(response.Msg.Looked), len(request.Lookers))
	}
	return response.Msg, nil
}

func (a *asker) events(records []*meshv1.Record) (events []*hub.Event) {
	for i, r := range records {
		if i%32 == 31 {
			runtime.Gosched() // others' frames are due meanwhile
		}
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

// renew asks the owner again, at half of the lease, for every connection that looks. A client that is refused, or not
// answered in time, looks no more, and is sent that.
func (a *asker) renew(ctx context.Context) {
	for retry.Sleep(ctx, a.options.Lease/2) {
		a.forget()
		all := a.view.Lookers()
		for len(all) > 0 {
			n := min(maxCall, len(all))
			if err := a.renewAll(ctx, all[:n]); err != nil && ctx.Err() == nil {
				a.options.Log.Warn("rooms: looking is not renewed", "owner", a.owner, "error", err)
			}
			all = all[n:]
		}
		for _, l := range a.view.Expire(time.Now()) {
			a.options.Changed(l.Conn)
			l.Conn.Send(frame.Unsubscribed(l.Room, refusal.New(refusal.Unavailable,
				"the service of this room does not answer; subscribe again")))
		}
	}
}

func (a *asker) renewAll(ctx context.Context, lookers []hub.Looker) (err error) {
	defer a.options.Guard.Recover("rooms", func() { err = errPanic })
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
		a.options.Changed(l.Conn)
		l.Conn.Send(frame.Unsubscribed(l.Room, refusal.New(refusal.NotAMember,
			"you may not subscribe to this room any more")))
	}
	return nil
}
