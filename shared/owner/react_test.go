package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// lender is an owner with one stream, which counts what it hands out.
type lender struct {
	meshv1connect.OwnerServiceClient
	versions int64
	given    int
	endless  bool // some page had no deadline
}

func (o *lender) ReadLog(ctx context.Context, r *connect.Request[meshv1.ReadLogRequest]) (
	*connect.Response[meshv1.ReadLogResponse], error) {
	_, bounded := ctx.Deadline()
	o.endless = o.endless || !bounded
	page := &meshv1.ReadLogResponse{Head: o.versions, Complete: o.versions}
	for v := max(r.Msg.GetAfter(), r.Msg.GetAfterVersion()) + 1; v <= o.versions; v++ {
		e := envelope.Event{ID: fmt.Sprint("e", v), Type: "chat.message_sent", Source: "chat", Stream: "conversation:7",
			Version: v, Position: v}
		page.Records = append(page.Records, e.Record("chat-events"))
		if int32(len(page.Records)) == r.Msg.GetLimit() {
			page.Complete = v
			break
		}
	}
	o.given += len(page.GetRecords())
	return connect.NewResponse(page), nil
}

func TestMissing_ReadsWhatIsMissingAndNoMore(t *testing.T) {
	t.Parallel()
	for _, missing := range []int64{1, 3, 1200} {
		o := &lender{versions: 50_000}
		r := &reactor{from: "chat", owner: o, logger: slog.New(slog.DiscardHandler), ctx: t.Context()}
		var got, want []int64
		err := r.missing("conversation:7", 40_000, 40_001+missing, func(e envelope.Event, _ context.Context) error {
			got = append(got, e.Version)
			return nil
		})
		for v := range missing {
			want = append(want, 40_001+v)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%d missing: %d were taken, %v", missing, len(got), err)
		}
		if int64(o.given) >= missing+500 || o.endless {
			t.Errorf("%d missing: %d were read; a page without a deadline: %v", missing, o.given, o.endless)
		}
	}
}

func TestMissing_WhatNoLogHas(t *testing.T) {
	t.Parallel()
	o := &lender{versions: 10}
	r := &reactor{from: "chat", owner: o, logger: slog.New(slog.DiscardHandler), ctx: t.Context()}
	taken := 0
	err := r.missing("conversation:7", 8, 20, func(envelope.Event, context.Context) error { taken++; return nil })
	if !hopeless(err) || taken != 2 {
		t.Errorf("%d taken, %v", taken, err)
	}
}

func TestPatiently_NobodyIsWaitedForOnceItGoesOn(t *testing.T) {
	t.Parallel()
	away := map[string]bool{}
	r := &reactor{ctx: t.Context(), waiting: func(dependency string, err error) {
		if away[dependency] = err != nil; err == nil {
			delete(away, dependency)
		}
	}}
	answers := []error{bus.Away("postgres", errors.New("refused")), &awayError{"chat", errors.New("refused")}, nil}
	tries := 0
	err := r.patiently("conversation:7", func() error {
		if len(away) > 1 {
			t.Errorf("waiting for %v at once", away)
		}
		tries++
		return answers[tries-1]
	})
	if err != nil || tries != 3 || len(away) > 0 {
		t.Errorf("%d tries, %v, still waiting for %v", tries, err, away)
	}
}
