package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// reference returns the page with everything that clients send and receive, with every field.
func (d *declarations) reference() *page {
	p := &page{title: "Reference of the client protocol, version 1"}
	w := &writer{declarations: d, page: p}
	p.text("Generated from `proto/` by `make generate`: do not edit. [protocol.md](protocol.md) explains how a client uses all this.")
	p.text("The names of fields and enum values are those in JSON. In Protobuf, `data` is the message whose full name is below the " +
		"heading. A client ignores fields, frame types and event names that it does not know. It treats an unknown word of an enum " +
		"like an absent field.")
	p.list("In messages that a client sends, fields marked as required must be present and not empty. All other fields may be "+
		"absent, and `null` means absent. The gateway refuses fields that are not listed, except in `connect`.",
		"In messages that a client receives, fields marked as always present are present even if they are empty. All other "+
			"fields are absent if they do not apply.")
	w.contents("Frames", "Commands", "Queries", "Events", "Signals", "Types", "Streams", "Rooms", "Ids", "Errors", "Close codes")
	w.frames()
	w.commands()
	w.queries()
	w.events()
	w.signals()
	w.types()
	w.streams()
	w.rooms()
	w.ids()
	w.errors()
	w.closeCodes()
	return p
}

// writer writes the reference, and collects the types that fields refer to, for the section Types.
type writer struct {
	*declarations
	*page
	messages []mentioned
	enums    []protoreflect.EnumDescriptor
}

type mentioned struct {
	desc protoreflect.MessageDescriptor
	dir  direction
}

func (w *writer) contents(headings ...string) {
	links := make([]string, len(headings))
	for i, h := range headings {
		links[i] = linkTo(h)
	}
	w.text("%s", strings.Join(links, " · "))
}

// fieldTable writes a table of the fields of a message. The last parameter contains the names of fields to leave out.
func (w *writer) fieldTable(m protoreflect.MessageDescriptor, dir direction, without ...string) {
	head := []string{"field", "type", "required", "bounds", "meaning"}
	if dir == received {
		head[2] = "always present"
		head = slices.Delete(head, 3, 4)
	}
	var rows [][]string
	for _, f := range w.fields(m, dir) {
		if slices.Contains(without, f.name) {
			continue
		}
		w.mention(f, dir)
		yes := ""
		if f.required {
			yes = "yes"
		}
		row := []string{code(f.name), f.kind(), yes, f.bounds(), f.comment}
		if dir == received {
			row = slices.Delete(row, 3, 4)
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 && len(without) == 0 {
		w.text("This message has no fields.")
	}
	w.table(head, rows)
}

func (w *writer) mention(f field, dir direction) {
	switch {
	case f.desc.Enum() != nil:
		if !slices.Contains(w.enums, f.desc.Enum()) {
			w.enums = append(w.enums, f.desc.Enum())
		}
	case f.desc.Message() != nil && !slices.Contains([]protoreflect.FullName{timestampName, durationName}, f.desc.Message().FullName()):
		if m := (mentioned{f.desc.Message(), dir}); !slices.Contains(w.messages, m) {
			w.messages = append(w.messages, m)
		}
	}
}

// comment writes the comment of a message or a method, if there is one.
func (w *writer) comment(d protoreflect.Descriptor) {
	if c := w.comments[d.FullName()]; c != "" {
		w.text("%s", c)
	}
}

func (w *writer) frames() {
	w.heading(2, "Frames")
	w.heading(3, "Frames of a client")
	w.comment((&gatewayv1.ClientFrame{}).ProtoReflect().Descriptor())
	w.fieldTable((&gatewayv1.ClientFrame{}).ProtoReflect().Descriptor(), sent)
	for _, c := range controls {
		w.heading(4, code(c.name))
		if c.data == nil {
			w.text("Neither a `ping` nor its reply has data.")
			continue
		}
		w.comment(c.data.ProtoReflect().Descriptor())
		w.fieldTable(c.data.ProtoReflect().Descriptor(), sent)
		if c.answer == nil {
			w.text("The reply has no data.")
			continue
		}
		w.text("The data of the reply:")
		w.comment(c.answer.ProtoReflect().Descriptor())
		w.fieldTable(c.answer.ProtoReflect().Descriptor(), received)
	}
	w.heading(3, "Frames of the gateway")
	w.text("In JSON, each of these frames also has the field `type`.")
	for _, f := range serverFrames() {
		w.heading(4, code(string(f.Name())))
		w.comment(f.Message())
		w.fieldTable(f.Message(), received)
	}
}

func (w *writer) commands() {
	w.heading(2, "Commands")
	w.text("Over HTTP, a command is sent as `POST /api/<name>` with the data as the body. The outcome names the stream.")
	for _, c := range w.declarations.commands() {
		w.heading(3, code(c.Name))
		m := c.Type.Descriptor()
		o := proto.GetExtension(m.Options(), routingv1.E_Command).(*routingv1.Command)
		w.comment(m)
		about := fmt.Sprintf("The message is %s. It changes the stream `%s`.", code(string(m.FullName())), inWords(o.Stream))
		if o.MemberOf != "" {
			about += fmt.Sprintf(" Only members of `%s` may send it.", inWords(o.MemberOf))
		}
		if r := o.Requires; r != nil {
			about += fmt.Sprintf(" The %s has to exist in the stream `%s`.", r.Name, inWords(r.Stream))
		}
		if c.ExpiresAfter > 0 {
			about += fmt.Sprintf(" It is refused as `expired` after %s.", c.ExpiresAfter)
		}
		w.text("%s", about)
		w.fieldTable(m, sent)
	}
}

func (w *writer) queries() {
	w.heading(2, "Queries")
	w.text("Over HTTP, a query is sent as `POST /api/<name>` with the data as the body, or by calling its Connect procedure.")
	for _, q := range w.declarations.queries() {
		w.heading(3, code(q.Name))
		w.comment(w.method(q))
		w.text("The message is %s. The Connect procedure is `/api%s`.", code(string(q.Request.Descriptor().FullName())), q.Procedure)
		w.fieldTable(q.Request.Descriptor(), sent)
		w.text("The answer is %s:", code(string(q.Response.Descriptor().FullName())))
		w.fieldTable(q.Response.Descriptor(), received)
	}
}

// method returns the method that declares a query. The method and the request of the query may be declared in different
// files.
func (d *declarations) method(q *catalog.Query) protoreflect.MethodDescriptor {
	name := strings.ReplaceAll(strings.TrimPrefix(q.Procedure, "/"), "/", ".")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		panic(err) // cannot happen, because package catalog has read the query from this method
	}
	return found.(protoreflect.MethodDescriptor)
}

func (w *writer) events() {
	w.heading(2, "Events")
	for _, e := range w.declarations.events() {
		o := optionsOf(e)
		w.heading(3, code(e.Name))
		w.comment(e.Type.Descriptor())
		w.text("The message is %s. The event belongs to the stream `%s`.", code(string(e.Type.Descriptor().FullName())), inWords(e.Stream()))
		facts := []string{"It is sent to the room " + rooms(e.Rooms()) + "."}
		for _, m := range o.Opens {
			facts = append(facts, fmt.Sprintf("It opens the room `%s` for %s, and is sent to them too.", inWords(m.Room), users(e.Type.Descriptor(), m.User)))
		}
		for _, m := range o.Closes {
			facts = append(facts, fmt.Sprintf("It closes the room `%s` for %s. They receive this event and no later one of the room.",
				inWords(m.Room), users(e.Type.Descriptor(), m.User)))
		}
		if e.Redacts {
			facts = append(facts, fmt.Sprintf("It empties the personal fields of the earlier events with the same `%s`. These events "+
				"are `redacted` from then on.", strings.Trim(o.Subject, "{}")))
		}
		if o.Expires != "" {
			facts = append(facts, fmt.Sprintf("It expires at the time in `%s`, and is `redacted` from then on.", o.Expires))
		}
		if personal := personalFields(e.Type.Descriptor()); len(personal) > 0 {
			facts = append(facts, "If the event is `redacted`, these fields are empty: "+strings.Join(personal, ", ")+".")
		}
		w.list(facts...)
		w.fieldTable(e.Type.Descriptor(), received)
	}
}

func rooms(templates []string) string {
	names := make([]string, len(templates))
	for i, t := range templates {
		names[i] = code(inWords(t))
	}
	return strings.Join(names, " and ")
}

// users describes the users that a membership names: one user, or the users in a repeated field.
func users(m protoreflect.MessageDescriptor, template string) string {
	name := strings.Trim(template, "{}")
	if f := m.Fields().ByName(protoreflect.Name(name)); f != nil && f.IsList() {
		return "the users of " + code(name)
	}
	return "the user " + code(name)
}

func personalFields(m protoreflect.MessageDescriptor) (names []string) {
	for i := range m.Fields().Len() {
		if f := m.Fields().Get(i); proto.GetExtension(f.Options(), routingv1.E_Personal).(bool) {
			names = append(names, code(string(f.Name())))
		}
	}
	return names
}

func (w *writer) signals() {
	w.heading(2, "Signals")
	for _, s := range w.declarations.signals() {
		m := s.Type.Descriptor()
		o := proto.GetExtension(m.Options(), routingv1.E_Signal).(*routingv1.Signal)
		w.heading(3, code(s.Name))
		w.comment(m)
		w.text("The message is %s. It is sent to the members of the room `%s`. The data has at most %s bytes as JSON. One connection, "+
			"and one user, may send %d signals of this name per second, and %d at once.", code(string(m.FullName())), inWords(o.Room),
			count(s.Bytes), s.Rate, 5*s.Rate)
		w.fieldTable(m, sent)
	}
}

// types describes the messages and enums that fields refer to. The fields of a described message may refer to further
// messages, which are then described too.
func (w *writer) types() {
	w.heading(2, "Types")
	described := map[mentioned]bool{}
	for {
		slices.SortFunc(w.messages, func(a, b mentioned) int {
			return cmp.Or(strings.Compare(typeName(a.desc), typeName(b.desc)), cmp.Compare(a.dir, b.dir))
		})
		next := slices.IndexFunc(w.messages, func(m mentioned) bool { return !described[m] && !isFrame(m.desc) })
		if next < 0 {
			break
		}
		m := w.messages[next]
		described[m] = true
		w.heading(3, typeName(m.desc))
		w.comment(m.desc)
		w.fieldTable(m.desc, m.dir)
	}
	slices.SortFunc(w.enums, func(a, b protoreflect.EnumDescriptor) int { return strings.Compare(typeName(a), typeName(b)) })
	for _, e := range w.enums {
		w.heading(3, typeName(e))
		w.comment(e)
		var rows [][]string
		names, values := words(e)
		for i, v := range values {
			rows = append(rows, []string{code(names[i]), fmt.Sprint(v.Number()), w.comments[v.FullName()]})
		}
		w.table([]string{"word", "number in Protobuf", "meaning"}, rows)
	}
}

func isFrame(m protoreflect.MessageDescriptor) bool {
	return slices.ContainsFunc(serverFrames(), func(f protoreflect.FieldDescriptor) bool { return f.Message() == m })
}

var classes = map[routingv1.Class]string{
	routingv1.Class_CLASS_DURABLE:   "every event, in order; the connection of a client that does not keep up is closed",
	routingv1.Class_CLASS_COUNTER:   "the newest event with its version; a slow client may miss older events",
	routingv1.Class_CLASS_EPHEMERAL: "the newest event; a slow client misses these events first, and versions ascend with gaps",
}

func (w *writer) streams() {
	w.heading(2, "Streams")
	w.text("The versions of a dense stream have no gaps: a missing version means a missed event. For all other streams, a " +
		"client keeps the event with the highest version.")
	seen := map[string]bool{}
	var rows [][]string
	for _, e := range w.declarations.events() {
		if seen[e.Kind()] {
			continue
		}
		seen[e.Kind()] = true
		dense := "no"
		if w.denseStream(e.Kind()) {
			dense = "yes"
		}
		var sentTo []string
		for _, of := range w.catalog.EventsOf(e.Kind()) {
			for _, room := range of.Rooms() {
				if !slices.Contains(sentTo, room) {
					sentTo = append(sentTo, room)
				}
			}
		}
		rows = append(rows, []string{code(inWords(e.Stream())), dense, strings.ToLower(strings.TrimPrefix(e.Class.String(), "CLASS_")),
			classes[e.Class], rooms(sentTo)})
	}
	slices.SortFunc(rows, slices.Compare)
	w.table([]string{"stream", "dense", "class", "what a client receives", "rooms"}, rows)
}

func (w *writer) rooms() {
	w.heading(2, "Rooms")
	w.text("A user is in these rooms without subscribing:")
	open := map[string]bool{"user:<user>": true}
	for _, e := range w.declarations.events() {
		for _, m := range optionsOf(e).Opens {
			open[inWords(m.Room)] = true
		}
	}
	var member, subscribed []string
	for room := range open {
		member = append(member, code(room))
	}
	slices.Sort(member)
	w.list(member...)
	w.text("A client can subscribe to rooms of these kinds:")
	for _, kind := range w.catalog.SubscribableKinds() {
		subscribed = append(subscribed, code(kind+":<id>"))
	}
	w.list(subscribed...)
}

func (w *writer) ids() {
	w.heading(2, "Ids")
	w.text("An id is %s. In the name of a room or a stream, a colon in an id is written `%%3A`.",
		strings.Replace(catalog.IDForm, " of ", " of `", 1)+"`")
}

func (w *writer) errors() {
	w.heading(2, "Errors")
	w.text("The meaning of a code never changes; messages may change. The HTTP status is that of requests under `/api`.")
	var rows [][]string
	for _, c := range refusal.Codes() {
		if c.Status >= 400 {
			rows = append(rows, []string{code(c.Name), fmt.Sprint(c.Status), c.Meaning})
		}
	}
	w.table([]string{"code", "HTTP", "meaning"}, rows)
	w.text("These codes belong to one domain. For a code that it does not know, a client shows the message to its user.")
	rows = nil
	for _, r := range w.catalog.Refusals() {
		rows = append(rows, []string{code(r.Code), fmt.Sprint(refusal.DomainStatus), r.Owner, r.Meaning})
	}
	w.table([]string{"code", "HTTP", "domain", "meaning"}, rows)
}

func (w *writer) closeCodes() {
	w.heading(2, "Close codes")
	w.comment(gatewayv1.CloseCode(0).Descriptor())
	w.text("The name is the code of the error in the frame `closing`.")
	var rows [][]string
	names, values := words(gatewayv1.CloseCode(0).Descriptor())
	for i, v := range values {
		c := proto.GetExtension(v.Options(), gatewayv1.E_Close).(*gatewayv1.Close)
		reconnect := "no"
		if c.Reconnect {
			reconnect = "yes"
		}
		rows = append(rows, []string{fmt.Sprint(v.Number()), code(names[i]), reconnect, c.Message})
	}
	w.table([]string{"code", "name", "reconnect", "reason"}, rows)
}

// control is a frame that clients send and that is not a command, a query or a signal.
type control struct {
	name   string
	data   proto.Message // nil if the frame has no data
	answer proto.Message // the data of the reply, or nil if the reply has none
}

var controls = []control{
	{"connect", &gatewayv1.Connect{}, &gatewayv1.Connected{}},
	{"authenticate", &gatewayv1.Authenticate{}, &gatewayv1.Authenticated{}},
	{"subscribe", &gatewayv1.Subscribe{}, &gatewayv1.Subscribed{}},
	{"unsubscribe", &gatewayv1.Unsubscribe{}, nil},
	{"ping", nil, nil},
}

// serverFrames returns the fields of ServerFrame: the types of frames that gateways send.
func serverFrames() (all []protoreflect.FieldDescriptor) {
	fields := (&gatewayv1.ServerFrame{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		all = append(all, fields.Get(i))
	}
	return all
}

// index returns the page at /docs.
func (d *declarations) index() *page {
	p := &page{title: "EDU Matrix Interlinked: the client protocol, version 1"}
	p.list("[Reference](/docs/reference): every frame, command, query, event, signal, error and close code, with every field",
		"[AsyncAPI 3.0](/docs/asyncapi.json): the WebSocket at `/ws`",
		"[OpenAPI 3.1](/docs/openapi.json): commands, queries and health over HTTP")
	return p
}
