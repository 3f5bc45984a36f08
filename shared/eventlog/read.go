package eventlog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
)

// planned makes the server plan a statement for its arguments each time it runs. A cached plan would be used again for
// other arguments, and after tables have grown.
const planned = pgx.QueryExecModeCacheDescribe

// Query selects a part of the log. A field that is zero does not restrict the selection, except Limit and Partition.
type Query struct {
	After  catalog.Position // only events above this position
	Until  catalog.Position // only events up to this position; 0: up to the head
	Limit  int              // maximum number of events in a page; 0: 500; values above 1,000 count as 1,000
	Topic  string           // only events of this topic
	Stream string           // only events of this stream

	AfterVersion catalog.Version // with Stream: only events above this version of the stream

	// Partition and Partitions select the events whose stream hashes to Partition among Partitions partitions. If
	// Partitions is 0, all events are selected.
	Partition, Partitions int32
}

// maxSpan is the maximum number of positions that a page covers if it is filtered by topic or partition, and not by
// stream. No index helps with such a filter, so reading a page of a sparse topic has to be bounded.
const maxSpan = 20_000

// Page is a part of the log, ascending by position. The bodies of redacted or expired events lack their personal
// fields.
type Page struct {
	Events   []envelope.Event
	Complete catalog.Position // this page and the previous ones contain all selected events up to this position
	Head     catalog.Position // of the log

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
		return Page{}, pgerror.Data(fmt.Errorf("read the log of %s: partition %d does not exist among %d", l.o.Owner, q.Partition,
			q.Partitions))
	}
	limit := q.Limit
	if limit <= 0 {
		limit = 500
	}
	limit = min(limit, 1000)
	// The statement below may see a later state of the log than the statement that read the head. This does not matter,
	// because no event is added below the head.
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
	var all []Logged
	if err == nil {
		all, err = l.scanAll(found)
	}
	if err != nil {
		return Page{}, fmt.Errorf("read the log of %s after %d: %w", l.o.Owner, q.After, Unavailable(err))
	}
	l.hideExpired(all)
	if len(all) == limit {
		page.Complete = all[limit-1].Position
	}
	for _, e := range all {
		if q.Partitions > 0 && envelope.Partition(e.PartitionKey(), q.Partitions) != q.Partition {
			continue
		}
		e.Incarnation = newest.Incarnation
		page.Events = append(page.Events, e.Event)
		page.topics = append(page.topics, e.Topic)
	}
	return page, nil
}

// Records returns the page's events in the form in which owners send them to each other.
func (p Page) Records() []*meshv1.Record {
	records := make([]*meshv1.Record, len(p.Events))
	for i, e := range p.Events {
		records[i] = e.Record(p.topics[i])
	}
	return records
}
