package rooms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// newcomer is a connection that waits for its rooms of one owner's log.
type newcomer struct {
	conn     *hub.Conn
	returns  bool // was here before
	marked   bool // and its mark knows this log:
	had      hub.Point
	looks    []*look   // rooms that it was subscribed to
	since    time.Time // it waits
	failures int       // calls for it alone that failed
}

// rooms lists the rooms that the connection was subscribed to.
func (n newcomer) rooms() (rooms []string) {
	for _, l := range n.looks {
		rooms = append(rooms, l.room)
	}
	return rooms
}

// begin attaches those who have nothing of this log, in one call.
func (a *asker) begin(ctx context.Context, batch []newcomer) (again []newcomer, err error) {
	waiting := map[string][]newcomer{}
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
	for user, newcomers := range waiting {
		for _, n := range newcomers {
			r := hub.Return{Rooms: opened[user], Position: response.Msg.Position}
			if n.returns {
				r.TooFar = append(hub.Everything(user, r.Rooms), n.rooms()...)
			}
			attached := true
			a.guard(n.conn, func() {
				a.pace.gave(user, 0, len(r.Rooms), a.now())
				if attached = a.view.Resume(n.conn, r); attached {
					if len(n.looks) > 0 {
						a.looking.add(n.looks...) // as if it had not looked before
					}
					a.attached(n.conn)
				}
			})
			if !attached {
				again = append(again, n)
			}
		}
	}
	return again, nil
}

// guard does what concerns one connection alone: a panic costs that connection, and nobody else anything.
func (a *asker) guard(c *hub.Conn, do func()) {
	defer a.options.Guard.Recover("rooms", func() { c.Close(hub.Internal) })
	do()
}

// beginFailed lets one whose rooms could not be asked for, alone, wait before it is asked for again.
func (a *asker) beginFailed(n newcomer, err error) {
	if errors.Is(err, errPanic) {
		n.conn.Close(hub.Internal)
		return
	}
	n.failures++
	a.later(n.failures, n.conn, func() { a.beginning.add(n) })
}

// later does what concerns one connection alone after the pause for so many failures.
func (a *asker) later(failures int, c *hub.Conn, do func()) {
	time.AfterFunc(pauseAfter(failures), func() { a.guard(c, do) })
}

// pauseAfter is the pause after so many failures of one alone.
func pauseAfter(failures int) time.Duration {
	return min(time.Second<<min(failures-1, 5), 30*time.Second)
}

func ended(c *hub.Conn) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}
