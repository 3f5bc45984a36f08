// Package golden has an encoded sample of every event of every release. Tests decode the samples and apply them, because
// a log keeps its events for ever, and every later release has to read them.
//
// Each sample is a file samples/<release>/<event>.json. A sample is never changed or deleted. When an event is added, or
// an event gets a field, `go test ./proto/golden -update` adds a sample.
package golden

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
)

//go:embed samples
var files embed.FS

// Sample is an event as a release has stored it.
type Sample struct {
	Path  string          `json:"-"`     // of the file, such as "samples/1/chat.message_sent.json"
	Event string          `json:"event"` // the type, such as "chat.message_sent"
	Body  []byte          `json:"body"`  // the encoded event
	Data  json.RawMessage `json:"data"`  // the fields of the event, in the JSON of package protojson
}

// Samples returns all samples, those of the first release first.
func Samples() (all []Sample, err error) {
	err = fs.WalkDir(files, "samples", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(name) != ".json" {
			return err
		}
		raw, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		s := Sample{Path: name}
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, s)
		return nil
	})
	return all, err
}

// Decode decodes the body of a sample. It returns an error if the fields differ from the data of the sample.
func (s Sample) Decode(c *catalog.Catalog) (proto.Message, error) {
	m, err := c.Decode(s.Event, s.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Path, err)
	}
	want := m.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal(s.Data, want); err != nil {
		return nil, fmt.Errorf("%s: data: %w", s.Path, err)
	}
	if !proto.Equal(m, want) {
		return nil, fmt.Errorf("%s: the body is decoded as %v, but contains %v", s.Path, m, want)
	}
	return m, nil
}

// History returns the decoded samples of one kind of stream ("conversation") of one release, in the order in which the
// events are declared. All of them belong to one stream, because the value of each id follows from the name of its
// field: conversation_id is "conversation", message_id is "message", and so on.
func History(c *catalog.Catalog, release, kind string) (events []proto.Message, err error) {
	all, err := Samples()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		e, ok := c.Event(s.Event)
		if !ok || e.Kind() != kind || path.Dir(s.Path) != "samples/"+release {
			continue
		}
		m, err := s.Decode(c)
		if err != nil {
			return nil, err
		}
		events = append(events, m)
	}
	slices.SortStableFunc(events, func(a, b proto.Message) int {
		x, y := a.ProtoReflect().Descriptor(), b.ProtoReflect().Descriptor()
		if order := strings.Compare(x.ParentFile().Path(), y.ParentFile().Path()); order != 0 {
			return order
		}
		return x.Index() - y.Index()
	})
	return events, nil
}
