package rooms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/retry"
)

// attaching is a connection that waits for its rooms of one owner's log.
type attaching struct {
	conn          *hub.Conn
	resumes       bool // the client has a resume token
	hasProgress   bool // whether to resume, from the progress in point; false if there is none, or resuming failed
	point         hub.Point
	subscriptions []*subscription // rooms to subscribe the connection to
	since         time.Time       // when the connection began to wait
	failures      int             // failed calls for this connection alone
}

// rooms returns the names of the rooms in the field subscriptions.
func (n attaching) rooms() (rooms []string) {
	for _, l := range n.subscriptions {
		rooms = append(rooms, l.room)
	}
	return rooms
}

// begin attaches connections without progress in this log, such as those of clients that do not resume. It asks for the
// rooms of their users in one call, and returns the connections for which the owner must be asked again.
func (a *ownerCalls) begin(ctx context.Context, batch []attaching) (retry []attaching, err error) {
	waiting := map[string][]attaching{}
	request := &meshv1.RoomsRequest{}
	for _, n := range batch {
		user := n.conn.User
		if waiting[user] == nil {
			request.Users = append(request.Users, user)
		}
		waiting[user] = append(waiting[user], n)
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	a.options.Metrics.Calls.WithLabelValues(a.owner, "rooms").Inc()
	response, err := a.client.Rooms(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fmt.Errorf("ask %s for the rooms of %d users: %w", a.owner, len(request.Users), err)
	}
	opened := map[string][]string{}
	for _, u := range response.Msg.Users {
		opened[u.User] = u.Rooms
	}
	for user, same := range waiting {
		for _, n := range same {
			r := hub.Attachment{Rooms: opened[user], Position: catalog.Position(response.Msg.Position)}
			if n.resumes {
				r.NotRecovered = append(hub.AllRooms(user, r.Rooms), n.rooms()...)
			}
			attached := true
			a.guard(n.conn, func() {
				a.pace.charge(user, 0, len(r.Rooms), a.now())
				if attached = a.shard.Attach(n.conn, r); attached {
					if len(n.subscriptions) > 0 {
						a.subscribing.add(n.subscriptions...)
					}
					a.attached(n.conn)
				}
			})
			if !attached {
				retry = append(retry, n)
			}
		}
	}
	return retry, nil
}

// guard calls the function do, which concerns one connection alone. A panic in do closes that connection and no other.
func (a *ownerCalls) guard(c *hub.Conn, do func()) {
	defer a.options.Guard.Recover("rooms", func() { c.Close(hub.Internal) })
	do()
}

// beginFailed handles the failure of a call for one connection alone. It closes the connection if the call panicked,
// and otherwise repeats the call after a delay (see ownerCalls.later).
func (a *ownerCalls) beginFailed(n attaching, err error) {
	if errors.Is(err, errPanic) {
		n.conn.Close(hub.Internal)
		return
	}
	n.failures++
	a.later(n.failures, n.conn, func() { a.beginning.add(n) })
}

// later calls the function do, which concerns one connection alone, after a delay: about 1 s after the first failure,
// then doubling up to about 30 s.
func (a *ownerCalls) later(failures int, c *hub.Conn, do func()) {
	time.AfterFunc(retry.Delay(failures, time.Second, 30*time.Second), func() { a.guard(c, do) })
}

func ended(c *hub.Conn) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}
