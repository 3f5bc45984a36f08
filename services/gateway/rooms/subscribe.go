package rooms

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// authorize asks the owner whether it allows a batch of subscriptions. It sets aside the subscriptions of connections
// whose rooms are not known yet (see ownerCalls.wait), and returns the subscriptions for which the owner must be asked
// again.
func (a *ownerCalls) authorize(ctx context.Context, batch []*subscription) (retry []*subscription, err error) {
	var asking []*subscription
	var moments []hub.Moment
	request := &meshv1.AuthorizeSubscriptionsRequest{}
	for _, l := range batch {
		moment, attached := a.shard.Now(l.conn)
		if !attached {
			a.wait(l)
			continue
		}
		asking, moments = append(asking, l), append(moments, moment)
		request.Subscriptions = append(request.Subscriptions, &meshv1.Subscription{User: l.conn.User, Room: l.room, Snapshot: true})
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
			if !a.authorized(l, moments[i], answer.Authorizations[i], catalog.Position(answer.Position)) {
				retry = append(retry, l)
			}
		})
	}
	return retry, nil
}

// authorized applies the owner's answer to one subscription. It returns false if the owner must be asked again.
func (a *ownerCalls) authorized(l *subscription, asked hub.Moment, answer *meshv1.Authorization, position catalog.Position) bool {
	if !answer.Allowed {
		a.settled(l)
		l.answer(true)
		return true
	}
	if !a.shard.Subscribe(l.conn, hub.Authorization{Room: l.room, Asked: asked, Position: position,
		Snapshot: a.events(answer.Snapshot), Until: time.Now().Add(a.options.Lease)}) {
		return false
	}
	if a.settled(l) {
		a.shard.Unsubscribe(l.conn, l.room)
		a.options.Unsubscribed(l.conn)
	}
	l.answer(false)
	return true
}

// subscriptionEnded reports whether the connection of a subscription has ended. If so, it removes the subscription.
func (a *ownerCalls) subscriptionEnded(l *subscription) bool {
	if !ended(l.conn) {
		return false
	}
	a.settled(l)
	return true
}

// authorizeFailed handles the failure of a call for one subscription alone. It closes the connection if the call
// panicked, and otherwise repeats the call after a delay (see ownerCalls.later).
func (a *ownerCalls) authorizeFailed(l *subscription, err error) {
	if errors.Is(err, errPanic) {
		a.settled(l)
		l.conn.Close(hub.Internal)
		return
	}
	l.failures++
	a.later(l.failures, l.conn, func() { a.subscribing.add(l) })
}

func (a *ownerCalls) ask(ctx context.Context, request *meshv1.AuthorizeSubscriptionsRequest) (*meshv1.AuthorizeSubscriptionsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	response, err := a.client.AuthorizeSubscriptions(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fmt.Errorf("ask %s for authorization of %d subscriptions: %w", a.owner, len(request.Subscriptions), err)
	}
	if len(response.Msg.Authorizations) != len(request.Subscriptions) {
		return nil, fmt.Errorf("ask %s for authorization: %d answers for %d subscriptions", a.owner,
			len(response.Msg.Authorizations), len(request.Subscriptions))
	}
	return response.Msg, nil
}

func (a *ownerCalls) events(records []*meshv1.Record) (events []*hub.Event) {
	for i, r := range records {
		if i%32 == 31 {
			runtime.Gosched() // yield to goroutines that deliver to other clients
		}
		e, err := envelope.ReadRecord(r)
		if err != nil {
			a.options.Log.Error("rooms: a record of an owner cannot be read", "owner", a.owner, "error", err)
			continue
		}
		declared, _ := a.options.Catalog.Event(e.Type)
		events = append(events, hub.NewEvent(e, declared))
	}
	return events
}

// renew asks the owner again about every subscription, at intervals of half of Options.Lease. A subscription that is
// refused, or not renewed in time, is ended, and the client is sent the frame "unsubscribed".
func (a *ownerCalls) renew(ctx context.Context) {
	for retry.Sleep(ctx, a.options.Lease/2) {
		a.forget()
		all := a.shard.Subscriptions()
		for len(all) > 0 {
			n := min(maxCall, len(all))
			if err := a.renewAll(ctx, all[:n]); err != nil && ctx.Err() == nil {
				a.options.Log.Warn("rooms: subscriptions are not renewed", "owner", a.owner, "error", err)
			}
			all = all[n:]
		}
		for _, l := range a.shard.Expire(time.Now()) {
			a.options.Unsubscribed(l.Conn)
			l.Conn.Send(frame.Unsubscribed(l.Room, refusal.New(refusal.Unavailable,
				"the service of this room does not answer; subscribe again")))
		}
	}
}

func (a *ownerCalls) renewAll(ctx context.Context, subscriptions []hub.Subscription) (err error) {
	defer a.options.Guard.Recover("rooms", func() { err = errPanic })
	request := &meshv1.AuthorizeSubscriptionsRequest{}
	for _, l := range subscriptions {
		request.Subscriptions = append(request.Subscriptions, &meshv1.Subscription{User: l.Conn.User, Room: l.Room})
	}
	until := time.Now().Add(a.options.Lease)
	answer, err := a.ask(ctx, request)
	if err != nil {
		return err
	}
	for i, l := range subscriptions {
		if answer.Authorizations[i].Allowed {
			a.shard.Renew(l, until)
			continue
		}
		a.shard.Unsubscribe(l.Conn, l.Room)
		a.options.Unsubscribed(l.Conn)
		l.Conn.Send(frame.Unsubscribed(l.Room, refusal.New(refusal.NotAMember,
			"you may not subscribe to this room any more")))
	}
	return nil
}
