// Package catalog makes the declarations in proto/ available at run time: every command, event, query and signal by its
// name, and every topic with its owner. Gateways and services route messages by these declarations.
package catalog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	// Load reads only the declarations in packages that are linked into the program. So these imports link the packages
	// of all services, and the package mesh, which declares the calls between services.
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"
	_ "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// Command is a declared command.
type Command struct {
	Name         string
	Owner        string        // the service that decides the command
	Topic        string        // <owner>-commands
	Public       bool          // whether clients may send the command
	ExpiresAfter time.Duration // the time from the receipt of the command until it expires; 0 if it does not expire
	// CountMembersUpTo is the number up to which the members of the room of MemberOf are counted for Origin.Room; 0 if
	// the decision does not need this Room.
	CountMembersUpTo int
	Type             protoreflect.MessageType

	stream, subject, memberOf template
	requires                  *partDeclaration // nil: none
}

// Event is a declared event.
type Event struct {
	Name    string
	Owner   string
	Topic   string
	Class   routingv1.Class
	Redacts bool
	Type    protoreflect.MessageType

	kind            string
	stream, subject template
	rooms           []template
	opens, closes   []membership
	personal        []protoreflect.FieldDescriptor
	expires         protoreflect.FieldDescriptor // nil if the event does not expire
	timers          []timer
	cancels         []template
}

// Query is a declared query: a unary method of its owner.
type Query struct {
	Name      string
	Owner     string
	Public    bool
	Procedure string // "/edumatrix.chat.v1.ChatService/History"
	Request   protoreflect.MessageType
	Response  protoreflect.MessageType
}

// Signal is a declared signal: a message between the connections in a room, which is never stored.
type Signal struct {
	Name  string
	Owner string // the service whose log contains the members of the room
	Bytes int    // the maximum size of the data as JSON, in bytes
	Rate  int    // the maximum number of signals per second, for one connection and for one user
	Type  protoreflect.MessageType

	room template
}

// Refusal is a code with which the commands of one domain are refused.
type Refusal struct {
	Code    string
	Owner   string
	Meaning string // the reason for the refusal, for developers of clients
}

// Topic is a Kafka topic. Gateways produce to the topics of commands. To every other topic, only the topic's owner
// produces.
type Topic struct {
	Name       string
	Owner      string
	Partitions int32
	Retention  time.Duration
}

// Catalog holds all declarations. It is immutable and safe for concurrent use.
type Catalog struct {
	commands     map[string]*Command
	events       map[string]*Event
	byType       map[protoreflect.FullName]any
	queries      map[string]*Query
	signals      map[string]*Signal
	topics       map[string]Topic
	subscribable map[string]string
	keeper       string
	refusals     []Refusal
	kinds        map[string]*streamKind
}

// Load reads the declarations of all linked proto packages. If some are invalid or contradict others, it returns an
// error that names all of them.
func Load() (*Catalog, error) {
	c := &Catalog{
		commands: map[string]*Command{}, events: map[string]*Event{}, byType: map[protoreflect.FullName]any{},
		queries: map[string]*Query{}, signals: map[string]*Signal{}, topics: map[string]Topic{}, subscribable: map[string]string{},
		kinds: map[string]*streamKind{},
	}
	var problems []error
	files := map[protoreflect.FileDescriptor]string{} // file → owner
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if owner, ok := ownerOf(f.Package()); ok {
			files[f] = owner
			problems = append(problems, c.readOptions(owner, f)...)
		}
		return true
	})
	for f, owner := range files {
		problems = append(problems, c.readFile(owner, f)...)
	}
	problems = append(problems, c.checkAll())
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	return c, nil
}

// checkAll checks the declarations that were read. It returns an error that names each declaration that is invalid or
// contradicts another declaration.
func (c *Catalog) checkAll() error {
	var problems []error
	for _, name := range c.EventNames() {
		problems = append(problems, c.check(c.events[name])...)
	}
	problems = append(problems, c.checkCommands()...)
	problems = append(problems, c.checkStreamKinds()...)
	problems = append(problems, c.checkTopics()...)
	problems = append(problems, c.checkRefusals()...)
	problems = append(problems, c.checkSubjects()...)
	problems = append(problems, c.checkParts()...)
	for _, m := range c.requests() {
		problems = append(problems, checkShapes(m.Descriptor())...)
	}
	return errors.Join(problems...)
}

// requests returns the types of all commands, queries and signals.
func (c *Catalog) requests() (all []protoreflect.MessageType) {
	for _, v := range c.commands {
		all = append(all, v.Type)
	}
	for _, v := range c.queries {
		all = append(all, v.Request)
	}
	for _, v := range c.signals {
		all = append(all, v.Type)
	}
	return all
}

// notServices are the packages of proto/ that no service owns: the options (routing), the calls between services (mesh)
// and the frames of clients (gateway).
var notServices = []string{"routing", "mesh", "gateway"}

// ownerOf returns "chat" for edumatrix.chat.v1, and false for a package that no service owns.
func ownerOf(pkg protoreflect.FullName) (string, bool) {
	parts := strings.Split(string(pkg), ".")
	if len(parts) != 3 || parts[0] != "edumatrix" || slices.Contains(notServices, parts[1]) {
		return "", false
	}
	return parts[1], true
}

// readOptions reads the options of a file, and adds the topics that every owner has. It must run for all files before
// readFile, because messages refer to the options of other files.
func (c *Catalog) readOptions(owner string, f protoreflect.FileDescriptor) (problems []error) {
	options := f.Options().(*descriptorpb.FileOptions)
	for _, t := range proto.GetExtension(options, routingv1.E_Topics).([]*routingv1.Topic) {
		if _, twice := c.topics[t.Name]; twice {
			problems = append(problems, fmt.Errorf("topic %s is declared twice", t.Name))
		}
		c.topics[t.Name] = Topic{t.Name, owner, t.Partitions, time.Duration(t.RetentionSeconds) * time.Second}
	}
	for _, k := range proto.GetExtension(options, routingv1.E_Subscribable).([]*routingv1.RoomKind) {
		if other, twice := c.subscribable[k.Kind]; twice {
			problems = append(problems, fmt.Errorf("the kind of room %s is subscribable in %s and in %s", k.Kind, other, owner))
		}
		c.subscribable[k.Kind] = owner
	}
	for _, r := range proto.GetExtension(options, routingv1.E_Refusals).([]*routingv1.Refusal) {
		c.refusals = append(c.refusals, Refusal{r.Code, owner, r.Meaning})
	}
	for _, k := range proto.GetExtension(options, routingv1.E_Streams).([]*routingv1.StreamKind) {
		if err := c.addStreamKind(owner, k); err != nil {
			problems = append(problems, err)
		}
	}
	if proto.GetExtension(options, routingv1.E_Connections).(bool) {
		if c.keeper != "" {
			problems = append(problems, fmt.Errorf("the connections of users are declared by %s and by %s", c.keeper, owner))
		}
		c.keeper = owner
	}
	for name, t := range map[string]Topic{
		CommandTopic(owner):    {Partitions: 12, Retention: 7 * 24 * time.Hour},
		ResultTopic(owner):     {Partitions: 3, Retention: time.Hour},
		DeadLetterTopic(owner): {Partitions: 1, Retention: 14 * 24 * time.Hour},
	} {
		t.Name, t.Owner = name, owner
		c.topics[name] = t
	}
	return problems
}

// readFile reads the messages and methods of a file.
func (c *Catalog) readFile(owner string, f protoreflect.FileDescriptor) (problems []error) {
	for i := range f.Messages().Len() {
		if err := c.readMessage(owner, f.Messages().Get(i)); err != nil {
			problems = append(problems, err)
		}
	}
	for i := range f.Services().Len() {
		methods := f.Services().Get(i).Methods()
		for j := range methods.Len() {
			if err := c.readMethod(owner, methods.Get(j)); err != nil {
				problems = append(problems, err)
			}
		}
	}
	return problems
}

func (c *Catalog) readMessage(owner string, d protoreflect.MessageDescriptor) error {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return fmt.Errorf("%s: %w", d.FullName(), err)
	}
	if o := proto.GetExtension(d.Options(), routingv1.E_Command).(*routingv1.Command); o != nil {
		if c.taken(o.Name) {
			return fmt.Errorf("%s: the name %s is used already", d.FullName(), o.Name)
		}
		stream, err := parseTemplate(d, o.Stream)
		if err != nil {
			return fmt.Errorf("%s: stream: %w", d.FullName(), err)
		}
		subject, err := parseTemplate(d, o.Subject)
		if err != nil {
			return fmt.Errorf("%s: subject: %w", d.FullName(), err)
		}
		memberOf, err := parseTemplate(d, o.MemberOf)
		if err != nil {
			return fmt.Errorf("%s: member_of: %w", d.FullName(), err)
		}
		requires, err := newPartDeclaration(d, o.Requires)
		if err != nil {
			return fmt.Errorf("%s: requires: %w", d.FullName(), err)
		}
		cmd := &Command{Name: o.Name, Owner: owner, Topic: CommandTopic(owner), Public: o.Public,
			ExpiresAfter: time.Duration(o.ExpiresAfterSeconds) * time.Second, CountMembersUpTo: int(o.CountMembersUpTo),
			Type: mt, stream: stream, subject: subject,
			memberOf: memberOf, requires: requires}
		for _, t := range cmd.addresses() {
			for _, h := range t.placeholders {
				if h.field != nil && h.field.IsList() {
					return fmt.Errorf("%s: %q must be one address, so its placeholders must not name a repeated field", d.FullName(), t.source)
				}
			}
		}
		c.commands[o.Name], c.byType[d.FullName()] = cmd, cmd
	}
	if o := proto.GetExtension(d.Options(), routingv1.E_Event).(*routingv1.Event); o != nil {
		if c.taken(o.Name) {
			return fmt.Errorf("%s: the name %s is used already", d.FullName(), o.Name)
		}
		e, err := c.newEvent(owner, d, o)
		if err != nil {
			return fmt.Errorf("%s: %w", d.FullName(), err)
		}
		e.Type = mt
		c.events[o.Name], c.byType[d.FullName()] = e, e
	}
	if o := proto.GetExtension(d.Options(), routingv1.E_Signal).(*routingv1.Signal); o != nil {
		return c.readSignal(owner, mt, o)
	}
	return nil
}

func (c *Catalog) readMethod(owner string, m protoreflect.MethodDescriptor) error {
	o := proto.GetExtension(m.Options(), routingv1.E_Query).(*routingv1.Query)
	if o == nil {
		return nil
	}
	if c.taken(o.Name) {
		return fmt.Errorf("%s: the name %s is used already", m.FullName(), o.Name)
	}
	in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		return fmt.Errorf("%s: %w", m.FullName(), err)
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return fmt.Errorf("%s: %w", m.FullName(), err)
	}
	c.queries[o.Name] = &Query{Name: o.Name, Owner: owner, Public: o.Public,
		Procedure: "/" + string(m.Parent().FullName()) + "/" + string(m.Name()), Request: in, Response: out}
	return nil
}

// Command returns a command by its name on the wire.
func (c *Catalog) Command(name string) (*Command, bool) { v, ok := c.commands[name]; return v, ok }

// Signal returns a signal by its name on the wire.
func (c *Catalog) Signal(name string) (*Signal, bool) { v, ok := c.signals[name]; return v, ok }

// Event returns an event by its name on the wire.
func (c *Catalog) Event(name string) (*Event, bool) { v, ok := c.events[name]; return v, ok }

// Query returns a query by its name on the wire.
func (c *Catalog) Query(name string) (*Query, bool) { v, ok := c.queries[name]; return v, ok }

// EventOf returns the declaration of an event message.
func (c *Catalog) EventOf(m proto.Message) (*Event, bool) {
	v, ok := c.byType[m.ProtoReflect().Descriptor().FullName()].(*Event)
	return v, ok
}

// CommandOf returns the declaration of a command message.
func (c *Catalog) CommandOf(m proto.Message) (*Command, bool) {
	v, ok := c.byType[m.ProtoReflect().Descriptor().FullName()].(*Command)
	return v, ok
}

// Subscribable returns the service that authorizes subscriptions to rooms of a kind, such as "presence".
func (c *Catalog) Subscribable(kind string) (owner string, ok bool) {
	owner, ok = c.subscribable[kind]
	return
}

// SubscribableKinds returns the kinds of rooms to which clients may subscribe without being members, sorted.
func (c *Catalog) SubscribableKinds() []string { return slices.Sorted(maps.Keys(c.subscribable)) }

// Connections returns the service that stores the connections of users.
func (c *Catalog) Connections() string { return c.keeper }

// Refusals returns the codes of all domains, sorted by code. The codes that belong to no domain are in package
// refusal.
func (c *Catalog) Refusals() []Refusal {
	return slices.SortedFunc(slices.Values(c.refusals), func(a, b Refusal) int { return strings.Compare(a.Code, b.Code) })
}

// LoggedTopics returns the topics to which an owner's log is published, or the topics of all logs if the parameter
// owner is empty, sorted by name. These are the topics with at least one event that is not ephemeral. Their records
// have positions.
func (c *Catalog) LoggedTopics(owner string) []Topic {
	return slices.DeleteFunc(c.Topics(owner), func(t Topic) bool { return !c.carries(t.Name, true) })
}

// StateTopics returns the topics with state, which is not in a log, sorted by name. The newest record of a stream
// replaces the older ones.
func (c *Catalog) StateTopics() []Topic {
	return slices.DeleteFunc(c.Topics(""), func(t Topic) bool { return !c.carries(t.Name, false) })
}

// CommandsOf returns the commands that a service decides, sorted by name.
func (c *Catalog) CommandsOf(owner string) (all []*Command) {
	for _, name := range c.CommandNames() {
		if c.commands[name].Owner == owner {
			all = append(all, c.commands[name])
		}
	}
	return all
}

func (c *Catalog) carries(topic string, logged bool) bool {
	for _, e := range c.events {
		if e.Topic == topic && (e.Class != routingv1.Class_CLASS_EPHEMERAL) == logged {
			return true
		}
	}
	return false
}

// Logs returns the services that own a log, sorted by name.
func (c *Catalog) Logs() []string {
	return slices.DeleteFunc(c.Owners(), func(owner string) bool { return len(c.LoggedTopics(owner)) == 0 })
}

// Topic returns a topic by its name.
func (c *Catalog) Topic(name string) (Topic, bool) { t, ok := c.topics[name]; return t, ok }

// Topics returns the topics of one owner, or of all owners if the parameter owner is empty, sorted by name.
func (c *Catalog) Topics(owner string) []Topic {
	var list []Topic
	for _, t := range c.topics {
		if owner == "" || t.Owner == owner {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b Topic) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// CommandTopic returns the topic of an owner's commands.
func CommandTopic(owner string) string { return owner + "-commands" }

// ResultTopic returns the topic of the outcomes of an owner's commands. If the owner has a log and commits a command,
// the outcome is not published on this topic, because the command's last event carries the outcome. If the client sends
// the command again, the outcome of the first commit is published on this topic.
func ResultTopic(owner string) string { return owner + "-results" }

// DeadLetterTopic returns the topic of the messages that an owner could not process.
func DeadLetterTopic(owner string) string { return owner + ".dead-letter" }

// Owners returns the services that own a topic, sorted by name.
func (c *Catalog) Owners() []string {
	var owners []string
	for _, t := range c.topics {
		if !slices.Contains(owners, t.Owner) {
			owners = append(owners, t.Owner)
		}
	}
	slices.Sort(owners)
	return owners
}
