package main

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
)

// asyncAPI returns the AsyncAPI document of the WebSocket interface: every frame in either direction, in JSON.
func (d *declarations) asyncAPI() ([]byte, error) {
	s := d.newSchemas()
	a := &asyncDocument{schemas: s, messages: object{}, operations: object{}}
	a.clientFrames()
	a.gatewayFrames()
	if s.err != nil {
		return nil, s.err
	}
	inChannel := object{}
	for name := range a.messages {
		inChannel[name] = object{"$ref": "#/components/messages/" + name}
	}
	return encode(object{
		"asyncapi": "3.0.0",
		"info": object{
			"title":   "EDU Matrix Interlinked, the client protocol",
			"version": "1",
			"description": "The frames between clients and a gateway, in JSON. A WebSocket message holds one or more frames, separated by a " +
				"newline. Clients ignore the fields, frame types and event names that they do not know.",
		},
		"defaultContentType": "application/json",
		"servers": object{"gateway": object{"host": "localhost:3001", "protocol": "ws",
			"description": "A gateway of the installation. The subprotocol is `edumatrix.v1.json`, also when none is offered.",
			"security":    []any{object{"$ref": "#/components/securitySchemes/token"}}}},
		"channels": object{"ws": object{"address": "/ws", "messages": inChannel,
			"description": "One connection. Its first frame is `connect`.",
			"bindings":    object{"ws": object{"method": "GET", "bindingVersion": "0.1.0"}}}},
		"operations": a.operations,
		"components": object{"messages": a.messages, "schemas": s.byName, "securitySchemes": object{"token": tokenScheme()}},
	})
}

func tokenScheme() object {
	return object{"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
		"description": "A JSON Web Token whose sub is the user."}
}

type asyncDocument struct {
	*schemas
	messages   object
	operations object
}

// clientFrames adds every frame that clients send, with its reply.
func (a *asyncDocument) clientFrames() {
	a.reply("error", object{"ok": object{"type": "boolean", "enum": []bool{false}}}, "error")
	a.reply("done", object{"ok": object{"type": "boolean", "enum": []bool{true}}}) // for frames that request no data
	a.reply("outcome", object{}, "outcome")
	for _, c := range controls {
		answer := "reply.done"
		var data object
		if c.data != nil {
			data = a.ref(c.data.ProtoReflect().Descriptor(), sent, "")
		}
		if c.answer != nil {
			answer = a.answer(c.name, c.answer.ProtoReflect().Descriptor())
		}
		a.clientFrame(c.name, data, false, answer)
	}
	for _, c := range a.commands() {
		a.clientFrame(c.Name, a.ref(c.Type.Descriptor(), sent, ""), true, "reply.outcome")
	}
	for _, q := range a.queries() {
		answer := a.answer(q.Name, q.Response.Descriptor())
		a.clientFrame(q.Name, a.ref(q.Request.Descriptor(), sent, ""), false, answer)
	}
	for _, s := range a.signals() {
		a.clientFrame(s.Name, a.ref(s.Type.Descriptor(), sent, ""), false, "reply.done")
	}
}

// clientFrame adds a frame that clients send, and its operation. The document describes operations from the side of the
// gateway, so the action is "receive".
func (a *asyncDocument) clientFrame(name string, data object, command bool, answer string) {
	schema := a.message((&gatewayv1.ClientFrame{}).ProtoReflect().Descriptor(), sent)
	properties := schema["properties"].(object)
	properties["type"] = constant(name)
	if !command {
		delete(properties, "command_id")
		delete(properties, "expires_in_ms")
	}
	delete(properties, "data")
	if data != nil {
		properties["data"] = data
		if target, _ := a.byName[data["$ref"].(string)[len("#/components/schemas/"):]].(object); target["required"] != nil {
			schema["required"] = append(schema["required"].([]string), "data")
		}
	}
	delete(schema, "description")
	a.messages[name] = object{"name": name, "payload": schema, "correlationId": object{"location": "$message.payload#/id"}}
	a.operations[name] = object{"action": "receive", "channel": object{"$ref": "#/channels/ws"}, "messages": inChannel(name),
		"reply": object{"channel": object{"$ref": "#/channels/ws"}, "messages": inChannel(answer, "reply.error")}}
}

func inChannel(names ...string) (refs []object) {
	for _, name := range names {
		refs = append(refs, object{"$ref": "#/channels/ws/messages/" + name})
	}
	return refs
}

// answer adds the reply to a frame that requests data, and returns the name of the reply.
func (a *asyncDocument) answer(name string, data protoreflect.MessageDescriptor) string {
	a.reply(name, object{"ok": object{"type": "boolean", "enum": []bool{true}}, "data": a.ref(data, received, "")}, "data")
	return "reply." + name
}

// reply adds a type of reply. The last parameter lists which of the fields data, outcome and error the reply contains.
func (a *asyncDocument) reply(name string, properties object, has ...string) {
	a.gatewayFrame("reply."+name, "reply", (&gatewayv1.Reply{}).ProtoReflect().Descriptor(), properties, has...)
	a.messages["reply."+name].(object)["correlationId"] = object{"location": "$message.payload#/reply_to"}
}

// gatewayFrames adds the frames that gateways send besides replies, and their operations.
func (a *asyncDocument) gatewayFrames() {
	for _, f := range serverFrames() {
		kind := string(f.Name())
		switch kind {
		case "reply":
			continue // added by clientFrames
		case "event":
			for _, e := range a.events() {
				a.gatewayFrame("event."+e.Name, kind, f.Message(), object{"event": constant(e.Name),
					"data": a.ref(e.Type.Descriptor(), received, "")})
			}
		case "signal":
			for _, s := range a.signals() {
				a.gatewayFrame("signal."+s.Name, kind, f.Message(), object{"signal": constant(s.Name),
					"data": a.ref(s.Type.Descriptor(), received, "Relayed")})
			}
		default:
			a.gatewayFrame(kind, kind, f.Message(), object{})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.messages)) {
		message := a.messages[name].(object)
		if _, answers := message["correlationId"]; answers {
			continue
		}
		operation := object{"action": "send", "channel": object{"$ref": "#/channels/ws"}, "messages": inChannel(name)}
		if summary := message["summary"]; summary != nil {
			operation["summary"] = summary
		}
		a.operations["on_"+name] = operation
	}
}

// gatewayFrame adds a type of frame that gateways send. The given properties replace the properties of the same names
// in the declared message. If the frame is a reply, it contains the fields data, outcome and error only if the last
// parameter lists them.
func (a *asyncDocument) gatewayFrame(name, kind string, m protoreflect.MessageDescriptor, properties object, has ...string) {
	schema := a.message(m, received)
	all := schema["properties"].(object)
	always := []string{"type"}
	for _, f := range a.fields(m, received) {
		optional := kind == "reply" && slices.Contains([]string{"data", "outcome", "error"}, f.name)
		switch {
		case optional && !slices.Contains(has, f.name):
			delete(all, f.name)
		case optional || f.required:
			always = append(always, f.name)
		}
	}
	maps.Copy(all, properties)
	all["type"] = constant(kind)
	schema["required"] = always
	message := object{"name": name, "payload": schema}
	if text, ok := schema["description"]; ok {
		message["summary"] = text
		delete(schema, "description")
	}
	if _, twice := a.messages[name]; twice && a.err == nil {
		a.err = fmt.Errorf("two frames are called %s", name)
	}
	a.messages[name] = message
}
