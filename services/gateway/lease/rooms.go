package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

// maxAsked is the maximum number of sessions in one call to the keeper.
const maxAsked = 100

// ask is a call of Rooms.
type ask struct {
	session *meshv1.SessionOf
	rooms   []string
	err     error
	done    chan struct{}
}

// Rooms returns the last reported rooms of a user's session, or none if there is no such session or it has ended. It
// returns an error if the keeper does not answer, or if ctx ends. Concurrent calls of Rooms share calls to the keeper.
func (l *Lease) Rooms(ctx context.Context, user, session string) ([]string, error) {
	a := &ask{session: &meshv1.SessionOf{User: user, Session: session}, done: make(chan struct{})}
	select {
	case l.asks <- a:
	case <-ctx.Done():
		return nil, fmt.Errorf("ask for the rooms of session %s: %w", session, ctx.Err())
	}
	select {
	case <-a.done:
		return a.rooms, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("ask for the rooms of session %s: %w", session, ctx.Err())
	}
}

// answer serves calls of Rooms until the context ends.
func (l *Lease) answer(ctx context.Context) {
	for {
		select {
		case a := <-l.asks:
			l.askFor(ctx, l.others(a))
		case <-ctx.Done():
			return
		}
	}
}

// others returns the given call and the calls that follow within 2 ms, at most maxAsked in all.
func (l *Lease) others(first *ask) []*ask {
	all := []*ask{first}
	moment := time.NewTimer(2 * time.Millisecond)
	defer moment.Stop()
	for len(all) < maxAsked {
		select {
		case a := <-l.asks:
			all = append(all, a)
		case <-moment.C:
			return all
		}
	}
	return all
}

func (l *Lease) askFor(ctx context.Context, all []*ask) {
	request := &meshv1.SessionRoomsRequest{}
	for _, a := range all {
		request.Sessions = append(request.Sessions, a.session)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*l.options.Every)
	defer cancel()
	response, err := l.options.Keeper.SessionRooms(ctx, connect.NewRequest(request))
	if err == nil && len(response.Msg.Sessions) != len(all) {
		err = errors.New("the keeper returned a different number of sessions")
	}
	for i, a := range all {
		if err != nil {
			a.err = fmt.Errorf("ask for the rooms of %d sessions: %w", len(all), err)
		} else {
			a.rooms = response.Msg.Sessions[i].Rooms
		}
		close(a.done)
	}
}
