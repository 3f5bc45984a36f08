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
)

// newClient makes a client with the mesh's settings. It connects when it is used.
func newClient(k backend.Kafka, log *slog.Logger, more ...kgo.Opt) (*kgo.Client, error) {
	if len(k.Brokers) == 0 {
		return nil, errors.New("no broker is named")
	}
	options := append(k.Options(), kgo.WithLogger(&clientLog{log: log, said: map[string]time.Time{}}))
	return kgo.NewClient(append(options, more...)...)
}

// countAge is how old the number of a topic's partitions may be.
const countAge = 3 * time.Second

// counts are the numbers of partitions that topics have on the broker.
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

// of returns the number for a topic, at most so old.
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
		return 0, fmt.Errorf("count the partitions of %s: %w", topic, Away(kafkaName, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]count{}
	}
	c.known[topic] = count{n, time.Now()}
	return n, nil
}

// partitionsOf asks the broker how many partitions a topic has.
func partitionsOf(ctx context.Context, client *kgo.Client, name string) (int32, error) {
	request := kmsg.NewPtrMetadataRequest() // not by kadm, whose answers may be older
	request.Topics = []kmsg.MetadataRequestTopic{{Topic: &name}}
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return 0, err
	}
	if len(response.Topics) != 1 {
		return 0, fmt.Errorf("the broker does not answer about %s", name)
	}
	found := response.Topics[0]
	if err := kerr.ErrorForCode(found.ErrorCode); err != nil {
		return 0, err
	}
	return int32(len(found.Partitions)), nil
}

// clientLog passes on what the client warns of, each once in a while.
type clientLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]time.Time
}

// Level is part of kgo's interface.
func (l *clientLog) Level() kgo.LogLevel { return kgo.LogLevelWarn }

// Log is part of kgo's interface.
func (l *clientLog) Log(level kgo.LogLevel, text string, attributes ...any) {
	const again, maxTexts = 30 * time.Second, 100
	l.mu.Lock()
	due := time.Since(l.said[text]) >= again
	if due {
		if len(l.said) >= maxTexts {
			clear(l.said)
		}
		l.said[text] = time.Now()
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
