package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
)

const root = "../../.."

func generated(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := generate(filepath.Join(root, "proto"))
	require.NoError(t, err)
	contents := map[string][]byte{}
	for _, f := range files {
		contents[f.path] = f.content
	}
	return contents
}

func TestGenerated_FilesAreUpToDate(t *testing.T) {
	t.Parallel()
	for path, want := range generated(t) {
		got, err := os.ReadFile(filepath.Join(root, path))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%s is not up to date: make generate", path)
	}
}

// Every declaration that developers of clients use must have a comment, because the generated reference is made of
// these comments. The last check compares one comment with the expected text, to show that the generator assigns
// comments to the right declarations.
func TestReference_EverythingHasAComment(t *testing.T) {
	t.Parallel()
	d := load(t)
	has := func(m protoreflect.Descriptor) {
		require.NotEmpty(t, d.comments[m.FullName()], "%s has no comment", m.FullName())
	}
	for _, c := range d.commands() {
		has(c.Type.Descriptor())
	}
	for _, e := range d.events() {
		has(e.Type.Descriptor())
	}
	for _, q := range d.queries() {
		has(d.method(q))
	}
	for _, s := range d.signals() {
		has(s.Type.Descriptor())
	}
	for _, f := range serverFrames() {
		has(f.Message())
	}
	require.Equal(t, "An id that the client chooses, of at most 64 characters. The reply repeats it in reply_to.",
		d.comments[(&gatewayv1.ClientFrame{}).ProtoReflect().Descriptor().Fields().ByName("id").FullName()])
}

// The reference must contain every name that clients use, every field and every code. Each link in it must lead to one
// of its headings.
func TestReference_LeavesNothingOut(t *testing.T) {
	t.Parallel()
	d := load(t)
	text := string(d.reference().markdown())
	lines := strings.Split(text, "\n")
	contains := func(prefix string) {
		for _, l := range lines {
			if strings.HasPrefix(l, prefix) {
				return
			}
		}
		t.Errorf("no line begins with %q", prefix)
	}
	message := func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			contains("| `" + string(m.Fields().Get(i).Name()) + "` | ")
		}
	}
	for _, name := range []string{"chat.send_message", "chat.history", "chat.message_sent", "chat.typing", "presence.came_online",
		"connect", "subscribe", "heartbeat", "error"} {
		found := false
		for _, l := range lines {
			found = found || strings.HasPrefix(l, "#") && strings.HasSuffix(l, " `"+name+"`")
		}
		require.True(t, found, name)
	}
	for _, c := range d.commands() {
		contains("### `" + c.Name + "`")
		message(c.Type.Descriptor())
	}
	for _, q := range d.queries() {
		contains("### `" + q.Name + "`")
		message(q.Request.Descriptor())
		message(q.Response.Descriptor())
	}
	for _, e := range d.events() {
		contains("### `" + e.Name + "`")
		message(e.Type.Descriptor())
	}
	contains("| `conversation:<conversation_id>` | yes | durable |")
	contains("| `presence:<user_id>` | no | ephemeral |")
	contains("| `conversation_full` | 422 | chat |")
	contains("| `too_many_waiting` | 429 |")
	contains("| 4501 | `session_ended` | no |")
	contains("| 4001 | `too_slow` | yes |")
	anchors := map[string]bool{}
	for _, l := range lines {
		if strings.HasPrefix(l, "#") {
			anchors["#"+anchor(strings.TrimLeft(l, "# "))] = true
		}
	}
	for _, link := range linkMark.FindAllStringSubmatch(text, -1) {
		if strings.HasPrefix(link[2], "#") {
			require.True(t, anchors[link[2]], link[0])
		}
	}
}

func load(t *testing.T) *declarations {
	t.Helper()
	d, err := read(filepath.Join(root, "proto"))
	require.NoError(t, err)
	return d
}

func TestOpenAPI_IsValid(t *testing.T) {
	t.Parallel()
	document := generated(t)["proto/reference/openapi.json"]
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(document)
	require.NoError(t, err)
	require.NoError(t, doc.Validate(loader.Context, openapi3.EnableExamplesValidation()))
	require.True(t, doc.IsOpenAPI31OrLater())
	require.NotNil(t, doc.Paths.Value("/api/chat.send_message").Post)
	require.NotNil(t, doc.Paths.Value("/api/edumatrix.chat.v1.ChatService/History").Post)
	require.NotNil(t, doc.Paths.Value("/health").Get)
}

// The AsyncAPI document must match the schema that the AsyncAPI initiative publishes, and every $ref in the document
// must lead to something that the document contains.
func TestAsyncAPI_IsValid(t *testing.T) {
	t.Parallel()
	document := decode(t, generated(t)["proto/reference/asyncapi.json"])
	published, err := os.ReadFile("testdata/asyncapi-3.0.0.json")
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("asyncapi.json", decode(t, published)))
	schema, err := compiler.Compile("asyncapi.json")
	require.NoError(t, err)
	require.NoError(t, schema.Validate(document))
	leads(t, document, document)
	require.Error(t, schema.Validate(map[string]any{"asyncapi": "3.0.0"}), "the schema must refuse an invalid document")
}

func decode(t *testing.T, text []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	return v
}

// leads checks that every $ref in a JSON value leads to something that the whole document contains.
func leads(t *testing.T, document, value any) {
	t.Helper()
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			leads(t, document, one)
		}
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			at := document
			for _, key := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
				at = at.(map[string]any)[key]
				require.NotNil(t, at, ref)
			}
		}
		for _, one := range v {
			leads(t, document, one)
		}
	}
}

// A message that is in both the AsyncAPI and the OpenAPI document must have the same schema in both.
func TestSchemas_AreTheSameInBothDocuments(t *testing.T) {
	t.Parallel()
	schemasOf := func(path string) map[string]json.RawMessage {
		var document struct {
			Components struct{ Schemas map[string]json.RawMessage }
		}
		require.NoError(t, json.Unmarshal(generated(t)[path], &document))
		return document.Components.Schemas
	}
	async, open := schemasOf("proto/reference/asyncapi.json"), schemasOf("proto/reference/openapi.json")
	shared := 0
	for name, schema := range open {
		if other, both := async[name]; both {
			shared++
			require.JSONEq(t, string(other), string(schema), name)
		}
	}
	require.Greater(t, shared, 10)
}
