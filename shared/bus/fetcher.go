package bus

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// place is a partition, by its topic's name on the broker.
type place struct {
	topic     string
	partition int32
}

// receiver takes the records of one partition.
type receiver interface {
	// take takes the partition's next records without blocking. It reports whether no more should come until the
	// receiver opens the partition again.
	take(records []*kgo.Record) (full bool)
	// restart is called before records that are older than those that came last: the topic has lost some.
	restart()
}

// fetcher polls a client and gives each partition's records to its receiver. Everything that changes what is fetched
// runs between two polls, so no receiver gets records that were polled for another one.
type fetcher struct {
	client *kgo.Client
	log    *slog.Logger
	ended  chan struct{}

	mu        sync.Mutex
	calls     []func()
	interrupt context.CancelFunc // ends the poll under way

	// The fields below belong to run and to the calls that it makes.
	taps map[place]*tap
	late map[place]bool // opened, but nothing came since
}

// tap is a partition that is fetched.
type tap struct {
	to   receiver
	next int64 // the offset that should come next; negative while it is not known

	full    bool // paused until the receiver opens it
	resting bool // paused after an error

	hurries int32
}

func newFetcher(client *kgo.Client, log *slog.Logger) *fetcher {
	return &fetcher{client: client, log: log, ended: make(chan struct{}), taps: map[place]*tap{}, late: map[place]bool{},
		interrupt: func() {}}
}

// run polls until ctx ends.
func (f *fetcher) run(ctx context.Context) {
	defer close(f.ended)
	trouble := newGrumble(f.log)
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
			f.hand(f.client.PollFetches(polling), trouble)
		}
		cancel()
	}
}

// do calls fn between two polls and waits for it. After the last poll it does nothing.
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

// hand gives out what a poll brought.
func (f *fetcher) hand(fetches kgo.Fetches, trouble *grumble) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		at := place{p.Topic, p.Partition}
		if p.Err != nil && !errors.Is(p.Err, context.Canceled) && !errors.Is(p.Err, kgo.ErrClientClosed) {
			trouble.warn("records are not read as they should be", p.Err)
			f.rest(at)
		}
		t := f.taps[at]
		if t == nil || len(p.Records) == 0 {
			return
		}
		delete(f.late, at)
		switch first := p.Records[0].Offset; {
		case t.next < 0 || first == t.next:
		case first < t.next:
			f.log.Warn("the topic has lost records; it is read again from its oldest one", "topic", at.topic,
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

// add gives a partition's records to a receiver from now on.
func (f *fetcher) add(at place, to receiver) {
	f.taps[at] = &tap{to: to, next: -1}
	f.client.ResumeFetchPartitions(map[string][]int32{at.topic: {at.partition}})
}

// begin notes with which offset a partition begins, unless its first records have come already: they are not fetched again.
func (f *fetcher) begin(at place, next int64) {
	if t := f.taps[at]; t != nil && t.next < 0 {
		t.next = next
		f.expect(at)
	}
}

// remove gives up a partition.
func (f *fetcher) remove(at place) {
	delete(f.taps, at)
	delete(f.late, at)
	f.client.ResumeFetchPartitions(map[string][]int32{at.topic: {at.partition}})
}

// open has a partition fetched again that was full.
func (f *fetcher) open(at place, to receiver) {
	f.do(func() {
		if t := f.taps[at]; t != nil && t.to == to {
			t.full = false
			f.resume(at, t)
		}
	})
}

// restFor is how long a partition is not fetched after an error: the broker answers such a fetch at once, and would be
// asked again at once, for as long as a topic that was deleted is subscribed to.
const restFor = 500 * time.Millisecond

// rest has a partition fetched again only after a moment.
func (f *fetcher) rest(at place) {
	t := f.taps[at]
	if t == nil || t.resting {
		return
	}
	t.resting = true
	f.client.PauseFetchPartitions(map[string][]int32{at.topic: {at.partition}})
	time.AfterFunc(restFor, func() {
		f.do(func() {
			t.resting = false
			if f.taps[at] == t {
				f.resume(at, t)
			}
		})
	})
}

// resume has a partition fetched again, unless something else keeps it paused.
func (f *fetcher) resume(at place, t *tap) {
	if !t.full && !t.resting {
		f.client.ResumeFetchPartitions(map[string][]int32{at.topic: {at.partition}})
		f.expect(at)
	}
}

// expect sees to it that a partition is fetched soon. A fetch that is under way does not ask for it, and may wait for
// seconds where the others have nothing; if nothing comes, it is ended after a moment.
func (f *fetcher) expect(at place) {
	const moment = 30 * time.Millisecond
	if len(f.late) == 0 {
		time.AfterFunc(moment, func() { f.do(f.hurry) })
	}
	f.late[at] = true
}

// hurry ends fetches that do not ask for all partitions: setting an offset does so.
func (f *fetcher) hurry() {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for at := range f.late {
		t := f.taps[at]
		if t.next < 0 {
			continue
		}
		if offsets[at.topic] == nil {
			offsets[at.topic] = map[int32]kgo.EpochOffset{}
		}
		// The client ignores what it has already. Any negative epoch says that none is known, so two take turns.
		t.hurries++
		offsets[at.topic][at.partition] = kgo.EpochOffset{Epoch: -1 - t.hurries%2, Offset: t.next}
	}
	clear(f.late)
	if len(offsets) > 0 {
		f.client.SetOffsets(offsets)
	}
}
