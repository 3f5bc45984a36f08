// Command log commits two events to an event log in PostgreSQL, and reads them back.
package main

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	feedv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

func main() {
	if err := run(context.Background()); err != nil {
		stdlog.Fatal(err)
	}
}

func run(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	declared, err := catalog.Load() // the declarations of proto/: topic, class and rooms of each event
	if err != nil {
		return err
	}
	log, err := eventlog.Open(ctx, eventlog.Options{Owner: "feed", Pool: pool, Catalog: declared}) // creates its tables
	if err != nil {
		return err
	}
	committing, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- log.Run(committing) }() // runs the group commit until the context ends
	defer func() { stop(); <-ended }()

	for id, text := range []string{"Term begins on Monday.", "Lunch is at noon."} {
		stream := fmt.Sprint("post:", id)
		post := &feedv1.PostCreated{PostId: fmt.Sprint(id), AuthorId: "alice", Body: text}
		_, err := log.Commit(ctx, eventlog.Write{Stream: stream, Expected: 0, // the stream must be new
			Commands: []eventlog.Decided{{Actor: "alice", CommandID: stream, Type: "feed.create_post", Events: []proto.Message{post}}}})
		// A command has only one outcome. When this program runs again, Commit returns a RepeatedError, because the
		// command already has its outcome.
		if repeated := new(eventlog.RepeatedError); err != nil && !errors.As(err, &repeated) {
			return err
		}
	}
	for after, head := catalog.Position(0), catalog.Position(1); after < head; {
		page, err := log.Read(ctx, eventlog.Query{After: after})
		if err != nil {
			return err
		}
		for _, e := range page.Events {
			fmt.Printf("position %d: %s, version %d of %s, by %s\n", e.Position, e.Type, e.Version, e.Stream, e.Actor)
		}
		after, head = page.Complete, page.Head
	}
	return nil
}
