package consume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/retry"
)

// delivery is a record that waits until the checkpoint of its partition has reached the record's position.
type delivery struct {
	event envelope.Event
	trace context.Context
	done  chan error // has room for one value
}

// applier consumes one partition while the partition is assigned to this instance.
type applier struct {
	*Consumer
	of    inbox.SourcePartition
	claim *bus.Claim

	mu    sync.Mutex
	queue []*delivery
	until catalog.Position // a position that the owner's log is known to have reached; set by catchUp
	wake  chan struct{}    // has room for one signal
	ended bool

	calls context.Context // for calls to the owner: ends when the partition is released

	// The fields below are used by the goroutine of run alone.
	consumer       inbox.Consumer
	saved          inbox.Checkpoint
	savedAt        time.Time
	readUpTo       catalog.Position // every event up to this position is handled; the effects are stored or in a.items
	incarnation    string           // of the newest record
	items          []*item
	size           size                       // of the effects in the field items
	waiting        []*delivery                // taken from the queue, and not acknowledged yet
	parked         map[string]inbox.Parked    // by stream
	revision       int64                      // of the parked streams
	legacyVersions map[string]catalog.Version // last version that an earlier release applied, by stream
}

func newApplier(c *Consumer, partition int32, claim *bus.Claim) *applier {
	return &applier{Consumer: c, claim: claim, wake: make(chan struct{}, 1),
		of: inbox.SourcePartition{Source: c.o.Source, Topic: c.o.Topic, Partition: partition}}
}

func (a *applier) put(d *delivery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		d.done <- errLost
		return
	}
	a.queue = append(a.queue, d)
	a.signal()
}

func (a *applier) catchUp(position catalog.Position) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until = max(a.until, position)
	a.signal()
}

func (a *applier) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *applier) hasEnded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// errLost is the error of the records that an applier has not acknowledged when it ends. Usually another instance
// consumes the partition then. errLost wraps retry.ErrUnavailable, so these records do not become dead letters.
var errLost = retry.Unavailable("partition", errors.New("another instance consumes it"))

// run consumes until the partition is released, consuming fails, or the Consumer's context ends.
func (a *applier) run() {
	var cancel context.CancelFunc
	a.calls, cancel = context.WithCancel(a.ctx)
	defer cancel()
	go func() {
		select {
		case <-a.claim.Done():
			cancel()
		case <-a.calls.Done():
		}
	}()
	err := a.consume()
	if err != nil && !errors.Is(err, errReleased) {
		a.logger.Warn("consuming a partition ended", "partition", a.of.Partition, "error", err)
	}
	a.mu.Lock()
	a.ended = true
	left := append(a.waiting, a.queue...)
	a.queue = nil
	a.mu.Unlock()
	for _, d := range left {
		d.done <- errLost
	}
}

// errReleased reports that the partition was released, or that the Consumer's context has ended.
var errReleased = errors.New("the partition was released")

func (a *applier) consume() error {
	begun := false
	for {
		records, until := a.next()
		if len(records) > 0 && !begun {
			// Before the partition's checkpoint is known, a repeated record cannot be recognized.
			if err := a.begin(records[0].event); err != nil {
				a.waiting = append(a.waiting, records...)
				return err
			}
			begun = true
		}
		a.waiting = append(a.waiting, records...)
		err := a.handleRecords(records)
		if err == nil && begun && until > a.readUpTo {
			if err = a.fill(until); err == nil {
				err = a.save()
			}
		}
		if err != nil {
			return err
		}
		if a.isReleased() {
			return errReleased
		}
	}
}

func (a *applier) isReleased() bool {
	select {
	case <-a.claim.Done():
		return true
	default:
		return a.ctx.Err() != nil
	}
}

// next waits until records arrive, catchUp is called, progress has to be stored, or the partition is released. It
// returns up to maxRecords of the records in the queue, and the position that catchUp has set.
func (a *applier) next() (records []*delivery, until catalog.Position) {
	var due <-chan time.Time
	if a.unsaved() {
		t := time.NewTimer(time.Until(a.savedAt.Add(saveEvery)))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-a.wake:
	case <-due:
	case <-a.claim.Done():
	case <-a.ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(len(a.queue), maxRecords)
	records, a.queue = a.queue[:n:n], a.queue[n:]
	if len(a.queue) > 0 {
		a.signal()
	} else {
		a.queue = nil
	}
	return records, a.until
}

// unsaved reports whether the checkpoint is behind the records that were taken from the queue.
func (a *applier) unsaved() bool {
	return a.readUpTo > a.saved.Position || len(a.items) > 0 || len(a.waiting) > 0
}

// handleRecords determines the effects of records and saves them.
func (a *applier) handleRecords(records []*delivery) error {
	events := make([]envelope.Event, len(records))
	for i, d := range records {
		events[i] = d.event
	}
	if err := a.loadLegacyVersions(events); err != nil {
		return err
	}
	for _, d := range records {
		if err := a.handleRecord(d); err != nil {
			return err
		}
	}
	return a.save()
}

// handleRecord determines the effects of one record of the topic. If events before the record are missing, it reads
// them from the owner's log. At the first record of a new epoch, it crosses the fence. It drops repeated records, and
// records that do not belong to the checkpoint's epoch (see current).
func (a *applier) handleRecord(d *delivery) error {
	e := d.event
	if e.Fence || e.Epoch > a.saved.Epoch {
		if err := a.crossFence(e); err != nil {
			return err
		}
	}
	switch {
	case e.Position <= a.readUpTo:
		return nil
	case !a.current(e):
		return nil // if an event is missing because of this, the field Before of the next record shows it
	case e.Before > a.readUpTo:
		if err := a.fill(e.Before); err != nil {
			return err
		}
	}
	a.restored(e.Incarnation)
	if !e.IsPosition() {
		if err := a.collectEffects(e, d.trace, a.readUpTo); err != nil {
			return err
		}
	}
	a.readUpTo = e.Position
	return nil
}

// current reports whether a record belongs to the epoch of the checkpoint. An epoch is a period in which the number of
// the topic's partitions does not change. A record of a lower epoch comes from a relay that had lost its lease. Records
// without an epoch come from a relay of an earlier release. If the checkpoint has an epoch, a record without one counts
// only if it is an event of this partition.
func (a *applier) current(e envelope.Event) bool {
	if e.Epoch == 0 && a.saved.Epoch > 0 {
		return !e.IsPosition() && envelope.Partition(e.PartitionKey(), a.saved.Partitions) == a.of.Partition
	}
	return e.Epoch == a.saved.Epoch
}

// restored records the incarnation of the source's log. The positions of a new incarnation are above all positions that
// were published before, so missing events of the new incarnation are detected and read as usual. The effects of events
// that the source has lost are kept.
func (a *applier) restored(incarnation string) {
	if incarnation == a.incarnation || incarnation == "" {
		return
	}
	if a.incarnation != "" {
		a.logger.Warn("the log of the source was restored to an earlier state; events that it has lost stay applied here",
			"partition", a.of.Partition, "position", a.readUpTo, "incarnation", incarnation, "before", a.incarnation)
	}
	a.incarnation = incarnation
}

// save stores progress. If there are effects or streams to park, it writes them immediately. If not, it writes the
// checkpoint only if saveEvery has passed, maxUnsaved records wait, or the partition is released.
func (a *applier) save() error {
	effective := false
	for _, i := range a.items {
		effective = effective || len(i.effects) > 0 || i.problem != nil
	}
	a.acknowledge()
	due := a.isReleased() || len(a.waiting) >= maxUnsaved || time.Since(a.savedAt) >= saveEvery
	if !effective && (!due || !a.unsaved()) {
		return nil
	}
	return a.write(a.checkpoint(a.readUpTo, 0))
}

// checkpoint returns a checkpoint at a position. The parameter index is the number of effects of the next event that
// are stored.
func (a *applier) checkpoint(position catalog.Position, index int) inbox.Checkpoint {
	return inbox.Checkpoint{Position: position, Index: index, Incarnation: a.incarnation, Epoch: a.saved.Epoch,
		Partitions: a.saved.Partitions}
}

// before returns the checkpoint at the position before the next event of the partition. If some effects of that event
// are stored already, the checkpoint contains their number.
func (a *applier) before(position catalog.Position) inbox.Checkpoint {
	if position == a.saved.Position {
		return a.checkpoint(position, a.saved.Index)
	}
	return a.checkpoint(position, 0)
}

// acknowledge acknowledges the records up to the checkpoint. A record becomes a dead letter if its event failed and
// parks its stream.
func (a *applier) acknowledge() {
	left := a.waiting[:0]
	for _, d := range a.waiting {
		if d.event.Position > a.saved.Position {
			left = append(left, d)
			continue
		}
		var err error
		if p, ok := a.parked[d.event.Stream]; ok && !d.event.IsPosition() && p.Position == d.event.Position {
			err = retry.Permanent(errors.New(p.Error))
		}
		d.done <- err
	}
	clear(a.waiting[len(left):])
	a.waiting = left
}

// stored is called when a checkpoint has been stored. It keeps the checkpoint in a.saved, and acknowledges the records
// up to it.
func (a *applier) stored(c inbox.Checkpoint) {
	a.saved, a.savedAt = c, time.Now()
	a.acknowledge()
}

// reload reads the parked streams of the topic.
func (a *applier) reload() error {
	return a.retryUnavailable(a.claim.Done(), func() error {
		all, revision, err := a.o.Log.Inbox().ParkedOf(a.ctx, a.of.Source, a.of.Topic)
		if err != nil {
			return err
		}
		a.parked, a.revision = make(map[string]inbox.Parked, len(all)), revision
		for _, p := range all {
			a.parked[p.Stream] = p
		}
		return nil
	})
}

func (a *applier) failed(doing string, err error) error {
	return fmt.Errorf("%s partition %d of %s of %s: %w", doing, a.of.Partition, a.of.Topic, a.of.Source, err)
}
