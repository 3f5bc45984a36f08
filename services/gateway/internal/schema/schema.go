// Package schema checks frames in tests against the AsyncAPI document that gateways serve, so that tests fail if the
// document is wrong.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/edumatrix/interlinked/proto/reference"
)

// document is the AsyncAPI document with the schemas of its messages.
type document struct {
	names []string // names of the messages

	mu       sync.Mutex
	compiler *jsonschema.Compiler
	compiled map[string]*jsonschema.Schema
}

const resource = "asyncapi.json"

var load = sync.OnceValues(func() (*document, error) {
	text, err := reference.Files.ReadFile(resource)
	if err != nil {
		return nil, err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var d struct {
		Components struct{ Messages map[string]any }
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, err
	}
	closeObjects(value)
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	c.AssertFormat()
	if err := c.AddResource(resource, value); err != nil {
		return nil, err
	}
	return &document{names: slices.Sorted(maps.Keys(d.Components.Messages)), compiler: c,
		compiled: map[string]*jsonschema.Schema{}}, nil
})

// closeObjects forbids properties that a schema does not declare. The document itself allows them, since clients
// ignore unknown properties, but a test must find a property that the document lacks.
func closeObjects(value any) {
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			closeObjects(one)
		}
	case map[string]any:
		_, properties := v["properties"].(map[string]any)
		if _, declared := v["additionalProperties"]; properties && v["type"] == "object" && !declared {
			v["additionalProperties"] = false
		}
		for _, one := range v {
			closeObjects(one)
		}
	}
}

// Messages returns the names of the messages in the document, sorted.
func Messages() ([]string, error) {
	d, err := load()
	if err != nil {
		return nil, err
	}
	return d.names, nil
}

// Check checks a frame in JSON against the schema of the named message, such as "chat.send_message",
// "event.chat.message_sent" or "reply.error".
func Check(name string, frame []byte) error {
	d, err := load()
	if err != nil {
		return err
	}
	schema, err := d.schema(name)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(frame))
	if err != nil {
		return err
	}
	if err := schema.Validate(value); err != nil {
		return fmt.Errorf("%s does not match the document: %w", frame, err)
	}
	return nil
}

func (d *document) schema(name string) (*jsonschema.Schema, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.compiled[name]; s != nil {
		return s, nil
	}
	if !slices.Contains(d.names, name) {
		return nil, fmt.Errorf("the document has no message %q", name)
	}
	s, err := d.compiler.Compile(resource + "#/components/messages/" + name + "/payload")
	d.compiled[name] = s
	return s, err
}

// CheckReceived is like Check, but determines the name of the message from a frame that a gateway sent. A reply with
// data, such as the answer to a query, does not contain the name of the request. Therefore such a reply has to match
// the schema of at least one kind of reply.
func CheckReceived(frame []byte) error {
	var f struct {
		Type, Event, Signal  string
		Outcome, Error, Data json.RawMessage
	}
	if err := json.Unmarshal(frame, &f); err != nil {
		return err
	}
	switch {
	case f.Type == "event":
		return Check("event."+f.Event, frame)
	case f.Type == "signal":
		return Check("signal."+f.Signal, frame)
	case f.Type != "reply":
		return Check(f.Type, frame)
	case f.Error != nil:
		return Check("reply.error", frame)
	case f.Outcome != nil:
		return Check("reply.outcome", frame)
	case f.Data == nil:
		return Check("reply.done", frame)
	}
	names, err := Messages()
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range names {
		if strings.HasPrefix(name, "reply.") {
			if err := Check(name, frame); err == nil {
				return nil
			} else if strings.Contains(name[len("reply."):], ".") || name == "reply.connect" {
				problems = append(problems, err)
			}
		}
	}
	return errors.Join(problems...)
}
