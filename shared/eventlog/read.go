package eventlog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// planned makes the server plan a statement for what it is asked, each time. A kept plan would be one for any values,
// and for tables as small as they were when it was made.
const planned = pgx.QueryExecModeCacheDescribe

// Query says what to read of the log. Empty fields ask for everything.
type Query struct {
	After  int64  // events above this position
	Until  int64  // up to this one; 0: to the head
	Limit  int    // events in a page; 0: 500, at most 1,000
	Topic  string // only of this topic
	Stream string // only of this stream

	AfterVersion int64 // with Stream alone: events above this version of it

	// Partition and Partitions select events whose stream hashes to a partition of so many. Partitions 0: all events.
	Partition, Partitions int32
}

// maxSpan is how many positions a page covers that is filtered by topic or partition: no index serves such a filter,
// and each page of a sparse topic has to end.
const maxSpan = 20_000

// Page is a part of the log, ascending by position. Bodies are whole, except for what is redacted.
type Page struct {
	Events   []envelope.Event
	Complete int64 // everything asked for up to here is in this page and those before
	Head     int64 // of the log

	Incarnation string // of the log

	topics []string
}

// Read reads a page of the log.
func (l *Log) Read(ctx context.Context, q Query) (Page, error) {
	newest, err := l.Newest(ctx)
	if err != nil {
		return Page{}, err
	}
	head := newest.Position
	if q.Partitions > 0 && (q.Partition < 0 || q.Partition >= q.Partitions) {
		return Page{}, &ownFault{fmt.Errorf("read the log of %s: there is no partition %d of %d", l.o.Owner, q.Partition,
			q.Partitions)}
	}
	limit := q.Limit
	if limit <= 0 {
		limit = 500
	}
	limit = min(limit, 1000)
	// Events up to the head do not change, so a second statement may read them.
	until := head
	if q.Until > 0 {
		until = min(until, q.Until)
	}
	if (q.Topic != "" || q.Partitions > 0) && q.Stream == "" {
		until = min(until, q.After+maxSpan)
	}
	page := Page{Head: head, Incarnation: newest.Incarnation, Complete: max(until, q.After)}
	if q.After >= until {
		return page, nil
	}
	var found pgx.Rows
	if q.Stream != "" {
		found, err = l.o.Pool.Query(ctx, l.sql.readStream, planned, q.After, until, limit, q.Topic, q.Stream, q.AfterVersion)
	} else {
		found, err = l.o.Pool.Query(ctx, l.sql.read, planned, q.After, until, limit, q.Topic)
	}
	var all []logged
	if err == nil {
		all, err = l.scanAll(found)
	}
	if err != nil {
		return Page{}, fmt.Errorf("read the log of %s after %d: %w", l.o.Owner, q.After, Away(err))
	}
	l.hideExpired(all)
	if len(all) == limit {
		page.Complete = all[limit-1].Position
	}
	for _, e := range all {
		if q.Partitions > 0 && bus.Partition(e.Stream, q.Partitions) != q.Partition {
			continue
		}
		e.Incarnation = newest.Incarnation
		page.Events = append(page.Events, e.Event)
		page.topics = append(page.topics, e.topic)
	}
	return page, nil
}

// Records are the page's events as owners hand them to each other.
func (p Page) Records() []*meshv1.Record {
	records := make([]*meshv1.Record, len(p.Events))
	for i, e := range p.Events {
		records[i] = e.Record(p.topics[i])
	}
	return records
}
