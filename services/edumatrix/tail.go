package edumatrix

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/process"
)

// tailEvents prints the events of topics until ctx ends or an error occurs, for example because the output is closed.
func tailEvents(ctx context.Context, t Terminal, args []string) error {
	f := flags("events", t)
	fromStart := f.Bool("from-start", false, "begin with the oldest event on the topics")
	all := f.Bool("all", false, "also show records that only report the position up to which a partition is complete")
	asJSON := f.Bool("json", false, "one JSON object per line")
	rest, err := arguments(f, args)
	if err != nil {
		return err
	}
	if len(rest) == 0 || rest[0] != "tail" {
		return t.wrongly("edumatrix events needs: tail [TOPIC...]")
	}
	i, err := findInstallation(t)
	if err != nil {
		return err
	}
	topics, err := eventTopics(i.declared, rest[1:], t)
	if err != nil {
		return err
	}
	if err := i.reachesKafka(ctx); err != nil {
		return err
	}
	tail := &tail{shower: &shower{out: t.Out, ink: t.ink(), json: *asJSON, declared: i.declared}, positions: *all}
	begin := func(_ string, _ int32, oldest, end int64) int64 {
		if *fromStart {
			return oldest
		}
		return end
	}
	reader, err := bus.NewReader(i.kafka, bus.ReaderOptions{From: begin, Log: process.NewLog(t.Err)})
	if err != nil {
		return err
	}
	return tail.follow(ctx, reader, topics)
}

// eventTopics returns the named topics or, if none is named, all topics with events or states.
func eventTopics(declared *catalog.Catalog, named []string, t Terminal) (topics []string, err error) {
	for _, topic := range slices.Concat(declared.LoggedTopics(""), declared.StateTopics()) {
		if !slices.Contains(topics, topic.Name) {
			topics = append(topics, topic.Name)
		}
	}
	slices.Sort(topics)
	if len(named) == 0 {
		return topics, nil
	}
	for _, name := range named {
		if !slices.Contains(topics, name) {
			return nil, t.wrongly("%q is not a topic with events; these are: %s", name, strings.Join(topics, ", "))
		}
	}
	return named, nil
}

// tail prints the events of topics as they arrive.
type tail struct {
	*shower
	positions bool
}

func (s *tail) follow(ctx context.Context, reader *bus.Reader, topics []string) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var reading sync.WaitGroup
	for _, topic := range topics {
		messages, err := reader.Subscribe(ctx, topic)
		if err != nil {
			stop(err)
			break
		}
		reading.Go(func() {
			for m := range messages {
				if err := s.show(m); err != nil {
					stop(err) // the output is closed
				}
				m.Ack()
			}
		})
	}
	<-ctx.Done()
	err := reader.Close()
	reading.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

func (s *tail) show(m *message.Message) error {
	at := whereOf(m)
	e, err := envelope.ReadEvent(m)
	switch {
	case err != nil && s.json:
		return s.object(shown{Topic: at.topic, Partition: &at.partition, Offset: &at.offset, ID: m.UUID,
			Problem: err.Error()})
	case err != nil:
		return s.write(s.ink.paint(red, at.topic+": "+printable(err.Error())))
	case e.IsPosition() && !s.positions:
		return nil
	}
	return s.event(e, &at)
}

func whereOf(m *message.Message) (at where) {
	at.topic, _ = bus.TopicOf(m.Context())
	at.partition, _ = bus.PartitionOf(m.Context())
	at.offset, _ = bus.OffsetOf(m.Context())
	return at
}
