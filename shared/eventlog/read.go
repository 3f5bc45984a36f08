package eventlog

import (
	"context"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Query says what to read of the log. Empty fields ask for everything.
type Query struct {
	After  int64    // events above this position
	Until  int64    // up to this one; 0: to the head
	Limit  int      // events in a page; 0: 500, at most 1,000
	Topic  string   // only of this topic
	Stream string   // only of this stream
	Rooms  []string // only those that went to one of these rooms
}

// Page is a part of the log, ascending by position. Bodies are whole, except for what is redacted.
type Page struct {
	Events   []envelope.Event
	Complete int64 // everything asked for up to here is in this page and those before
	Head     int64 // of the log
}

// Read reads a page of the log.
func (l *Log) Read(ctx context.Context, q Query) (Page, error) { panic("being written") }

// Records are the page's events as owners hand them to each other.
func (p Page) Records() []*meshv1.Record { panic("being written") }
