// Package fake provides an owner for the gateway's tests: a log in memory with the rooms that its events open and
// close, served in the same way as by a real owner.
package fake

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Owner is a service with a log.
type Owner struct {
	Name    string
	Catalog *catalog.Catalog

	mu        sync.Mutex
	away      bool
	refused   int
	log       []envelope.Event
	versions  map[string]catalog.Version
	before    map[place]catalog.Position
	counts    map[string]int32 // the number of partitions of each topic that has grown
	epochs    map[string]int32
	history   string                                  // the incarnation of the log
	spoiled   map[catalog.Position]bool               // positions of records that cannot be read
	rooms     map[string]map[string]bool              // user → rooms
	stays     map[string][]*meshv1.MembershipInterval // all membership intervals of each user
	open      map[string]*meshv1.MembershipInterval   // the open membership intervals, by "user room"
	inRoom    map[string][]catalog.Position           // the positions of the events in each room, ascending
	records   map[catalog.Position]*meshv1.Record     // encoded records, by position
	allowed   map[string]bool                         // by "user room", whether the user may subscribe
	snapshots map[string][]envelope.Event
	asked     int
	resumed   int
	failing   string // calls of Resume that include this user fail
	slow      time.Duration
	hanging   string                   // calls of Resume that include this user are held
	holding   chan struct{}            // calls of Rooms are held until this channel is closed; nil if they are not held
	gates     map[string]chan struct{} // by room or session; see Hold
	held      chan struct{}            // see Hanging
	release   chan struct{}            // closed when the calls that HangFor holds continue
	bounds    string                   // see Bounds
	reports   []*meshv1.ReportRequest
	again     bool
	ended     []string
	sessions  map[string]sessionRooms // by "user session"
	restored  int
	answer    func(name string, q Question) (string, error)
}

type place struct {
	topic     string
	partition int32
}

// NewOwner returns an owner with an empty log.
func NewOwner(c *catalog.Catalog, name string) *Owner {
	return &Owner{Name: name, Catalog: c, versions: map[string]catalog.Version{}, counts: map[string]int32{},
		epochs: map[string]int32{}, before: map[place]catalog.Position{}, spoiled: map[catalog.Position]bool{},
		rooms: map[string]map[string]bool{}, stays: map[string][]*meshv1.MembershipInterval{}, open: map[string]*meshv1.MembershipInterval{},
		inRoom: map[string][]catalog.Position{}, records: map[catalog.Position]*meshv1.Record{}, allowed: map[string]bool{}, snapshots: map[string][]envelope.Event{},
		sessions: map[string]sessionRooms{}, gates: map[string]chan struct{}{}, held: make(chan struct{}, 100), release: make(chan struct{})}
}

// Handler serves the log, the queries and the health of the owner. As presence does, it also receives the gateways'
// reports about their connections, and returns the rooms of sessions.
func (o *Owner) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(meshv1connect.NewOwnerServiceHandler(o, connect.WithCompression("gzip", nil, nil))) // as real owners do
	mux.Handle(meshv1connect.NewConnectionServiceHandler(o))
	o.mountQueries(mux)
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"status":"healthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":true}}`))
	})
	return mux
}

// Event returns an event of a declared type with data from JSON. It is not part of a log.
func (o *Owner) Event(actor, name, data string) envelope.Event {
	declared, ok := o.Catalog.Event(name)
	if !ok {
		panic("no event " + name)
	}
	m := declared.Type.New().Interface()
	if err := protojson.Unmarshal([]byte(data), m); err != nil {
		panic(fmt.Sprintf("%s %s: %v", name, data, err))
	}
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	p := declared.Place(m, catalog.Origin{Actor: actor})
	return envelope.Event{ID: uuid.NewString(), Type: name, Source: o.Name, Stream: p.Stream, Key: o.Catalog.KeyOf(p.Stream), Time: time.Now().UTC(),
		Actor: actor, Class: declared.Class, Rooms: p.Rooms, Opens: p.Opens, Closes: p.Closes, Subject: p.Subject,
		Body: body}
}

// Append appends an event to the log, and opens and closes its rooms.
func (o *Owner) Append(actor, name, data string) envelope.Event {
	return o.Answer(actor, "", "", name, data)
}

// Answer appends the event that a command led to.
func (o *Owner) Answer(actor, commandID, command, name, data string) envelope.Event {
	e := o.Event(actor, name, data)
	declared, _ := o.Catalog.Event(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.versions[e.Stream]++
	e.Version, e.Position = o.versions[e.Stream], catalog.Position(len(o.log))+1
	e.Cause, e.Answers, e.CommandType = commandID, commandID != "", command
	at := place{declared.Topic, o.partition(declared.Topic, e.PartitionKey())}
	e.Before = o.before[at]
	o.before[at] = e.Position
	o.stamp(&e, declared.Topic)
	for _, m := range e.Opens {
		for _, user := range m.Users {
			if o.rooms[user] == nil {
				o.rooms[user] = map[string]bool{}
			}
			o.rooms[user][m.Room] = true
		}
	}
	for _, m := range e.Closes {
		for _, user := range m.Users {
			delete(o.rooms[user], m.Room)
		}
	}
	o.log = append(o.log, e)
	o.index(e)
	return e
}

// Position returns the record that contains the position up to which a partition is complete.
func (o *Owner) Position(topic string, partition int32) envelope.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := envelope.Position(o.Name, catalog.Position(len(o.log)), o.before[place{topic, partition}])
	o.stamp(&e, topic)
	return e
}

// stamp sets the fields of a record that a real owner's relay sets.
func (o *Owner) stamp(e *envelope.Event, topic string) {
	e.Incarnation = o.history
	if e.Epoch = o.epochs[topic]; e.Epoch > 0 {
		e.Partitions = o.counts[topic]
	}
}

// Grow begins an epoch of a topic with the given number of partitions, and returns the fences, by partition.
func (o *Owner) Grow(topic string, partitions int32) (fences []envelope.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts[topic] = partitions
	o.epochs[topic] = max(o.epochs[topic], 1) + 1
	for n := range partitions {
		at := place{topic, n}
		e := envelope.Position(o.Name, catalog.Position(len(o.log)), o.before[at])
		o.stamp(&e, topic)
		e.Fence = true
		o.before[at] = max(o.before[at], e.Position)
		fences = append(fences, e)
	}
	return fences
}

// Restore begins a new incarnation of the log, as if the log had lost its newest events.
func (o *Owner) Restore(incarnation string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.history = incarnation
}

func (o *Owner) partition(topic, key string) int32 {
	for _, t := range o.Catalog.Topics(o.Name) {
		if t.Name == topic {
			return envelope.Partition(key, max(t.Partitions, o.counts[topic]))
		}
	}
	panic("no topic " + topic)
}

// Partition returns the partition of an event.
func (o *Owner) Partition(e envelope.Event) int32 {
	declared, _ := o.Catalog.Event(e.Type)
	return o.partition(declared.Topic, e.PartitionKey())
}

// SetAway makes the owner unavailable, or available again.
func (o *Owner) SetAway(away bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = away
}

// Allow sets whether a user may subscribe to a room, and the events that a subscription gets first.
func (o *Owner) Allow(user, room string, allowed bool, snapshot ...envelope.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.allowed[user+" "+room], o.snapshots[room] = allowed, snapshot
}

// Asked returns the number of calls of Rooms and AuthorizeSubscriptions that came while the owner was available.
func (o *Owner) Asked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

// Log returns all appended events.
func (o *Owner) Log() []envelope.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.log)
}

// Resumed returns the number of calls of Resume that came while the owner was available.
func (o *Owner) Resumed() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.resumed
}

// Bounds returns the bounds in the last call of Resume: the number of events, a space, and the number of bytes.
func (o *Owner) Bounds() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bounds
}

// Spoil makes the record at a position unreadable in ReadLog.
func (o *Owner) Spoil(position catalog.Position) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spoiled[position] = true
}

// FailFor makes every call of Resume that includes the user fail.
func (o *Owner) FailFor(user string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failing = user
}

// Slow delays every call of Rooms, AuthorizeSubscriptions and SessionRooms by the given time.
func (o *Owner) Slow(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.slow = d
}

// HangFor holds every call of Resume that includes the user. After the function release is called, these calls and all
// later ones for the user fail.
func (o *Owner) HangFor(user string) (release func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hanging = user
	return func() {
		o.mu.Lock()
		o.failing, o.hanging = user, ""
		o.mu.Unlock()
		close(o.release)
	}
}

// HoldRooms holds the calls of Rooms until the function release is called.
func (o *Owner) HoldRooms() (release func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	holding := make(chan struct{})
	o.holding = holding
	return sync.OnceFunc(func() {
		o.mu.Lock()
		o.holding = nil
		o.mu.Unlock()
		close(holding)
	})
}

// Hold holds the calls of AuthorizeSubscriptions for a room, or of SessionRooms for a session, until the function
// release is called. It does not hold renewals of subscriptions.
func (o *Owner) Hold(name string) (release func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	gate := make(chan struct{})
	o.gates[name] = gate
	return sync.OnceFunc(func() {
		o.mu.Lock()
		delete(o.gates, name)
		o.mu.Unlock()
		close(gate)
	})
}

// pass waits while Hold holds calls with one of the names. Each held call sends a value to the channel of Hanging.
func (o *Owner) pass(ctx context.Context, names ...string) {
	for _, name := range names {
		o.mu.Lock()
		gate := o.gates[name]
		o.mu.Unlock()
		if gate == nil {
			continue
		}
		o.held <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
}

// Hanging returns a channel that gets a value for each call that Hold or HangFor holds.
func (o *Owner) Hanging() <-chan struct{} { return o.held }

// Refused returns the number of calls that came while the owner was unavailable.
func (o *Owner) Refused() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.refused
}

// Reports returns all reports of gateways.
func (o *Owner) Reports() []*meshv1.ReportRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.reports)
}

// AskAgain makes the owner ask for all connections in its answer to the next report.
func (o *Owner) AskAgain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.again = true
}

func (o *Owner) pause() {
	o.mu.Lock()
	d := o.slow
	o.mu.Unlock()
	time.Sleep(d)
}

func (o *Owner) here() error {
	if o.away {
		o.refused++
		return connect.NewError(connect.CodeUnavailable, errors.New("away"))
	}
	return nil
}

// ReadLog returns the log in pages of up to three events, so that readers need several pages.
func (o *Owner) ReadLog(_ context.Context, r *connect.Request[meshv1.ReadLogRequest]) (
	*connect.Response[meshv1.ReadLogResponse], error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.here(); err != nil {
		return nil, err
	}
	until := r.Msg.Until
	if until == 0 || until > int64(len(o.log)) {
		until = int64(len(o.log))
	}
	page := &meshv1.ReadLogResponse{Incarnation: o.history, Head: int64(len(o.log)), Complete: until}
	for _, e := range o.log[r.Msg.After:until] {
		declared, _ := o.Catalog.Event(e.Type)
		if r.Msg.Topic != "" && r.Msg.Topic != declared.Topic {
			continue
		}
		if r.Msg.Partitions > 0 && envelope.Partition(e.Stream, r.Msg.Partitions) != r.Msg.Partition {
			continue
		}
		if len(page.Records) == 3 {
			break
		}
		record := e.Record(declared.Topic)
		if o.spoiled[e.Position] {
			record.Headers = nil
		}
		page.Records = append(page.Records, record)
		if page.Complete = until; len(page.Records) == 3 {
			page.Complete = int64(e.Position)
		}
	}
	return connect.NewResponse(page), nil
}

// Rooms returns the rooms of users.
func (o *Owner) Rooms(ctx context.Context, r *connect.Request[meshv1.RoomsRequest]) (
	*connect.Response[meshv1.RoomsResponse], error) {
	o.pause()
	o.mu.Lock()
	defer o.mu.Unlock()
	if holding := o.holding; holding != nil {
		o.mu.Unlock()
		select {
		case <-holding:
		case <-ctx.Done():
		}
		o.mu.Lock()
	}
	if err := o.here(); err != nil {
		return nil, err
	}
	o.asked++
	answer := &meshv1.RoomsResponse{Incarnation: o.history, Position: int64(len(o.log))}
	for _, user := range r.Msg.Users {
		u := &meshv1.UserRooms{User: user}
		for room := range o.rooms[user] {
			u.Rooms = append(u.Rooms, room)
		}
		answer.Users = append(answer.Users, u)
	}
	return connect.NewResponse(answer), nil
}

// AuthorizeSubscriptions reports which users may subscribe to which rooms.
func (o *Owner) AuthorizeSubscriptions(ctx context.Context, r *connect.Request[meshv1.AuthorizeSubscriptionsRequest]) (
	*connect.Response[meshv1.AuthorizeSubscriptionsResponse], error) {
	o.pause()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.here(); err != nil {
		return nil, err
	}
	o.asked++
	answer := &meshv1.AuthorizeSubscriptionsResponse{Incarnation: o.history, Position: int64(len(o.log))}
	for _, l := range r.Msg.Subscriptions {
		authorization := &meshv1.Authorization{Allowed: o.allowed[l.User+" "+l.Room]}
		if authorization.Allowed && l.Snapshot {
			for _, e := range o.snapshots[l.Room] {
				declared, _ := o.Catalog.Event(e.Type)
				authorization.Snapshot = append(authorization.Snapshot, e.Record(declared.Topic))
			}
		}
		answer.Authorizations = append(answer.Authorizations, authorization)
	}
	for _, l := range r.Msg.Subscriptions {
		// The subscriptions are decided already. While Hold holds the room, only the answer waits. An answer to a
		// renewal, which requests no snapshot, does not wait.
		if l.Snapshot {
			o.mu.Unlock()
			o.pass(ctx, l.Room)
			o.mu.Lock()
		}
	}
	return connect.NewResponse(answer), nil
}

// EndSessions makes the answers to later reports contain the given connections, whose sessions are ended.
func (o *Owner) EndSessions(connections ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = connections
}

// sessionRooms are the rooms of a session, and the time when the connection that reported them was opened.
type sessionRooms struct {
	rooms       []string
	connectedAt time.Time
}

// SessionRooms returns the rooms that Report has stored for each of the given sessions.
func (o *Owner) SessionRooms(ctx context.Context, r *connect.Request[meshv1.SessionRoomsRequest]) (
	*connect.Response[meshv1.SessionRoomsResponse], error) {
	o.pause()
	for _, s := range r.Msg.Sessions {
		o.pass(ctx, s.Session)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.here(); err != nil {
		return nil, err
	}
	o.restored++
	answer := &meshv1.SessionRoomsResponse{}
	for _, s := range r.Msg.Sessions {
		answer.Sessions = append(answer.Sessions, &meshv1.SubscribedRooms{Rooms: o.sessions[s.User+" "+s.Session].rooms})
	}
	return connect.NewResponse(answer), nil
}

// Session returns the rooms that Report has stored for a session.
func (o *Owner) Session(user, session string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.sessions[user+" "+session].rooms)
}

// Forget removes the rooms of all sessions.
func (o *Owner) Forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.sessions)
}

// Restored returns the number of calls of SessionRooms that came while the owner was available.
func (o *Owner) Restored() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.restored
}

// Report records a report of a gateway, and stores the rooms that the report contains for sessions.
func (o *Owner) Report(_ context.Context, r *connect.Request[meshv1.ReportRequest]) (
	*connect.Response[meshv1.ReportResponse], error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.here(); err != nil {
		return nil, err
	}
	o.reports = append(o.reports, r.Msg)
	for _, c := range r.Msg.Changes {
		// Gateways report concurrently, so the end of an older connection may be reported after a newer connection.
		at, of := c.ConnectedAt.AsTime(), c.User+" "+c.Session
		before, known := o.sessions[of]
		if c.Rooms != nil && !at.Before(before.connectedAt) && !(known && c.Rooms.Restored) {
			o.sessions[of] = sessionRooms{c.Rooms.Rooms, at}
		}
	}
	again := o.again && !r.Msg.More // only in the answer to the last part, as presence does
	o.again = o.again && r.Msg.More
	return connect.NewResponse(&meshv1.ReportResponse{ReportAll: again, Ended: o.ended}), nil
}
