package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/retry"
)

// newClient returns a client with the mesh's settings. A client that consumes topics or partitions connects at once,
// any other client when it is first used.
func newClient(k backend.Kafka, log *slog.Logger, more ...kgo.Opt) (*kgo.Client, error) {
	if len(k.Brokers) == 0 {
		return nil, errors.New("no brokers are configured")
	}
	options := append(k.Options(), kgo.WithLogger(&clientLog{log: log, lastLogged: map[string]time.Time{}}))
	return kgo.NewClient(append(options, more...)...)
}

// countAge is the age from which Publisher.Partitions requests a cached partition count again.
const countAge = 3 * time.Second

// counts caches the numbers of partitions that topics have on the broker.
type counts struct {
	kafka  backend.Kafka
	client *kgo.Client

	mu    sync.Mutex
	known map[string]count
}

type count struct {
	n  int32
	at time.Time
}

// of returns the number of partitions of a topic. It requests the number from the broker unless it has a cached number
// that is younger than the parameter age. If the request fails, the result is the cached number, however old. It is an
// error instead if no number is cached or if the parameter age is 0.
func (c *counts) of(ctx context.Context, topic string, age time.Duration) (int32, error) {
	c.mu.Lock()
	known, ok := c.known[topic]
	c.mu.Unlock()
	if ok && time.Since(known.at) < age {
		return known.n, nil
	}
	name := c.kafka.Topic(topic)
	n, err := partitionsOf(ctx, c.client, name)
	if err != nil {
		if ok && age > 0 {
			return known.n, nil
		}
		return 0, fmt.Errorf("count the partitions of %s: %w", topic, retry.Unavailable(kafkaName, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]count{}
	}
	c.known[topic] = count{n, time.Now()}
	return n, nil
}

// partitionsOf requests the number of partitions of a topic from the broker.
func partitionsOf(ctx context.Context, client *kgo.Client, name string) (int32, error) {
	request := kmsg.NewPtrMetadataRequest() // kadm may return a count from the client's cache
	request.Topics = []kmsg.MetadataRequestTopic{{Topic: &name}}
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return 0, err
	}
	if len(response.Topics) != 1 {
		return 0, fmt.Errorf("the broker's response does not contain %s", name)
	}
	found := response.Topics[0]
	if err := kerr.ErrorForCode(found.ErrorCode); err != nil {
		return 0, err
	}
	return int32(len(found.Partitions)), nil
}

// clientLog logs the warnings and errors of a Kafka client, the same text at most every 30 s. It remembers up to 100
// different texts and then forgets all of them, so it may repeat a text sooner.
type clientLog struct {
	log *slog.Logger

	mu         sync.Mutex
	lastLogged map[string]time.Time
}

// Level is a method of kgo.Logger.
func (l *clientLog) Level() kgo.LogLevel { return kgo.LogLevelWarn }

// Log is a method of kgo.Logger.
func (l *clientLog) Log(level kgo.LogLevel, text string, attributes ...any) {
	const again, maxTexts = 30 * time.Second, 100
	l.mu.Lock()
	due := time.Since(l.lastLogged[text]) >= again
	if due {
		if len(l.lastLogged) >= maxTexts {
			clear(l.lastLogged)
		}
		l.lastLogged[text] = time.Now()
	}
	l.mu.Unlock()
	if !due {
		return
	}
	if level == kgo.LogLevelError {
		l.log.Error("kafka client: "+text, attributes...)
		return
	}
	l.log.Warn("kafka client: "+text, attributes...)
}
