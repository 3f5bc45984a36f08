package owner

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/eventlog/rebuild"
	"github.com/edumatrix/interlinked/shared/jobs"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// operator serves the operator's calls to a service. It is reachable on the inner listener only.
type operator struct {
	name        string
	log         *eventlog.Log
	projections []*projection.Projection
	consumers   []*consume.Consumer
	jobs        *jobs.Queue     // nil: the service has no jobs
	work        context.Context // service.Parts.Work; its end cancels a rebuild
}

// withoutReadDeadline removes the deadline for reading a request, at which net/http ends the call's context. An
// operator's calls may take longer.
func withoutReadDeadline(path string, h http.Handler) (string, http.Handler) {
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // if this fails, long calls end early
		h.ServeHTTP(w, r)
	})
}

// Describe returns the projections of the service and the topics that it consumes.
func (o *operator) Describe(context.Context, *connect.Request[meshv1.DescribeRequest]) (
	*connect.Response[meshv1.DescribeResponse], error) {
	response := &meshv1.DescribeResponse{Projections: o.rebuildable()}
	for _, c := range o.consumers {
		response.Consumes = append(response.Consumes, &meshv1.Consumed{Owner: c.Source(), Topic: c.Topic()})
	}
	return connect.NewResponse(response), nil
}

// Rebuild rebuilds one projection or the timers, by name. Without a name, it rebuilds all projections and the timers.
func (o *operator) Rebuild(ctx context.Context, r *connect.Request[meshv1.RebuildRequest],
	out *connect.ServerStream[meshv1.RebuildResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.work, cancel)()
	progress := func(p rebuild.Progress) {
		// The error is ignored: if sending fails, ctx ends.
		_ = out.Send(&meshv1.RebuildResponse{Step: p.Step, Position: int64(p.Position), Head: int64(p.Head)})
	}
	rebuilds, err := o.rebuilds(r.Msg.GetProjection(), progress)
	if err != nil {
		return rpc.Error(err)
	}
	for _, run := range rebuilds {
		rebuilt, err := run(ctx)
		if err != nil {
			return connect.NewError(connect.CodeInternal, err) // an operator may see the error's text
		}
		err = out.Send(&meshv1.RebuildResponse{Step: "done", Position: int64(rebuilt.Position), Head: int64(rebuilt.Position),
			Rebuilt: rebuiltMessage(rebuilt)})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxSeen is the largest position that BeginIncarnation accepts. No log has reached it. An incarnation that began near
// the largest int64 would run out of positions.
const maxSeen = 1 << 53

// BeginIncarnation begins a new incarnation of the log. The positions of events in the new incarnation are above the
// position that the request names.
func (o *operator) BeginIncarnation(ctx context.Context, r *connect.Request[meshv1.BeginIncarnationRequest]) (
	*connect.Response[meshv1.BeginIncarnationResponse], error) {
	before, err := o.log.Newest(ctx)
	if err != nil {
		return nil, rpc.Error(err)
	}
	if seen := r.Msg.GetSeen(); seen < 0 || seen > maxSeen {
		return nil, rpc.Error(refusal.New(refusal.InvalidField, "seen has to be a position, from 0 to %d", int64(maxSeen)))
	}
	begun, err := o.log.Reincarnate(ctx, catalog.Position(r.Msg.GetSeen()))
	if err != nil {
		return nil, rpc.Error(err)
	}
	return connect.NewResponse(&meshv1.BeginIncarnationResponse{Before: before.Incarnation, Incarnation: begun.Incarnation,
		Head: int64(before.Position), Floor: int64(begun.Position)}), nil
}

// rebuildable returns the sorted names of everything that can be rebuilt: the projections, and the timers if the
// service has any.
func (o *operator) rebuildable() (names []string) {
	for _, p := range o.projections {
		names = append(names, p.Name())
	}
	if o.log.HasTimers() {
		names = append(names, eventlog.TimersName)
	}
	slices.Sort(names)
	return names
}

type rebuilder func(context.Context) (rebuild.Result, error)

// rebuilds returns the rebuilds that are to be run one after another. If the parameter name is empty, one of them
// rebuilds all projections and the next one the timers, as far as the service has them. Otherwise there is a single
// rebuild, of the projection or the timers with that name.
func (o *operator) rebuilds(name string, progress func(rebuild.Progress)) (all []rebuilder, err error) {
	names := o.rebuildable()
	switch {
	case len(names) == 0:
		return nil, refusal.New(refusal.NotFound, "%s has no projections to rebuild", o.name)
	case name != "" && !slices.Contains(names, name):
		return nil, refusal.New(refusal.NotFound, "%s has no projection %q; it has %s", o.name, name,
			strings.Join(names, ", "))
	}
	projections := rebuild.Options{Progress: progress}
	for _, p := range o.projections {
		if name == "" || name == p.Name() {
			projections.Projections = append(projections.Projections, p)
			projections.Tables = append(projections.Tables, p.Tables()...)
		}
	}
	if len(projections.Projections) > 0 {
		all = append(all, func(ctx context.Context) (rebuild.Result, error) { return rebuild.Projections(ctx, o.log, projections) })
	}
	if o.log.HasTimers() && (name == "" || name == eventlog.TimersName) {
		all = append(all, func(ctx context.Context) (rebuild.Result, error) { return rebuild.Timers(ctx, o.log, progress) })
	}
	return all, nil
}

func rebuiltMessage(r rebuild.Result) *meshv1.Rebuilt {
	m := &meshv1.Rebuilt{Projections: r.Projections, Position: int64(r.Position), Behind: int64(r.Behind),
		HeldMicroseconds: r.Held.Microseconds(), Left: r.Left}
	for _, t := range r.Tables {
		d := &meshv1.TableDifference{Table: t.Table, OldRows: t.OldRows, NewRows: t.NewRows, Differ: t.Differ}
		for _, row := range t.Rows {
			d.Rows = append(d.Rows, &meshv1.RowDifference{Old: row.Old, New: row.New})
		}
		m.Tables = append(m.Tables, d)
	}
	return m
}

// maxParked is the maximum number of entries in a page of parked streams or failed jobs.
const maxParked = 500

// ListParked returns a page of the parked streams.
func (o *operator) ListParked(ctx context.Context, r *connect.Request[meshv1.ListParkedRequest]) (
	*connect.Response[meshv1.ListParkedResponse], error) {
	var after inbox.Parked
	if err := page.ReadCursor("page_token", r.Msg.GetPageToken(), &after.Source, &after.Topic, &after.Stream); err != nil {
		return nil, err
	}
	limit := int(r.Msg.GetPageSize())
	if limit <= 0 || limit > maxParked {
		limit = maxParked
	}
	found, err := o.log.Inbox().ListParked(ctx, after, limit+1)
	if err != nil {
		return nil, err
	}
	found, last := page.Cut(found, limit, func(row int) inbox.Parked { return found[row] })
	response := &meshv1.ListParkedResponse{NextPageToken: page.Cursor(last.Source, last.Topic, last.Stream)}
	for _, p := range found {
		response.Parked = append(response.Parked, &meshv1.Parked{Source: p.Source, Stream: p.Stream, Version: int64(p.Version),
			Record: p.Record, Error: p.Error, At: timestamppb.New(p.At), Waiting: p.Waiting})
	}
	return connect.NewResponse(response), nil
}

// ResolveParked applies or skips the event that parks a stream, and applies the events that wait behind it until one
// fails.
func (o *operator) ResolveParked(ctx context.Context, r *connect.Request[meshv1.ResolveParkedRequest]) (
	*connect.Response[meshv1.ResolveParkedResponse], error) {
	consumer, err := o.consumer(ctx, r.Msg.GetSource(), r.Msg.GetStream(), catalog.Version(r.Msg.GetVersion()))
	if err != nil {
		return nil, err
	}
	done, err := consumer.Resolve(ctx, r.Msg.GetStream(), catalog.Version(r.Msg.GetVersion()), r.Msg.GetDrop())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ResolveParkedResponse{Applied: done.Applied, Left: done.Left,
		Error: done.Problem}), nil
}

// consumer returns the consumer that parked a stream at a version.
func (o *operator) consumer(ctx context.Context, source, stream string, version catalog.Version) (*consume.Consumer, error) {
	found, err := o.log.Inbox().ParkedStream(ctx, source, stream)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(found, func(p inbox.Parked) bool { return p.Version == version })
	switch {
	case len(found) == 0:
		return nil, refusal.New(refusal.NotFound, "the stream %s of %s is not parked at %s", stream, source, o.name)
	case i < 0:
		return nil, refusal.New(refusal.NotFound, "%s of %s is parked at %s from version %d onwards, not from version %d", stream,
			source, o.name, found[0].Version, version)
	}
	for _, c := range o.consumers {
		if c.Source() == source && c.Topic() == found[i].Topic {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%s no longer reacts to %s of %s", o.name, found[i].Topic, source)
}

// ListFailedJobs returns a page of the jobs that have failed permanently.
func (o *operator) ListFailedJobs(ctx context.Context, r *connect.Request[meshv1.ListFailedJobsRequest]) (
	*connect.Response[meshv1.ListFailedJobsResponse], error) {
	response := &meshv1.ListFailedJobsResponse{}
	if o.jobs == nil {
		return connect.NewResponse(response), nil
	}
	failed, err := o.jobs.ListFailed(ctx, r.Msg.GetAfterId(), maxParked)
	if err != nil {
		return nil, err
	}
	for _, j := range failed {
		response.Jobs = append(response.Jobs, &meshv1.FailedJob{Id: j.ID, Kind: j.Kind, Key: j.Key,
			Attempts: int32(j.Attempts), Error: j.Error, At: timestamppb.New(j.At)})
	}
	return connect.NewResponse(response), nil
}

// ResolveJob retries a failed job, or deletes it.
func (o *operator) ResolveJob(ctx context.Context, r *connect.Request[meshv1.ResolveJobRequest]) (
	*connect.Response[meshv1.ResolveJobResponse], error) {
	if o.jobs == nil {
		return nil, refusal.New(refusal.NotFound, "%s has no jobs", o.name)
	}
	resolve := o.jobs.Retry
	if r.Msg.GetDrop() {
		resolve = o.jobs.Drop
	}
	if err := resolve(ctx, r.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ResolveJobResponse{}), nil
}

// ListDropped returns the dead letters that were dropped.
func (o *operator) ListDropped(ctx context.Context, _ *connect.Request[meshv1.ListDroppedRequest]) (
	*connect.Response[meshv1.ListDroppedResponse], error) {
	all, err := o.log.Inbox().DroppedDeadLetters(ctx)
	if err != nil {
		return nil, err
	}
	response := &meshv1.ListDroppedResponse{}
	for _, l := range all {
		response.DeadLetters = append(response.DeadLetters, &meshv1.DeadLetter{Partition: l.Partition, Offset: l.Offset, Id: l.ID})
	}
	return connect.NewResponse(response), nil
}

// DropDeadLetter records that a dead letter was dealt with, so that lists of dead letters omit it.
func (o *operator) DropDeadLetter(ctx context.Context, r *connect.Request[meshv1.DropDeadLetterRequest]) (
	*connect.Response[meshv1.DropDeadLetterResponse], error) {
	letter := r.Msg.GetDeadLetter()
	err := o.log.Inbox().DropDeadLetter(ctx, inbox.DeadLetter{Partition: letter.GetPartition(), Offset: letter.GetOffset(), ID: letter.GetId()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.DropDeadLetterResponse{}), nil
}
