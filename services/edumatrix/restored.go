package edumatrix

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

// restored makes a service begin a new incarnation of its log, and prints the consequences for its readers.
func restored(ctx context.Context, t Terminal, args []string) error {
	f := flags("restored", t)
	seen := f.Int64("seen", 0, "highest position of the lost events that a reader may have seen; needed only if it can be more than "+
		"a million above the end of the log")
	rest, err := arguments(f, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return t.wrongly("edumatrix restored needs SERVICE")
	}
	if *seen < 0 {
		return t.wrongly("--seen has to be a position, which is not negative")
	}
	i, err := findInstallation(t)
	if err != nil {
		return err
	}
	service := rest[0]
	operator, err := i.operator(service)
	if err != nil {
		return err
	}
	response, err := operator.BeginIncarnation(ctx, connect.NewRequest(&meshv1.BeginIncarnationRequest{Seen: *seen}))
	if err != nil {
		return i.answered(service, err)
	}
	r := response.Msg
	fmt.Fprintf(t.Out, `%s has begun the incarnation %s of its log; before it was %s.
The log ends at position %d, and continues above %d.

This happens now, by itself:
- %s drops the states that it has in memory, and decides on what the log still has.
- Gateways forget the log's recent events and have all clients connect again (close code 4005). A client is told
  in not_recovered which rooms it has to fetch again.
- Services that react to %s go on. Their reactions to events that are lost now stay.

Run "edumatrix rebuild %s" if its projections were not restored from the same moment as its log.
`, service, r.GetIncarnation(), r.GetBefore(), r.GetHead(), r.GetFloor(), service, service, service)
	return nil
}
