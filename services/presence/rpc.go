package presence

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/presence/store"
)

// connections serves ConnectionService: the calls of gateways about connections and sessions.
type connections struct {
	store   *store.Store
	changed func()
}

// Report applies a report of a gateway: it stores the changes of the gateway's connections, and renews the gateway's
// lease. If the gateway stops, Report ends all its connections instead of renewing the lease.
func (c *connections) Report(ctx context.Context, r *connect.Request[meshv1.ReportRequest]) (
	*connect.Response[meshv1.ReportResponse], error) {
	if !catalog.ValidID(r.Msg.GetGateway()) {
		return nil, refusal.New(refusal.InvalidField, "gateway must be an id")
	}
	for _, change := range r.Msg.GetChanges() {
		session := change.GetSession()
		if !catalog.ValidID(change.GetConnection()) || !catalog.ValidID(change.GetUser()) ||
			session != "" && !catalog.ValidID(session) || strings.ContainsAny(change.GetResumeToken(), " \n") {
			return nil, refusal.New(refusal.InvalidField, "the connection, user and session of a change must be ids, and its resume token must not contain spaces")
		}
		for _, room := range change.GetRooms().GetRooms() {
			if _, _, ok := catalog.SplitAddress(room); !ok {
				return nil, refusal.New(refusal.InvalidField, "rooms must be addresses, such as post:7")
			}
		}
	}
	answer, ended, err := c.store.Report(ctx, r.Msg)
	if err != nil {
		return nil, err
	}
	if answer == store.Old {
		return nil, refusal.New("old_report", "a newer report of this gateway was already applied")
	}
	c.changed()
	return connect.NewResponse(&meshv1.ReportResponse{ReportAll: answer == store.ReportAll, Ended: ended}), nil
}

// maxSessions is the maximum number of sessions in one call of SessionRooms.
const maxSessions = 100

// SessionRooms returns, for each session, the rooms that its newest connection was subscribed to.
func (c *connections) SessionRooms(ctx context.Context, r *connect.Request[meshv1.SessionRoomsRequest]) (
	*connect.Response[meshv1.SessionRoomsResponse], error) {
	if len(r.Msg.GetSessions()) > maxSessions {
		return nil, refusal.New(refusal.InvalidField, "%d sessions are requested, the maximum is %d", len(r.Msg.GetSessions()), maxSessions)
	}
	var keys []store.SessionKey
	for _, s := range r.Msg.GetSessions() {
		if !catalog.ValidID(s.GetUser()) || !catalog.ValidID(s.GetSession()) {
			return nil, refusal.New(refusal.InvalidField, "user and session must be ids")
		}
		keys = append(keys, store.SessionKey{User: s.GetUser(), ID: s.GetSession()})
	}
	all, err := c.store.SessionRooms(ctx, keys)
	if err != nil {
		return nil, err
	}
	answer := &meshv1.SessionRoomsResponse{}
	for _, rooms := range all {
		answer.Sessions = append(answer.Sessions, &meshv1.SubscribedRooms{Rooms: rooms})
	}
	return connect.NewResponse(answer), nil
}

// owner serves the calls that gateways make to every owner. The rooms of presence have state, but no log.
type owner struct {
	store   *store.Store
	catalog *catalog.Catalog
}

// ReadLog returns no records: presence has no log.
func (*owner) ReadLog(context.Context, *connect.Request[meshv1.ReadLogRequest]) (*connect.Response[meshv1.ReadLogResponse], error) {
	return connect.NewResponse(&meshv1.ReadLogResponse{}), nil
}

// Rooms returns no rooms: the rooms of presence have no members. Clients subscribe to them.
func (*owner) Rooms(_ context.Context, r *connect.Request[meshv1.RoomsRequest]) (*connect.Response[meshv1.RoomsResponse], error) {
	answer := &meshv1.RoomsResponse{}
	for _, user := range r.Msg.GetUsers() {
		answer.Users = append(answer.Users, &meshv1.UserRooms{User: user})
	}
	return connect.NewResponse(answer), nil
}

// Resume returns no missed events: a client that subscribes again gets the current state.
func (*owner) Resume(_ context.Context, r *connect.Request[meshv1.ResumeRequest]) (*connect.Response[meshv1.ResumeResponse], error) {
	answer := &meshv1.ResumeResponse{}
	for range r.Msg.GetResumers() {
		answer.Resumed = append(answer.Resumed, &meshv1.Resumed{})
	}
	return connect.NewResponse(answer), nil
}

// AuthorizeSubscriptions allows every user to subscribe to the presence of any user, and to no other rooms. It returns
// the current states as snapshots, if they are requested.
func (o *owner) AuthorizeSubscriptions(ctx context.Context, r *connect.Request[meshv1.AuthorizeSubscriptionsRequest]) (*connect.Response[meshv1.AuthorizeSubscriptionsResponse], error) {
	answer := &meshv1.AuthorizeSubscriptionsResponse{}
	var users []string
	var shown []*meshv1.Authorization // the results that get a snapshot; shown[i] is about users[i]
	for _, l := range r.Msg.GetSubscriptions() {
		kind, user, ok := catalog.SplitAddress(l.GetRoom())
		authorization := &meshv1.Authorization{Allowed: ok && kind == "presence"}
		answer.Authorizations = append(answer.Authorizations, authorization)
		if authorization.Allowed && l.GetSnapshot() {
			users, shown = append(users, user), append(shown, authorization)
		}
	}
	if len(users) == 0 {
		return connect.NewResponse(answer), nil // no snapshots are requested; renewals never request any
	}
	states, err := o.store.States(ctx, users)
	if err != nil {
		return nil, err
	}
	for i, authorization := range shown {
		e, declared, err := event(o.catalog, states[i])
		if err != nil {
			return nil, err
		}
		authorization.Snapshot = []*meshv1.Record{e.Record(declared.Topic)}
	}
	return connect.NewResponse(answer), nil
}
