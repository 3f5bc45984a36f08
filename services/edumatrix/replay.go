package edumatrix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/owner"
)

// replayBatch is the maximum number of events that are published together.
const replayBatch = 500

// selected describes the events of a log that are replayed.
type selected struct {
	owner, topic, stream string
	since, until         time.Time
}

// replay sends a part of a log to one consumer again.
func replay(ctx context.Context, t Terminal, args []string) error {
	f := flags("replay", t)
	s := selected{}
	f.StringVar(&s.owner, "owner", "", "service whose log is sent")
	f.StringVar(&s.topic, "topic", "", "only events of this topic")
	f.StringVar(&s.stream, "stream", "", "only events of this stream")
	since := f.String("since", "",
		"only events from this time on: 2026-03-04, 2026-03-04T05:06:07Z, or a duration before now, such as 24h")
	until := f.String("until", "", "only events before this time")
	to := f.String("to", "", "service to which the events are sent")
	if err := parse(f, args); err != nil {
		return err
	}
	if s.owner == "" || *to == "" {
		return t.wrongly("edumatrix replay needs --owner and --to")
	}
	var err error
	if s.since, err = moment(*since, time.Now()); err != nil {
		return t.wrongly("--since: %v", err)
	}
	if s.until, err = moment(*until, time.Now()); err != nil {
		return t.wrongly("--until: %v", err)
	}
	i, err := findInstallation(t)
	if err != nil {
		return err
	}
	topics, err := i.consumed(ctx, *to, s)
	if err != nil {
		return err
	}
	if len(topics) == 1 {
		s.topic = topics[0]
	}
	sent, err := i.send(ctx, s, topics, owner.ReplayTopic(*to), newProgress(t))
	if err == nil || sent > 0 {
		fmt.Fprintf(t.Out, "%d events of %s sent to %s by %s; it skips the events that it has applied already\n", sent, s.owner, *to,
			i.kafka.Topic(owner.ReplayTopic(*to).Name))
	}
	return err
}

// consumed returns the topics to replay: the owner's topics that the consumer consumes, or only the requested topic.
func (i *installation) consumed(ctx context.Context, consumer string, s selected) (topics []string, err error) {
	if err := i.known(s.owner); err != nil {
		return nil, err
	}
	operator, err := i.operator(consumer)
	if err != nil {
		return nil, err
	}
	described, err := operator.Describe(ctx, connect.NewRequest(&meshv1.DescribeRequest{}))
	if err != nil {
		return nil, i.answered(consumer, err)
	}
	var all []string
	for _, c := range described.Msg.GetConsumes() {
		all = append(all, c.GetTopic()+" of "+c.GetOwner())
		if c.GetOwner() == s.owner && (s.topic == "" || c.GetTopic() == s.topic) {
			topics = append(topics, c.GetTopic())
		}
	}
	switch {
	case len(topics) > 0:
		return topics, nil
	case len(all) == 0:
		return nil, fmt.Errorf("%s consumes no events of other services", consumer)
	default:
		return nil, fmt.Errorf("%s consumes only %s", consumer, strings.Join(all, ", "))
	}
}

// send reads the owner's log and publishes the selected events to the topic in the parameter to. It returns the number
// of events that were published, even if it fails.
func (i *installation) send(ctx context.Context, s selected, topics []string, to catalog.Topic, p *progress) (
	sent int, err error) {
	if _, err := i.kafka.EnsureTopics(ctx, []catalog.Topic{to}); err != nil {
		return 0, err
	}
	publisher, err := bus.NewPublisher(i.kafka, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()
	var waiting []*message.Message
	flush := func() error {
		if err := publisher.Publish(to.Name, waiting...); err != nil {
			return err
		}
		sent += len(waiting)
		waiting = waiting[:0]
		return nil
	}
	ask := &meshv1.ReadLogRequest{Topic: s.topic, Stream: s.stream, Limit: 1000}
	err = i.read(ctx, s.owner, ask, func(e envelope.Event, record *meshv1.Record) error {
		if !slices.Contains(topics, record.GetTopic()) || !s.within(e.Time) {
			return nil
		}
		if waiting = append(waiting, e.Message()); len(waiting) < replayBatch {
			return nil
		}
		return flush()
	}, func(position, head catalog.Position) { p.at("replay", position, head) })
	p.end()
	if err != nil {
		return sent, err
	}
	return sent, flush()
}

func (s selected) within(at time.Time) bool {
	return !at.Before(s.since) && (s.until.IsZero() || at.Before(s.until))
}

// moment parses a time, or a duration such as 24h, which it subtracts from the parameter now. It returns the zero time
// for an empty text.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	layouts := []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, time.DateOnly}
	for _, layout := range layouts {
		if at, err := time.ParseInLocation(layout, text, time.UTC); err == nil {
			return at, nil
		}
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("%q is not a time: use 2026-03-04, 2026-03-04T05:06:07Z (UTC unless it names another zone) "+
		"or 24h", text)
}
