package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// codec encodes and decodes frames in one encoding.
type codec interface {
	subprotocol() string
	messageKind() int
	encode(frame map[string]any) ([]byte, error)
	// decode passes the frames of one message to the function take, in order. The function kindOf returns the type of
	// the request that a reply answers.
	decode(message []byte, kindOf func(replyTo string) string, take func(*received) error) error
}

func newCodec(protobuf bool) (codec, error) {
	if !protobuf {
		return jsonCodec{}, nil
	}
	c, err := loadCatalog()
	return protobufCodec{c}, err
}

var loadCatalog = sync.OnceValues(catalog.Load)

type jsonCodec struct{}

func (jsonCodec) subprotocol() string { return "edumatrix.v1.json" }

func (jsonCodec) messageKind() int { return websocket.TextMessage }

func (jsonCodec) encode(frame map[string]any) ([]byte, error) { return json.Marshal(frame) }

func (jsonCodec) decode(message []byte, _ func(string) string, take func(*received) error) error {
	if bytes.IndexByte(message, '\n') < 0 {
		var f received
		if err := json.Unmarshal(message, &f); err != nil {
			return err
		}
		return take(&f)
	}
	for text := range wirejson.Values(message) {
		var f received
		if err := json.Unmarshal(text, &f); err != nil {
			return err
		}
		if err := take(&f); err != nil {
			return err
		}
	}
	return nil
}

// protobufCodec converts the data of frames between Protobuf, for the connection, and JSON, for callers.
type protobufCodec struct{ catalog *catalog.Catalog }

func (protobufCodec) subprotocol() string { return "edumatrix.v1.proto" }

func (protobufCodec) messageKind() int { return websocket.BinaryMessage }

// control contains, by the type of a control frame, empty messages for the data of the frame and of its reply.
var control = map[string]struct{ request, reply proto.Message }{
	"connect":      {&gatewayv1.Connect{}, &gatewayv1.Connected{}},
	"authenticate": {&gatewayv1.Authenticate{}, &gatewayv1.Authenticated{}},
	"subscribe":    {&gatewayv1.Subscribe{}, &gatewayv1.Subscribed{}},
	"unsubscribe":  {&gatewayv1.Unsubscribe{}, nil},
}

// request returns an empty message for the data of a request of a type; nil if the type has no data or is unknown.
func (p protobufCodec) request(kind string) proto.Message {
	if own, ok := control[kind]; ok {
		return own.request.ProtoReflect().New().Interface()
	}
	if c, ok := p.catalog.Command(kind); ok {
		return c.Type.New().Interface()
	}
	if q, ok := p.catalog.Query(kind); ok {
		return q.Request.New().Interface()
	}
	if s, ok := p.catalog.Signal(kind); ok {
		return s.Type.New().Interface()
	}
	return nil
}

// reply returns an empty message into which to decode the data of a reply. The parameter kind is the type of the
// request. The result is nil if the reply has no data or the type is unknown.
func (p protobufCodec) reply(kind string) proto.Message {
	if own, ok := control[kind]; ok && own.reply != nil {
		return own.reply.ProtoReflect().New().Interface()
	}
	if q, ok := p.catalog.Query(kind); ok {
		return q.Response.New().Interface()
	}
	return nil
}

func (p protobufCodec) encode(frame map[string]any) ([]byte, error) {
	f := &gatewayv1.ClientFrame{}
	for name, into := range map[string]*string{"id": &f.Id, "type": &f.Type, "command_id": &f.CommandId} {
		if text, ok := frame[name].(string); ok {
			*into = text
		}
	}
	if m := p.request(f.Type); m != nil && frame["data"] != nil {
		text, err := json.Marshal(frame["data"])
		if err != nil {
			return nil, err
		}
		if err := wirejson.Unmarshal(text, m); err != nil {
			return nil, err
		}
		if f.Data, err = proto.Marshal(m); err != nil {
			return nil, err
		}
	}
	encoded, err := proto.Marshal(f)
	if err != nil {
		return nil, err
	}
	return protowire.AppendBytes(nil, encoded), nil
}

func (p protobufCodec) decode(message []byte, kindOf func(string) string, take func(*received) error) error {
	for len(message) > 0 {
		one, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return errors.New("a message does not consist of whole frames")
		}
		message = message[n:]
		var f gatewayv1.ServerFrame
		if err := proto.Unmarshal(one, &f); err != nil {
			return err
		}
		r, err := p.received(&f, kindOf)
		if err != nil {
			return err
		}
		if err := take(r); err != nil {
			return err
		}
	}
	return nil
}

// received returns a frame with its data in JSON. The data is left out if its type is unknown.
func (p protobufCodec) received(f *gatewayv1.ServerFrame, kindOf func(string) string) (*received, error) {
	r := &received{}
	m := f.ProtoReflect()
	kind := m.WhichOneof(m.Descriptor().Oneofs().ByName("frame"))
	if kind == nil {
		return r, nil // a frame type of a later version
	}
	var data []byte
	var typed proto.Message
	switch of := f.Frame.(type) {
	case *gatewayv1.ServerFrame_Reply:
		data, typed, of.Reply.Data = of.Reply.Data, p.reply(kindOf(of.Reply.ReplyTo)), nil
	case *gatewayv1.ServerFrame_Event:
		if e, ok := p.catalog.Event(of.Event.Event); ok {
			typed = e.Type.New().Interface()
		}
		data, of.Event.Data = of.Event.Data, nil
	case *gatewayv1.ServerFrame_Signal:
		if s, ok := p.catalog.Signal(of.Signal.Signal); ok {
			typed = s.Type.New().Interface()
		}
		data, of.Signal.Data = of.Signal.Data, nil
	}
	text, err := wirejson.Marshal(m.Get(kind).Message().Interface())
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	r.Type = string(kind.Name())
	if typed == nil || data == nil {
		return r, nil
	}
	if err := proto.Unmarshal(data, typed); err != nil {
		return nil, fmt.Errorf("data of %s: %w", r.Type, err)
	}
	r.Data, err = wirejson.Marshal(typed)
	return r, err
}
