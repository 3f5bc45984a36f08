package consume

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

const (
	pageWithin = 10 * time.Second // timeout of reading a page of the owner's log
	pageLimit  = 500              // maximum number of events in a page
)

// fill reads this partition's events from the owner's log, above a.readUpTo and up to a position, and saves their
// effects.
func (a *applier) fill(until catalog.Position) error {
	a.logger.Info("events are missing from the topic, reading them from their owner's log",
		"partition", a.of.Partition, "after", a.readUpTo, "until", until)
	for a.readUpTo < until {
		var page *meshv1.ReadLogResponse
		err := a.retryUnavailable(a.claim.Done(), func() (err error) {
			page, err = a.page(a.calls, &meshv1.ReadLogRequest{After: int64(a.readUpTo), Until: int64(until), Topic: a.of.Topic,
				Partition: a.of.Partition, Partitions: a.saved.Partitions, Limit: pageLimit})
			if err == nil && catalog.Position(page.GetComplete()) <= a.readUpTo {
				err = &unavailableError{a.of.Source, fmt.Errorf("its log is complete only up to %d", page.GetComplete())}
			}
			return err
		})
		if err != nil {
			return a.failed("fill a gap of", err)
		}
		if err := a.takePage(page); err != nil {
			return err
		}
		if a.isReleased() {
			return errReleased
		}
	}
	return nil
}

func (a *applier) takePage(page *meshv1.ReadLogResponse) error {
	var events []envelope.Event
	for _, r := range page.GetRecords() {
		if envelope.Partition(r.GetKey(), a.saved.Partitions) != a.of.Partition {
			continue
		}
		e, err := envelope.ReadRecord(r)
		if err != nil {
			// Skip the record, as gateways do: the version and position of its event are unknown, so its stream cannot
			// be parked.
			a.logger.Error("a record of the owner's log cannot be read", "stream", r.GetKey(), "after", a.readUpTo, "error", err)
			continue
		}
		events = append(events, e)
	}
	if err := a.loadLegacyVersions(events); err != nil {
		return err
	}
	for _, e := range events {
		if e.Position <= a.readUpTo {
			continue
		}
		if err := a.collectEffects(e, telemetry.Continue(context.Background(), e.TraceParent), a.readUpTo); err != nil {
			return err
		}
		a.readUpTo = e.Position
	}
	a.readUpTo = max(a.readUpTo, catalog.Position(page.GetComplete()))
	return a.save()
}

// page reads a page of the owner's log.
func (c *Consumer) page(ctx context.Context, request *meshv1.ReadLogRequest) (*meshv1.ReadLogResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pageWithin)
	defer cancel()
	page, err := c.o.Owner.ReadLog(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, &unavailableError{c.o.Source, err}
	}
	return page.Msg, nil
}
