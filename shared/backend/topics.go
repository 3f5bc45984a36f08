package backend

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// KeptRetention is the topic setting in which the embedded broker stores the configured retention, in milliseconds. The
// setting retention.ms is -1 for all topics of that broker, because package embedded itself deletes records that are
// older than KeptRetention.
const KeptRetention = "edumatrix.retention.ms"

const inSyncReplicas = "min.insync.replicas"

// EnsureTopics creates missing topics, and waits until the metadata of every broker contains them with a leader for
// each partition. It does not change existing topics, but returns a text for each of these differences:
//
//   - an existing topic has another number of partitions, or another retention, than declared;
//   - it has fewer replicas than a new topic would get;
//   - it has three or more replicas, and a lower min.insync.replicas than a new topic would get.
//
// The operator decides whether to change such a topic; the mesh works with the unchanged topic.
func (k Kafka) EnsureTopics(ctx context.Context, topics []catalog.Topic) (differences []string, err error) {
	client, admin, err := k.admin()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	found, brokers, err := k.describe(ctx, admin, topics)
	if err != nil {
		return nil, unreachable("Kafka", k.Where(), tryKafka, err)
	}
	missing := slices.DeleteFunc(slices.Clone(topics), func(t catalog.Topic) bool {
		_, there := found[t.Name]
		return there
	})
	if len(missing) > 0 {
		if err := k.create(ctx, client, missing, brokers); err != nil {
			return nil, fmt.Errorf("create topics on Kafka at %s: %w", k.Where(), err)
		}
	}
	for _, t := range topics {
		if there, ok := found[t.Name]; ok {
			differences = append(differences, there.differences(t, k.Topic(t.Name), brokers)...)
		}
	}
	return differences, nil
}

// found is a topic on the brokers.
type found struct {
	partitions int
	retention  time.Duration // negative: unlimited
	replicas   int           // number of replicas of the partition that has the fewest
	inSync     int           // number of replicas that must have a record before the record is confirmed
}

// replicated is the number of replicas of a new topic if there are enough brokers. For a topic with that many
// replicas, confirmed is the number of replicas that must have a record before the record is confirmed. So the loss of
// one replica with its disk loses no confirmed record.
const replicated, confirmed = 3, 2

func (f found) differences(declared catalog.Topic, name string, brokers int) (list []string) {
	if want := min(replicated, brokers); f.replicas < want {
		list = append(list, fmt.Sprintf("topic %s has %d replicas, %d brokers could have %d", name, f.replicas, brokers, want))
	}
	if f.replicas >= replicated && f.inSync < confirmed {
		list = append(list, fmt.Sprintf("topic %s has min.insync.replicas=%d, with %d replicas it should be %d",
			name, f.inSync, f.replicas, confirmed))
	}
	if f.partitions != int(declared.Partitions) {
		list = append(list, fmt.Sprintf("topic %s has %d partitions, declared are %d",
			name, f.partitions, declared.Partitions))
	}
	if f.retention != declared.Retention {
		list = append(list, fmt.Sprintf("topic %s has retention.ms=%d, declared is %d",
			name, f.retention.Milliseconds(), declared.Retention.Milliseconds()))
	}
	return list
}

// describe returns the given topics that exist, in a map by their names in the catalog, and the number of brokers.
func (k Kafka) describe(ctx context.Context, admin *kadm.Client, topics []catalog.Topic) (
	all map[string]found, brokers int, err error) {
	var names []string
	for _, t := range topics {
		names = append(names, k.Topic(t.Name))
	}
	described, err := admin.Metadata(ctx, names...)
	if err != nil {
		return nil, 0, fmt.Errorf("describe topics: %w", err)
	}
	all, names = map[string]found{}, nil
	for _, d := range described.Topics {
		switch {
		case errors.Is(d.Err, kerr.UnknownTopicOrPartition):
		case d.Err != nil && !errors.Is(d.Err, kerr.LeaderNotAvailable):
			return nil, 0, fmt.Errorf("describe topic %s: %w", d.Topic, d.Err)
		default:
			f := found{partitions: len(d.Partitions), replicas: math.MaxInt}
			for _, p := range d.Partitions {
				f.replicas = min(f.replicas, len(p.Replicas))
			}
			all[strings.TrimPrefix(d.Topic, k.TopicPrefix)] = f
			names = append(names, d.Topic)
		}
	}
	if len(names) == 0 {
		return all, len(described.Brokers), nil
	}
	settings, err := admin.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil, 0, fmt.Errorf("describe the settings of topics: %w", err)
	}
	for _, s := range settings {
		if s.Err != nil {
			return nil, 0, fmt.Errorf("describe the settings of topic %s: %w", s.Name, s.Err)
		}
		name := strings.TrimPrefix(s.Name, k.TopicPrefix)
		f := all[name]
		if f.retention, err = retention(s.Configs); err != nil {
			return nil, 0, fmt.Errorf("topic %s: %w", s.Name, err)
		}
		for _, c := range s.Configs {
			if c.Key != inSyncReplicas {
				continue
			}
			if f.inSync, err = strconv.Atoi(c.MaybeValue()); err != nil {
				return nil, 0, fmt.Errorf("topic %s: %s: %w", s.Name, inSyncReplicas, err)
			}
		}
		all[name] = f
	}
	return all, len(described.Brokers), nil
}

func retention(settings []kadm.Config) (time.Duration, error) {
	value := ""
	for _, s := range settings {
		if s.Key == KeptRetention || (s.Key == "retention.ms" && value == "") {
			value = s.MaybeValue()
		}
	}
	ms, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("retention.ms: %w", err)
	}
	if ms < 0 {
		return -time.Millisecond, nil
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// create creates topics in one request and waits until they can be used. Another process may create the same topics at
// the same time.
func (k Kafka) create(ctx context.Context, client *kgo.Client, topics []catalog.Topic, brokers int) error {
	replicas := int16(min(replicated, brokers))
	request := kmsg.NewPtrCreateTopicsRequest()
	request.TimeoutMillis = int32(requestTimeout.Milliseconds())
	for _, t := range topics {
		own := kmsg.NewCreateTopicsRequestTopic()
		own.Topic, own.NumPartitions, own.ReplicationFactor = k.Topic(t.Name), t.Partitions, replicas
		set := func(name, value string) {
			c := kmsg.NewCreateTopicsRequestTopicConfig()
			c.Name, c.Value = name, &value
			own.Configs = append(own.Configs, c)
		}
		set("retention.ms", strconv.FormatInt(t.Retention.Milliseconds(), 10))
		set("cleanup.policy", "delete")
		if replicas == replicated {
			set(inSyncReplicas, strconv.Itoa(confirmed))
		}
		request.Topics = append(request.Topics, own)
	}
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, t := range response.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("%s: %w: %s", t.Topic, err, deref(t.ErrorMessage))
		}
	}
	return k.awaitTopics(ctx, client, topics)
}

func deref(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

// awaitTopics waits until the metadata of every broker contains the topics with a leader for each partition. The
// controller confirms a topic before all brokers have the topic's metadata. A broker without the metadata answers
// clients that the topic does not exist.
func (k Kafka) awaitTopics(ctx context.Context, client *kgo.Client, topics []catalog.Topic) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := k.haveTopics(ctx, client, topics)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not every broker has the new topics yet: %w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// haveTopics returns an error unless the metadata of every broker contains the topics with a leader for each partition.
func (k Kafka) haveTopics(ctx context.Context, client *kgo.Client, topics []catalog.Topic) error {
	request := kmsg.NewPtrMetadataRequest()
	for _, t := range topics {
		own, name := kmsg.NewMetadataRequestTopic(), k.Topic(t.Name)
		own.Topic = &name
		request.Topics = append(request.Topics, own)
	}
	known, err := request.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	if len(known.Brokers) == 0 {
		return errors.New("no broker is named")
	}
	for _, b := range known.Brokers {
		answer, err := client.Broker(int(b.NodeID)).RetriableRequest(ctx, request)
		if err != nil {
			return fmt.Errorf("broker %d: %w", b.NodeID, err)
		}
		for _, t := range answer.(*kmsg.MetadataResponse).Topics {
			if err := usable(&t); err != nil {
				return fmt.Errorf("broker %d: topic %s: %w", b.NodeID, deref(t.Topic), err)
			}
		}
	}
	return nil
}

func usable(t *kmsg.MetadataResponseTopic) error {
	if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
		return err
	}
	if len(t.Partitions) == 0 {
		return errors.New("it has no partitions")
	}
	for _, p := range t.Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil && !errors.Is(err, kerr.ReplicaNotAvailable) {
			return fmt.Errorf("partition %d: %w", p.Partition, err)
		}
		if p.Leader < 0 {
			return fmt.Errorf("partition %d has no leader", p.Partition)
		}
	}
	return nil
}
