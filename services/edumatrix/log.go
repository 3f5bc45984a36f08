package edumatrix

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// showLog prints the events of a stream from their owner's log. Personal fields that were redacted are empty.
func showLog(ctx context.Context, t Terminal, args []string) error {
	f := flags("log", t)
	owner := f.String("owner", "", "service whose log has the stream (default: search the logs of all services)")
	asJSON := f.Bool("json", false, "one JSON object per line")
	rest, err := arguments(f, args)
	if err != nil {
		return err
	}
	if len(rest) != 2 || rest[0] != "show" {
		return t.wrongly("edumatrix log needs: show STREAM, such as conversation:7")
	}
	i, err := findInstallation(t)
	if err != nil {
		return err
	}
	owners := i.declared.Logs()
	if *owner != "" {
		owners = []string{*owner}
	}
	s := &shower{out: t.Out, ink: t.ink(), json: *asJSON, declared: i.declared}
	var away []error
	for _, owner := range owners {
		found := 0
		err := i.read(ctx, owner, &meshv1.ReadLogRequest{Stream: rest[1]}, func(e envelope.Event, _ *meshv1.Record) error {
			found++
			return s.event(e, nil)
		}, nil)
		switch {
		case found > 0:
			return err
		case err != nil:
			away = append(away, err)
		}
	}
	if len(away) > 0 {
		return errors.Join(away...)
	}
	return fmt.Errorf("no log contains events of %q", rest[1])
}

// read requests a part of a log with the request in the parameter ask, page by page, and passes each event to the
// function take, in order. If ask.Until is 0, read ends at the position that is the log's head when the first page is
// read. After each page, it calls the function progress, unless that is nil. It changes ask.After and ask.Until.
func (i *installation) read(ctx context.Context, owner string, ask *meshv1.ReadLogRequest,
	take func(envelope.Event, *meshv1.Record) error, progress func(position, head catalog.Position)) error {
	log, err := i.log(owner)
	if err != nil {
		return err
	}
	for {
		page, err := log.ReadLog(ctx, connect.NewRequest(ask))
		if err != nil {
			return i.answered(owner, err)
		}
		if ask.Until == 0 {
			ask.Until = page.Msg.GetHead()
		}
		for _, record := range page.Msg.GetRecords() {
			e, err := envelope.ReadRecord(record)
			if err != nil {
				return fmt.Errorf("log of %s: %w", owner, err)
			}
			if err := take(e, record); err != nil {
				return err
			}
		}
		ask.After = page.Msg.GetComplete()
		if progress != nil {
			progress(catalog.Position(ask.After), catalog.Position(ask.Until))
		}
		if ask.After >= ask.Until {
			return nil
		}
	}
}
