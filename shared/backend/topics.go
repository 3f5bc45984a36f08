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

	"github.com/IBM/sarama"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// KeptRetention is the topic setting in which the embedded broker keeps the retention that was asked for, in
// milliseconds: its own retention.ms is always -1, because what deletes there is not the broker.
const KeptRetention = "edumatrix.retention.ms"

const inSyncReplicas = "min.insync.replicas"

// EnsureTopics creates the topics that are missing. Where one is there but has other partitions or another retention
// than declared, or fewer replicas than there are brokers for, it says so and alters nothing: that is for whoever runs
// the brokers to decide.
func (k Kafka) EnsureTopics(ctx context.Context, topics []catalog.Topic) (differences []string, err error) {
	client, admin, err := k.admin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, admin.Close()) }()

	found, err := k.describe(admin, topics)
	if err != nil {
		return nil, unreachable("Kafka", k.Where(), tryKafka, err)
	}
	missing := slices.DeleteFunc(slices.Clone(topics), func(t catalog.Topic) bool {
		_, there := found[t.Name]
		return there
	})
	if len(missing) > 0 {
		if err := k.create(ctx, client, admin, missing); err != nil {
			return nil, fmt.Errorf("create topics on Kafka at %s: %w", k.Where(), err)
		}
	}
	for _, t := range topics {
		if there, ok := found[t.Name]; ok {
			differences = append(differences, there.differences(t, k.Topic(t.Name), len(client.Brokers()))...)
		}
	}
	return differences, nil
}

func (k Kafka) admin(ctx context.Context) (sarama.Client, sarama.ClusterAdmin, error) {
	// Whoever only asks wants an answer, not eight tries at one: those are for connections that last.
	config := within(ctx, k.SaramaConfig())
	config.Metadata.Retry.Max = 2
	client, err := sarama.NewClient(k.Brokers, config)
	if err != nil {
		return nil, nil, unreachable("Kafka", k.Where(), tryKafka, err)
	}
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return nil, nil, errors.Join(unreachable("Kafka", k.Where(), tryKafka, err), client.Close())
	}
	return client, admin, nil
}

// found is a topic as the brokers have it.
type found struct {
	partitions int
	retention  time.Duration // negative: for ever
	replicas   int           // of the partition that has fewest
	inSync     int           // that have to have a record before it is confirmed
}

// replicated is how many brokers of so many have each record; of three, two have to before it is confirmed, so that one
// may die with its disk.
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

// describe reads those of the topics that are there, by their names in the catalog.
func (k Kafka) describe(admin sarama.ClusterAdmin, topics []catalog.Topic) (map[string]found, error) {
	var names []string
	for _, t := range topics {
		names = append(names, k.Topic(t.Name))
	}
	described, err := admin.DescribeTopics(names)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	all := map[string]found{}
	var resources []*sarama.ConfigResource
	for _, d := range described {
		switch {
		case errors.Is(d.Err, sarama.ErrUnknownTopicOrPartition):
		case d.Err != sarama.ErrNoError && !errors.Is(d.Err, sarama.ErrLeaderNotAvailable):
			return nil, fmt.Errorf("describe topic %s: %w", d.Name, d.Err)
		default:
			f := found{partitions: len(d.Partitions), replicas: math.MaxInt}
			for _, p := range d.Partitions {
				f.replicas = min(f.replicas, len(p.Replicas))
			}
			all[strings.TrimPrefix(d.Name, k.TopicPrefix)] = f
			resources = append(resources, &sarama.ConfigResource{Type: sarama.TopicResource, Name: d.Name,
				ConfigNames: []string{"retention.ms", KeptRetention, inSyncReplicas}})
		}
	}
	if len(resources) == 0 {
		return all, nil
	}
	settings, err := admin.DescribeConfigs(resources, sarama.DescribeConfigsOptions{})
	if err != nil {
		return nil, fmt.Errorf("describe the settings of topics: %w", err)
	}
	for _, s := range settings {
		if s.ErrorCode != sarama.ErrNoError {
			return nil, fmt.Errorf("describe the settings of topic %s: %w", s.Name, s.ErrorCode)
		}
		name := strings.TrimPrefix(s.Name, k.TopicPrefix)
		f := all[name]
		if f.retention, err = retention(s.Configs); err != nil {
			return nil, fmt.Errorf("topic %s: %w", s.Name, err)
		}
		for _, c := range s.Configs {
			if c.Name != inSyncReplicas {
				continue
			}
			if f.inSync, err = strconv.Atoi(c.Value); err != nil {
				return nil, fmt.Errorf("topic %s: %s: %w", s.Name, inSyncReplicas, err)
			}
		}
		all[name] = f
	}
	return all, nil
}

func retention(settings []sarama.ConfigEntry) (time.Duration, error) {
	value := ""
	for _, s := range settings {
		if s.Name == KeptRetention || (s.Name == "retention.ms" && value == "") {
			value = s.Value
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

// create makes topics in one request and waits until each partition has a leader: until then, who produces would have
// to try again. Another process may create the same at the same time.
func (k Kafka) create(
	ctx context.Context, client sarama.Client, admin sarama.ClusterAdmin, topics []catalog.Topic,
) error {
	replicas := int16(min(replicated, len(client.Brokers())))
	details := map[string]*sarama.TopicDetail{}
	names := []string{}
	for _, t := range topics {
		retention, policy, inSync := strconv.FormatInt(t.Retention.Milliseconds(), 10), "delete", strconv.Itoa(confirmed)
		d := &sarama.TopicDetail{NumPartitions: t.Partitions, ReplicationFactor: replicas,
			ConfigEntries: map[string]*string{"retention.ms": &retention, "cleanup.policy": &policy}}
		if replicas == replicated {
			d.ConfigEntries[inSyncReplicas] = &inSync
		}
		details[k.Topic(t.Name)] = d
		names = append(names, k.Topic(t.Name))
	}
	controller, err := client.Controller()
	if err != nil {
		return err
	}
	config := client.Config()
	response, err := controller.CreateTopics(
		sarama.NewCreateTopicsRequest(config.Version, details, config.Admin.Timeout, false))
	if err != nil {
		return err
	}
	for name, e := range response.TopicErrors {
		if e.Err != sarama.ErrNoError && e.Err != sarama.ErrTopicAlreadyExists {
			return fmt.Errorf("%s: %w", name, e)
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		described, err := admin.DescribeTopics(names)
		if err == nil && !slices.ContainsFunc(described, leaderless) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new topics have no leaders yet: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func leaderless(t *sarama.TopicMetadata) bool {
	return t.Err != sarama.ErrNoError || len(t.Partitions) == 0 ||
		slices.ContainsFunc(t.Partitions, func(p *sarama.PartitionMetadata) bool { return p.Leader < 0 })
}
