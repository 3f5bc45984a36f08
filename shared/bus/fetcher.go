package bus

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/retry"
)

// topicPartition is a partition of a topic. The field topic is the topic's name on the broker.
type topicPartition struct {
	topic     string
	partition int32
}

// receiver receives the records of one partition.
type receiver interface {
	// take accepts the partition's next records without blocking. It reports whether the fetcher should pause the
	// partition until the receiver calls fetcher.open.
	take(records []*kgo.Record) (full bool)
	// restart is called before take gets records with lower offsets than earlier records, which means that the topic
	// has lost records.
	restart()
}

// fetcher polls a client and passes the records of each partition to the partition's receiver. Receivers are added and
// removed between two polls, so no receiver gets records that were polled before the receiver was added.
type fetcher struct {
	client *kgo.Client
	poll   func(context.Context) kgo.Fetches // the client's PollFetches, or a function of a test
	gather time.Duration                     // see SubscriberOptions.Gather
	log    *slog.Logger
	ended  chan struct{}

	mu        sync.Mutex
	calls     []func()           // to be called before the next poll
	interrupt context.CancelFunc // ends the running poll

	// The fields below are used only by run and by the functions that run calls.
	taps    map[topicPartition]*fetchState
	awaited map[topicPartition]bool // see expect; partitions that have got no record since expect was called
}

// fetchState is the state of a partition that is fetched.
type fetchState struct {
	to   receiver
	next int64 // the offset that should come next; negative while unknown

	full   bool // paused until the receiver calls fetcher.open
	paused bool // paused for a moment after an error

	interruptions int32
}

func newFetcher(client *kgo.Client, gather time.Duration, log *slog.Logger) *fetcher {
	return &fetcher{client: client, poll: client.PollFetches, gather: gather, log: log, ended: make(chan struct{}),
		taps: map[topicPartition]*fetchState{}, awaited: map[topicPartition]bool{}, interrupt: func() {}}
}

// maxGathered bounds gathering: after a poll with this many records or more, the fetcher has fallen behind and polls
// again without a pause.
const maxGathered = 512

// run polls until ctx ends.
func (f *fetcher) run(ctx context.Context) {
	defer close(f.ended)
	throttled := newThrottledLogger(f.log)
	for ctx.Err() == nil {
		polling, cancel := context.WithCancel(ctx)
		f.mu.Lock()
		f.interrupt = cancel
		calls := f.calls
		f.calls = nil
		f.mu.Unlock()
		for _, call := range calls {
			call()
		}
		for polling.Err() == nil {
			fetches := f.poll(polling)
			f.dispatch(fetches, throttled)
			if n := fetches.NumRecords(); f.gather > 0 && n > 0 && n < maxGathered {
				retry.Sleep(polling, f.gather) // meanwhile the client fetches at most one more response of each broker
			}
		}
		cancel()
	}
}

// do calls the function fn between two polls and waits until fn has returned. After the last poll, do returns without
// calling fn.
func (f *fetcher) do(fn func()) {
	done := make(chan struct{})
	f.mu.Lock()
	f.calls = append(f.calls, func() { defer close(done); fn() })
	f.interrupt()
	f.mu.Unlock()
	select {
	case <-done:
	case <-f.ended:
	}
}

// dispatch passes the result of a poll to the receivers.
func (f *fetcher) dispatch(fetches kgo.Fetches, throttled *throttledLogger) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		at := topicPartition{p.Topic, p.Partition}
		if p.Err != nil && !errors.Is(p.Err, context.Canceled) && !errors.Is(p.Err, kgo.ErrClientClosed) {
			throttled.warn("fetching records failed", p.Err)
			f.pauseAfterError(at)
		}
		t := f.taps[at]
		if t == nil || len(p.Records) == 0 {
			return
		}
		delete(f.awaited, at)
		switch first := p.Records[0].Offset; {
		case t.next < 0 || first == t.next:
		case first < t.next:
			f.log.Warn("the topic has lost records; reading it again from its oldest record", "topic", at.topic,
				"partition", at.partition, "offset", t.next, "oldest", first)
			t.to.restart()
		default:
			f.log.Warn("records were deleted before they were read", "topic", at.topic, "partition", at.partition,
				"offset", t.next, "oldest", first)
		}
		t.next = p.Records[len(p.Records)-1].Offset + 1
		if t.to.take(p.Records) {
			t.full = true
			f.client.PauseFetchPartitions(map[string][]int32{at.topic: {at.partition}})
		}
	})
}

// add passes a partition's records to a receiver from the next poll on.
func (f *fetcher) add(at topicPartition, to receiver) {
	f.taps[at] = &fetchState{to: to, next: -1}
	f.client.ResumeFetchPartitions(map[string][]int32{at.topic: {at.partition}})
}

// begin sets the offset of a partition's first record, and makes sure that the record is fetched soon. If records of
// the partition have arrived already, begin does nothing, because these records must not be fetched again.
func (f *fetcher) begin(at topicPartition, next int64) {
	if t := f.taps[at]; t != nil && t.next < 0 {
		t.next = next
		f.expect(at)
	}
}

// remove stops passing a partition's records to its receiver, and ends a pause of the partition. The caller or the
// consumer group removes the partition from the client.
func (f *fetcher) remove(at topicPartition) {
	delete(f.taps, at)
	delete(f.awaited, at)
	f.client.ResumeFetchPartitions(map[string][]int32{at.topic: {at.partition}})
}

// open resumes a partition that was paused because its receiver was full.
func (f *fetcher) open(at topicPartition, to receiver) {
	f.do(func() {
		if t := f.taps[at]; t != nil && t.to == to {
			t.full = false
			f.resume(at, t)
		}
	})
}

// errorPause is how long a partition is not fetched after an error. The broker responds to a fetch of a deleted topic
// at once with an error, so without a pause the client would send such fetches all the time.
const errorPause = 500 * time.Millisecond

// pauseAfterError pauses a partition for errorPause.
func (f *fetcher) pauseAfterError(at topicPartition) {
	t := f.taps[at]
	if t == nil || t.paused {
		return
	}
	t.paused = true
	f.client.PauseFetchPartitions(map[string][]int32{at.topic: {at.partition}})
	time.AfterFunc(errorPause, func() {
		f.do(func() {
			t.paused = false
			if f.taps[at] == t {
				f.resume(at, t)
			}
		})
	})
}

// resume fetches a partition again, unless the partition is paused for another reason too.
func (f *fetcher) resume(at topicPartition, t *fetchState) {
	if !t.full && !t.paused {
		f.client.ResumeFetchPartitions(map[string][]int32{at.topic: {at.partition}})
		f.expect(at)
	}
}

// expect makes sure that a partition is fetched soon. A fetch that is already running does not include a partition that
// was just resumed, and may wait for seconds if the other partitions have no records. So the running fetches are
// interrupted if no record of the partition arrives within 30 ms. (The time is shorter if another partition was awaited
// already.)
func (f *fetcher) expect(at topicPartition) {
	const moment = 30 * time.Millisecond
	if len(f.awaited) == 0 {
		time.AfterFunc(moment, func() { f.do(f.interruptFetches) })
	}
	f.awaited[at] = true
}

// interruptFetches ends the running fetches, because they do not include the awaited partitions. To end them, it sets
// the offsets of the awaited partitions: the client then begins new fetches.
func (f *fetcher) interruptFetches() {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for at := range f.awaited {
		t := f.taps[at]
		if t.next < 0 {
			continue
		}
		if offsets[at.topic] == nil {
			offsets[at.topic] = map[int32]kgo.EpochOffset{}
		}
		// A client of a group ignores the call if neither the offset nor the leader epoch changes, so the epoch is -1 and -2
		// in turns. Each of these values means that the leader epoch is unknown.
		t.interruptions++
		offsets[at.topic][at.partition] = kgo.EpochOffset{Epoch: -1 - t.interruptions%2, Offset: t.next}
	}
	clear(f.awaited)
	if len(offsets) > 0 {
		f.client.SetOffsets(offsets)
	}
}
