package signal

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	// channels is the number of channels on Redis. Each gateway subscribes to all of them, so its subscriptions do not
	// change with the rooms of its connections.
	channels = 64
	// gather is how long signals are collected before they are published.
	gather = 2 * time.Millisecond
	// maxPublished is the maximum number of signals in one message on Redis.
	maxPublished = 256
	// heartbeat is the time without a message after which Redis is pinged. It is also how long Redis may take to answer
	// the ping, or to publish.
	heartbeat = 2 * time.Second
	// The constant again is the pause before the next attempt to reach Redis.
	again = 200 * time.Millisecond
)

func channelOf(room string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(room)) // never fails
	return int(h.Sum32() % channels)
}

func (s *Signals) channelName(n int) string {
	return fmt.Sprintf("%sedumatrix:signals:%d", s.options.Prefix, n)
}

// receive delivers the signals of other gateways. Redis counts as available while the connection that receives these
// signals is subscribed to all channels and gets responses.
func (s *Signals) receive(ctx context.Context) {
	names := make([]string, channels)
	for n := range names {
		names[n] = s.channelName(n)
	}
	for ctx.Err() == nil {
		subscription := s.options.Redis.Subscribe(ctx, names...)
		err := s.receiveFrom(ctx, subscription)
		_ = subscription.Close()
		s.setAvailable(false, err)
		retry.Sleep(ctx, again)
	}
}

func (s *Signals) receiveFrom(ctx context.Context, subscription *redis.PubSub) error {
	subscribed, pinged := 0, false
	for {
		received, err := subscription.ReceiveTimeout(ctx, heartbeat)
		var timeout net.Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &timeout) && timeout.Timeout() && !pinged:
			pinged = true
			if err := subscription.Ping(ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		pinged = false
		switch m := received.(type) {
		case *redis.Subscription:
			subscribed++
		case *redis.Message:
			s.deliverAll(m.Payload)
		}
		if subscribed >= channels {
			s.setAvailable(true, nil)
		}
	}
}

func (s *Signals) setAvailable(available bool, err error) {
	if was := s.available.Swap(available); was == available {
		return
	}
	if available {
		s.options.Log.Info("signal: signals are relayed")
	} else if err != nil && !errors.Is(err, context.Canceled) {
		s.options.Log.Warn("signal: Redis does not respond; signals are refused until it does", "error", err)
	}
}

// deliverAll delivers the signals in a message on Redis, unless this gateway has published the message itself.
func (s *Signals) deliverAll(payload string) {
	defer s.options.Guard.Recover("signals", nil)
	var all meshv1.Signals
	if err := proto.Unmarshal([]byte(payload), &all); err != nil {
		s.options.Log.Warn("signal: a message of another gateway cannot be read", "error", err)
		return
	}
	if all.Gateway == s.gateway {
		return
	}
	for _, signal := range all.Signals {
		declared, ok := s.options.Catalog.Signal(signal.Name)
		if !ok {
			continue // a signal of a newer release
		}
		m := declared.Type.New().Interface()
		if err := proto.Unmarshal(signal.Body, m); err != nil {
			s.options.Log.Warn("signal: a signal cannot be read", "signal", signal.Name, "error", err)
			continue
		}
		s.deliver(declared, signal.Room, signal.Actor, "", m)
	}
}

// publish sends the waiting signals to the other gateways.
func (s *Signals) publish(ctx context.Context) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		if !retry.Sleep(ctx, gather) {
			return
		}
		if err := s.publishAll(ctx); err != nil && ctx.Err() == nil {
			// Some or all of these signals are lost. Further signals are refused only if the method receive, which
			// has a connection of its own, gets no response from Redis either.
			s.options.Metrics.Lost.Inc()
			s.options.Log.Debug("signal: signals were lost", "error", err)
		}
	}
}

func (s *Signals) publishAll(ctx context.Context) error {
	s.mu.Lock()
	outgoing := s.outgoing
	s.outgoing, s.waiting = [channels][]*meshv1.Signal{}, 0
	s.mu.Unlock()
	pipe := s.options.Redis.Pipeline()
	for channel, signals := range outgoing {
		for len(signals) > 0 {
			n := min(maxPublished, len(signals))
			payload, err := proto.Marshal(&meshv1.Signals{Gateway: s.gateway, Signals: signals[:n]})
			if err != nil {
				return err
			}
			pipe.Publish(ctx, s.channelName(channel), payload)
			signals = signals[n:]
		}
	}
	ctx, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	_, err := pipe.Exec(ctx)
	return err
}
