package edumatrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// The states of a dead letter.
const (
	stateFailed     = "failed"     // a command whose final outcome is "failed", or a command that cannot be read
	stateParked     = "parked"     // an event that failed; the later events of its stream wait
	stateUnreadable = "unreadable" // a record of an event whose headers cannot be read
	stateJob        = "job"        // a job that has failed permanently
	stateDone       = "done"       // a message that was dropped, or an event that was applied later
)

// resolveWithin is the maximum time for applying a parked event and the later events of its stream that wait.
const resolveWithin = 10 * time.Minute

// deadLetter is a message, event or job that a service could not process.
type deadLetter struct {
	// ID is SERVICE/PARTITION/OFFSET for a dead letter on the topic of dead letters (see the field at), SERVICE/job/ID for
	// a failed job, and the id of the message for a parked event without a dead letter.
	ID        string            `json:"id"`
	Message   string            `json:"message"`
	Service   string            `json:"service"`
	State     string            `json:"state"`
	Topic     string            `json:"topic"`     // the topic of the message; for a job, the text "jobs of <service>"
	Partition int32             `json:"partition"` // the partition of Topic; -1 if it is unknown, or for a job
	Offset    int64             `json:"offset"`    // the offset in the partition; -1 if it is unknown, or for a job
	Key       string            `json:"key"`
	Error     string            `json:"error"`
	Time      time.Time         `json:"time"`
	Handler   string            `json:"handler,omitempty"`
	Type      string            `json:"type,omitempty"`
	Stream    string            `json:"stream,omitempty"`
	Version   catalog.Version   `json:"version,omitempty"`
	Actor     string            `json:"actor,omitempty"`
	Waiting   int               `json:"waiting,omitempty"`  // the number of later events of the stream that wait
	Attempts  int               `json:"attempts,omitempty"` // the number of attempts of a job
	Headers   map[string]string `json:"headers,omitempty"`
	Data      json.RawMessage   `json:"data,omitempty"`
	Problem   string            `json:"problem,omitempty"` // why Data is missing, or the subcommand that shows the data

	source string             // the owner of the event; empty if there is no readable event
	at     *meshv1.DeadLetter // the place on the topic of dead letters; nil if the dead letter is not on the topic
	job    int64              // the id of a job
}

// deadLetters lists and resolves the messages, events and jobs that services could not process.
func deadLetters(ctx context.Context, t Terminal, args []string) error {
	f := flags("dead-letters", t)
	service := f.String("service", "", "only dead letters of this service")
	all := f.Bool("all", false, "list resolved dead letters too")
	asJSON := f.Bool("json", false, "one JSON object per line")
	rest, err := arguments(f, args)
	if err != nil {
		return err
	}
	verb := strings.Join(rest[:min(1, len(rest))], "")
	known := slices.Contains([]string{"list", "show", "retry", "drop"}, verb)
	if !known || (len(rest) == 1) != (verb == "list") || len(rest) > 2 {
		return t.wrongly("edumatrix dead-letters needs one of: list, show ID, retry ID, drop ID")
	}
	i, err := findInstallation(t)
	if err != nil {
		return err
	}
	services := i.declared.Owners()
	if *service != "" {
		if !slices.Contains(services, *service) {
			return fmt.Errorf("there is no service %q; the services are %s", *service,
				strings.Join(services, ", "))
		}
		services = []string{*service}
	}
	var letters []deadLetter
	var problems []error
	for _, s := range services {
		own, err := i.deadLetters(ctx, s)
		letters, problems = append(letters, own...), append(problems, err)
	}
	if verb == "list" {
		if !*all {
			letters = slices.DeleteFunc(letters, func(l deadLetter) bool { return l.State == stateDone })
		}
		return errors.Join(append(problems, listDeadLetters(t, letters, *asJSON))...)
	}
	found, err := findDeadLetter(letters, rest[1], errors.Join(problems...))
	if err != nil {
		return err
	}
	switch verb {
	case "show":
		return showDeadLetter(t, found, *asJSON)
	case "retry":
		return i.retry(ctx, t, found)
	default:
		return i.drop(ctx, t, found)
	}
}

// deadLetters returns the dead letters of a service with their states: first those on its topic of dead letters, in the
// order of each partition, then parked events without a dead letter, then failed jobs.
func (i *installation) deadLetters(ctx context.Context, service string) ([]deadLetter, error) {
	read, err := bus.DeadLetters(ctx, i.kafka, catalog.DeadLetterTopic(service))
	if err != nil {
		return nil, err
	}
	operator := i.operatorOf(service)
	parked, err := i.parked(ctx, service)
	if err != nil {
		return nil, err
	}
	d, err := operator.ListDropped(ctx, connect.NewRequest(&meshv1.ListDroppedRequest{}))
	if err != nil {
		return nil, i.answered(service, err)
	}
	dropped := map[string]bool{}
	for _, l := range d.Msg.GetDeadLetters() {
		dropped[deadLetterKey(l)] = true
	}
	failed, err := i.failedJobs(ctx, service)
	return append(i.merge(service, read, parked, dropped), failed...), err
}

// failedJobs returns the jobs of a service that have failed permanently.
func (i *installation) failedJobs(ctx context.Context, service string) (all []deadLetter, err error) {
	for after := int64(0); ; {
		page, err := i.operatorOf(service).ListFailedJobs(ctx,
			connect.NewRequest(&meshv1.ListFailedJobsRequest{AfterId: after}))
		if connect.CodeOf(err) == connect.CodeUnimplemented {
			return nil, nil // the service has no jobs
		}
		if err != nil {
			return all, i.answered(service, err)
		}
		if len(page.Msg.GetJobs()) == 0 {
			return all, nil
		}
		for _, j := range page.Msg.GetJobs() {
			after = j.GetId()
			all = append(all, deadLetter{ID: fmt.Sprintf("%s/job/%d", service, after), Service: service, State: stateJob,
				Topic: "jobs of " + service, Partition: -1, Offset: -1, Key: j.GetKey(), Type: j.GetKind(),
				Error: j.GetError(), Time: j.GetAt().AsTime(), Attempts: int(j.GetAttempts()), job: after})
		}
	}
}

// parked returns the streams that a service has parked.
func (i *installation) parked(ctx context.Context, service string) (all []*meshv1.Parked, err error) {
	for token := ""; ; {
		page, err := i.operatorOf(service).ListParked(ctx, connect.NewRequest(&meshv1.ListParkedRequest{PageToken: token}))
		if err != nil {
			return nil, i.answered(service, err)
		}
		all = append(all, page.Msg.GetParked()...)
		if token = page.Msg.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func deadLetterKey(l *meshv1.DeadLetter) string {
	return fmt.Sprintf("%d/%d/%s", l.GetPartition(), l.GetOffset(), l.GetId())
}

// merge returns the dead letters on the topic, and the parked events without a dead letter. Their states follow from
// the parked streams and the dropped dead letters that the service reports. A record that became a dead letter twice,
// because it was delivered twice, appears once.
func (i *installation) merge(service string, read []bus.DeadLetterRecord, parked []*meshv1.Parked, dropped map[string]bool) (
	all []deadLetter) {
	type origin struct {
		topic     string
		partition int32
		offset    int64
		id        string // the message id; offsets begin at 0 again when a topic was deleted and created again
	}
	listed, seen := map[*meshv1.Parked]bool{}, map[origin]bool{}
	for _, r := range read {
		from := origin{r.Topic, r.FromPartition, r.FromOffset, r.ID}
		if seen[from] && r.FromOffset >= 0 {
			continue
		}
		seen[from] = true
		l := i.deadLetter(service, r)
		p := l.findParked(parked)
		if listed[p] {
			continue
		}
		if p != nil {
			listed[p], l.State, l.Waiting = true, stateParked, int(p.GetWaiting())
			l.Error = p.GetError() // the error of the newest attempt
		} else if l.State == stateParked || dropped[deadLetterKey(l.at)] {
			l.State = stateDone
		}
		all = append(all, l)
	}
	for _, p := range parked {
		if !listed[p] {
			all = append(all, parkedDeadLetter(service, p))
		}
	}
	return all
}

// deadLetter decodes a dead letter.
func (i *installation) deadLetter(service string, r bus.DeadLetterRecord) deadLetter {
	l := deadLetter{ID: fmt.Sprintf("%s/%d/%d", service, r.Partition, r.Offset), Message: r.ID, Service: service,
		State: stateUnreadable, Topic: r.Topic, Partition: r.FromPartition, Offset: r.FromOffset, Key: r.Key, Error: r.Error,
		Time: r.Time, Handler: r.Handler, Headers: map[string]string{},
		at: &meshv1.DeadLetter{Partition: r.Partition, Offset: r.Offset, Id: r.ID}}
	maps.Copy(l.Headers, r.Message.Metadata)
	delete(l.Headers, envelope.MetadataKey)
	problem := func(err error) deadLetter {
		l.Problem = fmt.Sprintf("%v; payload of %d bytes %.120x", err, len(r.Message.Payload), []byte(r.Message.Payload))
		if r.PayloadNote != "" {
			l.Problem = "payload " + r.PayloadNote
		}
		return l
	}
	if r.Topic == catalog.CommandTopic(service) {
		l.State = stateFailed
		c, err := envelope.ReadCommand(r.Message)
		if err != nil {
			return problem(err)
		}
		l.Type, l.Stream, l.Actor = c.Type, c.Stream, c.Actor
		if l.Data, err = commandData(i.declared, c); err != nil {
			return problem(err)
		}
		return l
	}
	e, err := envelope.ReadEvent(r.Message)
	if err != nil {
		return problem(err)
	}
	l.State, l.source = stateParked, e.Source
	l.Type, l.Stream, l.Version, l.Actor = e.Type, e.Stream, e.Version, e.Actor
	if l.Data, err = eventData(i.declared, e); err != nil {
		return problem(err)
	}
	return l
}

// commandData returns the body of a command as JSON.
func commandData(declared *catalog.Catalog, c envelope.Command) ([]byte, error) {
	command, ok := declared.Command(c.Type)
	if !ok {
		return nil, fmt.Errorf("command %q is not declared", c.Type)
	}
	m := command.Type.New().Interface()
	if err := proto.Unmarshal(c.Body, m); err != nil {
		return nil, fmt.Errorf("command %s: %w", c.Type, err)
	}
	return wirejson.Marshal(m)
}

func (l deadLetter) findParked(parked []*meshv1.Parked) *meshv1.Parked {
	i := slices.IndexFunc(parked, func(p *meshv1.Parked) bool {
		return l.source != "" && p.GetSource() == l.source && p.GetStream() == l.Stream && catalog.Version(p.GetVersion()) == l.Version
	})
	if i < 0 {
		return nil
	}
	return parked[i]
}

// parkedDeadLetter describes a parked event without a dead letter: the dead letter has expired, or there was none,
// because the event was missing from the topic and the service read it from the log.
func parkedDeadLetter(service string, p *meshv1.Parked) deadLetter {
	l := deadLetter{Service: service, State: stateParked, Topic: p.GetRecord().GetTopic(), Partition: -1, Offset: -1,
		Key: p.GetStream(), Error: p.GetError(), Time: p.GetAt().AsTime(), Stream: p.GetStream(), Version: catalog.Version(p.GetVersion()),
		Waiting: int(p.GetWaiting()), Problem: "edumatrix log show " + p.GetStream() + " shows its contents", source: p.GetSource()}
	if e, err := envelope.ReadRecord(p.GetRecord()); err == nil {
		l.ID, l.Message, l.Type, l.Actor = e.ID, e.ID, e.Type, e.Actor
	}
	return l
}

// findDeadLetter finds a dead letter by SERVICE/PARTITION/OFFSET, by PARTITION/OFFSET, by SERVICE/job/ID, or by the
// message's id. The parameter problem is not nil if some dead letters could not be listed. findDeadLetter then accepts
// only the field ID of a dead letter, because any other form could be ambiguous.
func findDeadLetter(letters []deadLetter, id string, problem error) (deadLetter, error) {
	var found []deadLetter
	for _, l := range letters {
		_, short, _ := strings.Cut(l.ID, "/")
		if l.ID == id || l.Message == id || l.at != nil && short == id {
			found = append(found, l)
		}
	}
	switch {
	case len(found) == 0:
		return deadLetter{}, errors.Join(problem, fmt.Errorf("there is no dead letter %s", id))
	case len(found) == 1 && problem != nil && found[0].ID != id:
		return deadLetter{}, fmt.Errorf("%s may be ambiguous, because not all dead letters could be listed; use the id %s: %w", id,
			found[0].ID, problem)
	case len(found) == 1:
		return found[0], nil
	}
	var ids []string
	for _, l := range found {
		ids = append(ids, l.ID)
	}
	return deadLetter{}, fmt.Errorf("%s is ambiguous: it is one of %s", id, strings.Join(ids, ", "))
}

func listDeadLetters(t Terminal, letters []deadLetter, asJSON bool) error {
	if asJSON {
		for _, l := range letters {
			if err := writeLine(t.Out, l); err != nil {
				return err
			}
		}
		return nil
	}
	if len(letters) == 0 {
		fmt.Fprintln(t.Out, "no dead letters")
		return nil
	}
	table := tabwriter.NewWriter(t.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tTIME\tSTATE\tFROM\tKEY\tWHAT\tERROR")
	for _, l := range letters {
		state := l.State
		if l.Waiting > 0 {
			state = fmt.Sprintf("%s, %d wait", state, l.Waiting)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Time.UTC().Format(time.RFC3339), state, l.from(),
			printable(l.Key), printable(l.what()), printable(shortened(l.Error, 100)))
	}
	return table.Flush()
}

func (l deadLetter) from() string {
	if l.Offset < 0 {
		return l.Topic
	}
	return fmt.Sprintf("%s/%d/%d", l.Topic, l.Partition, l.Offset)
}

func (l deadLetter) what() string {
	what := l.Type
	if what == "" {
		return "?"
	}
	if l.Version > 0 {
		what += fmt.Sprintf(" v%d", l.Version)
	}
	if l.Actor != "" {
		what += " by " + l.Actor
	}
	return what
}

func shortened(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

func writeLine(out io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintln(out, string(line))
	}
	return err
}

func showDeadLetter(t Terminal, l deadLetter, asJSON bool) error {
	if asJSON {
		return writeLine(t.Out, l)
	}
	state := map[string]string{
		stateFailed: "failed: a command's outcome is final; drop it when the cause is understood",
		stateParked: fmt.Sprintf("parked: %d later events of its stream wait until it is retried or dropped", l.Waiting),
		stateJob: fmt.Sprintf("job: it has failed %d times and is not tried again unless you retry it; it may have had a part of its effect",
			l.Attempts),
		stateDone: "done: it was dropped, or applied later", stateUnreadable: "unreadable: it can only be dropped",
	}[l.State]
	table := tabwriter.NewWriter(t.Out, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, printable(value))
		}
	}
	line("id", l.ID)
	line("message", l.Message)
	line("service", l.Service)
	line("state", state)
	line("from", l.from())
	line("key", l.Key)
	line("handler", l.Handler)
	line("time", l.Time.UTC().Format(time.RFC3339Nano))
	line("error", l.Error)
	line("what", l.what())
	if l.Stream != l.Key {
		line("stream", l.Stream)
	}
	line("data", string(l.Data))
	line("no data", l.Problem)
	for _, name := range slices.Sorted(maps.Keys(l.Headers)) {
		line("  "+name, l.Headers[name])
	}
	return table.Flush()
}

// retry applies a parked event, and then the events that wait for it. It makes a failed job run again. Other dead
// letters cannot be retried; the error contains the reason.
func (i *installation) retry(ctx context.Context, t Terminal, l deadLetter) error {
	switch l.State {
	case stateFailed:
		return fmt.Errorf("%s is a command whose outcome is final, and its sender was notified that it failed: it can "+
			"only be dropped", l.ID)
	case stateUnreadable:
		return fmt.Errorf("%s cannot be read, so it cannot be retried: drop it. If it was an event, the service has read the "+
			"event from its owner's log", l.ID)
	case stateDone:
		return fmt.Errorf("%s is resolved already", l.ID)
	case stateJob:
		return i.resolveJob(ctx, t, l, false)
	}
	return i.resolve(ctx, t, l, false)
}

// resolveJob makes a failed job run again, or deletes it.
func (i *installation) resolveJob(ctx context.Context, t Terminal, l deadLetter, drop bool) error {
	request := connect.NewRequest(&meshv1.ResolveJobRequest{Id: l.job, Drop: drop})
	if _, err := i.operatorOf(l.Service).ResolveJob(ctx, request); err != nil {
		return i.answered(l.Service, err)
	}
	if drop {
		fmt.Fprintf(t.Out, "%s is deleted\n", l.ID)
	} else {
		fmt.Fprintf(t.Out, "%s is tried once more; if that fails, it is listed again\n", l.ID)
	}
	return nil
}

// drop skips a parked event, or deletes a failed job. If the dead letter is on the topic of dead letters, drop also
// records that it is dropped. drop returns an error if the dead letter is resolved already.
func (i *installation) drop(ctx context.Context, t Terminal, l deadLetter) error {
	if l.State == stateDone {
		return fmt.Errorf("%s is resolved already", l.ID)
	}
	if l.State == stateJob {
		return i.resolveJob(ctx, t, l, true)
	}
	if l.State == stateParked {
		if err := i.resolve(ctx, t, l, true); err != nil {
			return err
		}
	}
	if l.at == nil {
		return nil
	}
	request := connect.NewRequest(&meshv1.DropDeadLetterRequest{DeadLetter: l.at})
	if _, err := i.operatorOf(l.Service).DropDeadLetter(ctx, request); err != nil {
		return i.answered(l.Service, err)
	}
	if l.State != stateParked {
		fmt.Fprintf(t.Out, "%s is dropped\n", l.ID)
	}
	return nil
}

func (i *installation) resolve(ctx context.Context, t Terminal, l deadLetter, drop bool) error {
	operator, err := i.operator(l.Service)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	done, err := operator.ResolveParked(ctx, connect.NewRequest(&meshv1.ResolveParkedRequest{Source: l.source,
		Stream: l.Stream, Version: int64(l.Version), Drop: drop}))
	if err != nil {
		return i.answered(l.Service, err)
	}
	if drop {
		fmt.Fprintf(t.Out, "version %d of %s is left out; ", l.Version, printable(l.Stream))
	}
	fmt.Fprintf(t.Out, "%d events of %s applied\n", done.Msg.GetApplied(), printable(l.Stream))
	if done.Msg.GetError() == "" {
		return nil
	}
	err = fmt.Errorf("%d events are still parked; the first one fails: %s", done.Msg.GetLeft(),
		printable(done.Msg.GetError()))
	if drop {
		fmt.Fprintln(t.Out, err) // not a failure of drop: the event was dropped, and a later event fails
		return nil
	}
	return err
}
