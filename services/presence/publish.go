package presence

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	pollInterval = 250 * time.Millisecond // how often to look for changes that other instances have made
	maxWait      = 2 * time.Second        // the maximum pause after an error
)

// publisher publishes changes of users' presence, and then records in Redis that they are published. After a crash
// between these two steps, the changes are published again, which is harmless.
type publisher struct {
	store   *store.Store
	catalog *catalog.Catalog
	bus     message.Publisher
	log     *slog.Logger
	waiting func(dependency string, err error)
	lease   time.Duration
	wake    chan struct{}

	heard time.Time // the time since which gateways can report: the start of the service, or the last error of Redis
}

// run removes the connections of gateways whose lease has expired, and publishes changes, until ctx ends.
func (p *publisher) run(ctx context.Context) error {
	p.heard = time.Now()
	backoff := retry.Backoff{First: 2 * pollInterval, Max: maxWait}
	for {
		pause := pollInterval
		err := p.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			p.log.Warn("presence: publishing stopped, retrying", "error", err)
			pause = backoff.Next()
		} else {
			backoff.Reset()
		}
		retry.Await(ctx, p.wake, pause)
	}
}

// soon makes the next round begin at once.
func (p *publisher) soon() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *publisher) round(ctx context.Context) error {
	// Leases may have expired while gateways could not report. After a start or an outage of Redis, give gateways the
	// duration of one lease to report again. Otherwise all users would be shown as offline for a moment.
	if time.Since(p.heard) > p.lease {
		if _, err := p.store.Expire(ctx); err != nil {
			return p.redisAway(ctx, err)
		}
	}
	for {
		states, err := p.store.Dirty(ctx)
		if err != nil {
			return p.redisAway(ctx, err)
		}
		p.reportWaiting(ctx, "redis", nil)
		if len(states) == 0 {
			return nil
		}
		if err := p.publish(ctx, states); err != nil {
			return err
		}
		if err := p.store.Published(ctx, states); err != nil {
			return p.redisAway(ctx, err)
		}
	}
}

func (p *publisher) redisAway(ctx context.Context, err error) error {
	p.heard = time.Now()
	p.reportWaiting(ctx, "redis", err)
	return err
}

func (p *publisher) publish(ctx context.Context, states []store.State) error {
	messages := make([]*message.Message, 0, len(states))
	topic := ""
	for _, s := range states {
		e, declared, err := event(p.catalog, s)
		if err != nil {
			return err
		}
		topic = declared.Topic
		messages = append(messages, e.Message())
	}
	err := p.bus.Publish(topic, messages...)
	p.reportWaiting(ctx, "kafka", err)
	if err != nil {
		return fmt.Errorf("publish presence: %w", err)
	}
	return nil
}

// reportWaiting reports to health whether the publisher waits for a dependency. It reports nothing once ctx has ended,
// because the error then comes from stopping.
func (p *publisher) reportWaiting(ctx context.Context, dependency string, err error) {
	if ctx.Err() == nil {
		p.waiting(dependency, err)
	}
}

// event returns the event that publishes a user's state, and the declaration of this event.
func event(c *catalog.Catalog, s store.State) (envelope.Event, *catalog.Event, error) {
	var m proto.Message = &presencev1.WentOffline{UserId: s.User}
	if s.Online {
		m = &presencev1.CameOnline{UserId: s.User}
	}
	declared, ok := c.EventOf(m)
	if !ok {
		return envelope.Event{}, nil, fmt.Errorf("%s is not declared", m.ProtoReflect().Descriptor().FullName())
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return envelope.Event{}, nil, err
	}
	place := declared.Place(m, catalog.Origin{Actor: s.User})
	return envelope.Event{ID: place.Stream + ":" + strconv.FormatInt(s.Number, 10), Type: declared.Name,
		Source: declared.Owner, Stream: place.Stream, Version: catalog.Version(s.Number), Position: catalog.Position(s.Number), Time: time.UnixMicro(s.Number).UTC(),
		Actor: s.User, Class: declared.Class, Rooms: place.Rooms, Body: body}, declared, nil
}
