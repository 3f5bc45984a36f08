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

// attach asks for the rooms of everyone who waits. Who could not be attached waits on.
func (a *asker) attach(ctx context.Context) error {
	for {
		a.mu.Lock()
		n := min(most, len(a.attaching))
		batch := a.attaching[:n:n]
		a.attaching = a.attaching[n:]
		a.mu.Unlock()
		if n == 0 {
			return nil
		}
		again, err := a.attachAll(ctx, batch)
		if len(again) > 0 {
			a.want(func() { a.attaching = append(again, a.attaching...) })
		}
		if err != nil {
			return err
		}
	}
}

func (a *asker) attachAll(ctx context.Context, batch []*hub.Conn) (again []*hub.Conn, err error) {
	waiting := map[string][]*hub.Conn{}
	request := &meshv1.RoomsRequest{}
	for _, c := range batch {
		if ended(c) {
			continue
		}
		if waiting[c.User] == nil {
			request.Users = append(request.Users, c.User)
		}
		waiting[c.User] = append(waiting[c.User], c)
	}
	if len(request.Users) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	response, err := a.client.Rooms(ctx, connect.NewRequest(request))
	if err != nil {
		return batch, fmt.Errorf("ask %s for the rooms of %d users: %w", a.owner, len(request.Users), err)
	}
	opened := map[string][]string{}
	for _, u := range response.Msg.Users {
		opened[u.User] = u.Rooms
	}
	for user, connections := range waiting {
		for _, c := range connections {
			if !a.view.Attach(c, opened[user], response.Msg.Position) {
				again = append(again, c)
			}
		}
	}
	return again, nil
}

func ended(c *hub.Conn) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}
