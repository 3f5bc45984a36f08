package bus

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/shared/backend"
)

const (
	// rebalanceTimeout is how long the group waits for a member to release partitions.
	rebalanceTimeout = 25 * time.Second
	commitEvery      = time.Second
	commitWithin     = 5 * time.Second // timeout of a commit, which is then tried again later
	leaveWithin      = 3 * time.Second
)

// member is a Subscriber's member of one topic's consumer group. A partition that the member keeps through a
// rebalance is consumed without interruption. Before a partition is reassigned, the member waits until the partition's
// messages in flight are settled or given up, and commits the partition's watermark. If the member's session has
// expired, the group does not wait, and the member does not commit the watermarks of the partitions that it has lost.
type member struct {
	topic, group string // the topic without the installation's prefix
	name         string // of the topic on the broker
	options      SubscriberOptions
	out          chan<- *message.Message
	values       context.Context // has the values of the subscription's context and never ends
	log          *slog.Logger

	client  *kgo.Client
	fetcher *fetcher

	mu       sync.Mutex
	held     map[int32]*assigned
	marks    map[int32]int64 // watermarks to commit
	closed   bool
	commits  sync.Mutex    // held during a commit
	progress chan struct{} // has room for one signal: there is a watermark to commit
}

// assigned is a partition that the member has.
type assigned struct {
	member    *member
	partition int32

	mu    sync.Mutex
	lanes *lanes
	over  bool
	ended sync.WaitGroup // waits for lanes of the partition that are being stopped
}

func newMember(k backend.Kafka, topic string, o SubscriberOptions, ctx context.Context, out chan<- *message.Message) (
	*member, error) {
	m := &member{topic: topic, group: k.Topic(o.Group + "." + topic), name: k.Topic(topic), options: o, out: out,
		values: context.WithoutCancel(ctx), held: map[int32]*assigned{}, marks: map[int32]int64{},
		progress: make(chan struct{}, 1)}
	m.log = o.Log.With("topic", topic, "group", m.group)
	built := make(chan struct{}) // closed when m.client is set; the client may call back before that
	defer close(built)
	options := []kgo.Opt{
		kgo.ConsumerGroup(m.group),
		kgo.ConsumeTopics(m.name),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(o.SessionTimeout),
		kgo.HeartbeatInterval(min(time.Second, o.SessionTimeout/6)),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, all map[string][]int32) {
			<-built
			m.assign(all[m.name])
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, all map[string][]int32) { m.release(all[m.name], true) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, all map[string][]int32) { m.release(all[m.name], false) }),
		kgo.AdjustFetchOffsetsFn(m.begin),
		kgo.WithHooks(groupErrorLog{newThrottledLogger(m.log)}),
	}
	if o.InstanceID != "" {
		options = append(options, kgo.InstanceID(o.InstanceID))
	}
	client, err := newClient(k, m.log, options...)
	if err != nil {
		return nil, err
	}
	m.client, m.fetcher = client, newFetcher(client, m.options.Gather, m.log)
	return m, nil
}

// run consumes until ctx ends. Then it waits for the messages in flight, for at most SubscriberOptions.Drain, and
// commits the watermarks.
func (m *member) run(ctx context.Context) {
	polling, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { m.fetcher.run(polling) })
	running.Go(func() { m.commitAlways(polling) })
	<-ctx.Done()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	// Stop polling first: the client blocks polls while it leaves the group.
	stop()
	running.Wait()
	m.release(nil, true)
	leaving, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	if err := m.client.LeaveGroupContext(leaving); err != nil {
		m.log.Debug("left the group without a response of the broker", "error", err)
	}
	m.client.Close()
}

// assign starts consuming partitions.
func (m *member) assign(partitions []int32) {
	var added []*assigned
	m.mu.Lock()
	for _, p := range partitions {
		if m.closed || m.held[p] != nil {
			continue
		}
		a := &assigned{member: m, partition: p}
		a.lanes = a.newLanes()
		m.held[p] = a
		added = append(added, a)
	}
	m.mu.Unlock()
	m.fetcher.do(func() {
		for _, a := range added {
			m.fetcher.add(topicPartition{m.name, a.partition}, a)
		}
	})
	if len(added) > 0 {
		m.log.Debug("partitions assigned", "partitions", partitions)
	}
}

// begin sets the offsets from which partitions are read: the committed offset or, without one, the oldest record.
func (m *member) begin(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (
	map[string]map[int32]kgo.Offset, error) {
	own := offsets[m.name]
	var oldest kadm.ListedOffsets
	from := make(map[int32]int64, len(own))
	for p, o := range own {
		next := o.EpochOffset().Offset
		if next < 0 {
			if oldest == nil {
				var err error
				if oldest, err = kadm.NewClient(m.client).ListStartOffsets(ctx, m.name); err != nil {
					return nil, err // then the client joins the group again
				}
			}
			start, ok := oldest.Lookup(m.name, p)
			if !ok || start.Err != nil {
				continue
			}
			next = start.Offset
		}
		own[p] = kgo.NewOffset().At(next)
		from[p] = next
	}
	m.fetcher.do(func() {
		for p, next := range from {
			m.fetcher.begin(topicPartition{m.name, p}, next)
		}
	})
	return offsets, nil
}

// release gives up partitions, or all partitions if the member is closed. It waits for their messages in flight, for at
// most SubscriberOptions.Drain. Then it commits their watermarks, if the parameter commit is true.
func (m *member) release(partitions []int32, commit bool) {
	m.mu.Lock()
	if m.closed {
		partitions = slices.Collect(maps.Keys(m.held))
	}
	var going []*assigned
	for _, p := range partitions {
		if a := m.held[p]; a != nil {
			going = append(going, a)
			delete(m.held, p)
		}
	}
	m.mu.Unlock()
	if len(going) == 0 {
		return
	}
	m.fetcher.do(func() {
		for _, a := range going {
			m.fetcher.remove(topicPartition{m.name, a.partition})
		}
	})
	var draining sync.WaitGroup
	for _, a := range going {
		draining.Go(a.end)
	}
	draining.Wait()
	if commit {
		m.commit()
	}
	m.mu.Lock()
	for _, a := range going {
		delete(m.marks, a.partition)
	}
	m.mu.Unlock()
	m.log.Debug("partitions released", "partitions", partitions)
}

func (m *member) mark(partition int32, next int64) {
	m.mu.Lock()
	m.marks[partition] = next
	m.mu.Unlock()
	m.signalCommit()
}

// signalCommit makes commitAlways commit soon.
func (m *member) signalCommit() {
	select {
	case m.progress <- struct{}{}:
	default:
	}
}

// commitAlways commits once per second while there are watermarks to commit, until ctx ends.
func (m *member) commitAlways(ctx context.Context) {
	for {
		select {
		case <-m.progress:
		case <-ctx.Done():
			return
		}
		if !sleep(commitEvery, ctx.Done(), nil) {
			return
		}
		m.commit()
	}
}

// commit commits the watermarks. A watermark that the broker does not accept is tried again the next time.
func (m *member) commit() {
	m.commits.Lock()
	defer m.commits.Unlock()
	m.mu.Lock()
	marks := maps.Clone(m.marks)
	m.mu.Unlock()
	if len(marks) == 0 {
		return
	}
	offsets := make(map[int32]kgo.EpochOffset, len(marks))
	for p, next := range marks {
		// The offset has no leader epoch. With a leader epoch, the broker would send readers to the end of a topic that
		// was deleted and created again.
		offsets[p] = kgo.EpochOffset{Epoch: -1, Offset: next}
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitWithin)
	defer cancel()
	m.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{m.name: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, response *kmsg.OffsetCommitResponse, err error) {
			if err != nil {
				m.log.Debug("offsets are not committed yet", "error", err)
				return
			}
			m.committed(marks, response)
		})
	m.mu.Lock()
	left := len(m.marks) > 0
	m.mu.Unlock()
	if left {
		m.signalCommit()
	}
}

func (m *member) committed(marks map[int32]int64, response *kmsg.OffsetCommitResponse) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			switch err := kerr.ErrorForCode(p.ErrorCode); {
			case err != nil:
				m.log.Debug("an offset is not committed yet", "partition", p.Partition, "error", err)
			case m.marks[p.Partition] == marks[p.Partition]:
				delete(m.marks, p.Partition)
			}
		}
	}
}

func (a *assigned) newLanes() *lanes {
	m := a.member
	claim := &Claim{Topic: m.topic, Partition: a.partition, done: make(chan struct{})}
	return newLanes(m.values, claim, m.group, m.options, m.out, func(next int64) { m.mark(a.partition, next) },
		func() { m.fetcher.open(topicPartition{m.name, a.partition}, a) })
}

func (a *assigned) take(records []*kgo.Record) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lanes.take(records)
}

// restart starts the partition over, because the topic has lost records and its offsets now belong to other records.
// The new lanes begin to deliver when the messages in flight of the old lanes are settled or given up. Other partitions
// do not wait for these messages.
func (a *assigned) restart() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	before, after := a.lanes, a.newLanes()
	after.waiting = true
	before.detach()
	a.lanes = after
	a.ended.Go(func() {
		before.stop(a.member.options.Drain)
		after.begin()
	})
}

// end ends delivery and waits for messages in flight, for at most SubscriberOptions.Drain.
func (a *assigned) end() {
	a.mu.Lock()
	a.over = true
	last := a.lanes
	a.mu.Unlock()
	a.ended.Go(func() { last.stop(a.member.options.Drain) })
	a.ended.Wait()
}

// groupErrorLog is a hook of the client that logs the errors after which a member joins its group again.
type groupErrorLog struct{ throttled *throttledLogger }

// OnGroupManageError is the method of kgo.HookGroupManageError.
func (t groupErrorLog) OnGroupManageError(err error) {
	if !errors.Is(err, context.Canceled) {
		t.throttled.warn("consuming failed, joining the group again", err)
	}
}
