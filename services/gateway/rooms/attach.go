package rooms

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

const (
	// most who are asked for in one call, so that no answer gets too large.
	most     = 500
	deadline = 5 * time.Second
)

// newcomer is a connection that waits for its rooms of one owner's log.
type newcomer struct {
	conn    *hub.Conn
	returns bool  // was here before
	marked  bool  // and its mark knows this log:
	after   int64 // it has everything up to here
	looks   []string
	answer  func(room string, refused bool) // of looks
	among   int                             // how many may be asked for with it; 0: as many as there are
}

// attach asks for the rooms of everyone who waits. Who could not be attached waits on.
func (a *asker) attach(ctx context.Context) error {
	a.crowd = false
	for {
		a.mu.Lock()
		n := min(most, len(a.attaching))
		batch := a.attaching[:n:n]
		a.attaching = a.attaching[n:]
		a.mu.Unlock()
		if n == 0 {
			return nil
		}
		a.crowd = a.crowd || n > 2
		again, err := a.attachAll(ctx, batch)
		if len(again) > 0 {
			a.want(func() { a.attaching = append(again, a.attaching...) })
		}
		if err != nil {
			return err
		}
	}
}

// attachAll attaches who begins, in one call, and who comes back, in another.
func (a *asker) attachAll(ctx context.Context, batch []newcomer) (again []newcomer, err error) {
	var begin, resume []newcomer
	for _, n := range batch {
		switch {
		case ended(n.conn):
		case n.marked:
			resume = append(resume, n)
		default:
			begin = append(begin, n)
		}
	}
	if again, err = a.begin(ctx, begin); err != nil {
		return append(again, resume...), err
	}
	more, err := a.resume(ctx, resume)
	return append(again, more...), err
}

func (a *asker) begin(ctx context.Context, batch []newcomer) (again []newcomer, err error) {
	if len(batch) == 0 {
		return nil, nil
	}
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
		return batch, fmt.Errorf("ask %s for the rooms of %d users: %w", a.owner, len(request.Users), err)
	}
	opened := map[string][]string{}
	for _, u := range response.Msg.Users {
		opened[u.User] = u.Rooms
	}
	for user, newcomers := range waiting {
		for _, n := range newcomers {
			r := hub.Return{Rooms: opened[user], Position: response.Msg.Position}
			if n.returns {
				r.TooFar = append(everything(user, r.Rooms), n.looks...)
			}
			if !a.view.Resume(n.conn, r) {
				again = append(again, n)
				continue
			}
			for _, room := range n.looks { // as if it had not looked before
				a.lookSoon(n.conn, room, func(no bool) { n.answer(room, no) })
			}
		}
	}
	return again, nil
}

// everything is all rooms of somebody: of a log of which it is not known what they have, all are too far.
func everything(user string, rooms []string) []string {
	return append([]string{"user:" + user}, rooms...)
}

func ended(c *hub.Conn) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}
