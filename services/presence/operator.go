package presence

import (
	"context"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/presence/store"
)

// operator serves the calls of operators. It stores which dead letters were dropped. Presence has no log and consumes
// no events, so there is nothing else to operate.
type operator struct {
	meshv1connect.UnimplementedOperatorServiceHandler
	store *store.Store
}

// ListParked returns an empty list: presence consumes no events.
func (*operator) ListParked(context.Context, *connect.Request[meshv1.ListParkedRequest]) (
	*connect.Response[meshv1.ListParkedResponse], error) {
	return connect.NewResponse(&meshv1.ListParkedResponse{}), nil
}

// ListDropped returns the dead letters that were dropped.
func (o *operator) ListDropped(ctx context.Context, _ *connect.Request[meshv1.ListDroppedRequest]) (
	*connect.Response[meshv1.ListDroppedResponse], error) {
	all, err := o.store.DroppedDeadLetters(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ListDroppedResponse{DeadLetters: all}), nil
}

// DropDeadLetter records that a dead letter was dropped, so that it is no longer listed.
func (o *operator) DropDeadLetter(ctx context.Context, r *connect.Request[meshv1.DropDeadLetterRequest]) (
	*connect.Response[meshv1.DropDeadLetterResponse], error) {
	if err := o.store.DropDeadLetter(ctx, r.Msg.GetDeadLetter()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.DropDeadLetterResponse{}), nil
}
