package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// openAPI returns the OpenAPI document of the gateway's HTTP interface for clients: commands, queries and health.
func (d *declarations) openAPI() ([]byte, error) {
	s := d.newSchemas()
	failure := s.ref((&gatewayv1.Failure{}).ProtoReflect().Descriptor(), received, "")
	outcome := s.ref((&gatewayv1.Outcome{}).ProtoReflect().Descriptor(), received, "")
	s.byName["CommandAnswer"] = object{"type": "object", "required": []string{"ok", "outcome"},
		"description": "The answer to a command that was received.",
		"properties": object{"ok": object{"type": "boolean",
			"description": "Whether the outcome is `committed`, `unchanged` or `queued`."},
			"outcome": outcome}}
	s.byName["ConnectFailure"] = object{"type": "object", "required": []string{"code", "message", "error"},
		"description": "An error in the form of the Connect protocol. Its field `error` is the error of this protocol.",
		"properties": object{"code": object{"type": "string", "description": "A code of the Connect protocol."},
			"message": object{"type": "string"}, "error": object{"$ref": "#/components/schemas/Error"}}}
	answer := object{"$ref": "#/components/schemas/CommandAnswer"}

	paths := object{}
	for _, c := range d.commands() {
		responses := d.failures(object{"anyOf": []any{answer, failure}})
		responses["200"] = response("The command is done: its outcome is `committed` or `unchanged`.", answer)
		responses["202"] = response("The command was received and is not decided yet: its outcome is `queued`. To get the final "+
			"outcome, send the command again with the same Command-Id.", answer)
		paths["/api/"+c.Name] = post(c.Name, c.Owner, d.comments[c.Type.Descriptor().FullName()],
			s.ref(c.Type.Descriptor(), sent, ""), responses, "CommandId", "OnBehalfOf")
	}
	for _, q := range d.queries() {
		data := s.ref(q.Response.Descriptor(), received, "")
		request := s.ref(q.Request.Descriptor(), sent, "")
		responses := d.failures(failure)
		responses["200"] = response("The answer.", data)
		paths["/api/"+q.Name] = post(q.Name, q.Owner, d.comments[d.method(q).FullName()], request, responses, "OnBehalfOf")
		paths["/api"+q.Procedure] = d.procedure(q, request, data)
	}
	maps.Copy(paths, health())
	if s.err != nil {
		return nil, s.err
	}
	return encode(object{
		"openapi": "3.1.0",
		"info": object{"title": "EDU Matrix Interlinked, commands and queries over HTTP", "version": "1",
			"description": "The commands and queries of the client protocol, for programs that keep no connection open. Requests with " +
				"parameters in the URL or with a Content-Encoding are refused.",
			"license": object{"name": "Apache License 2.0", "identifier": "Apache-2.0"}},
		"servers":  []any{object{"url": "/"}},
		"security": []any{object{"token": []string{}}},
		"tags":     d.tags(),
		"paths":    paths,
		"components": object{
			"schemas": s.byName, "securitySchemes": object{"token": tokenScheme()},
			"parameters": object{
				"CommandId": object{"name": "Command-Id", "in": "header",
					"description": "The id of the command. A command that is sent again with the same id has one effect and one outcome. " +
						"If the header is absent, the gateway generates an id, and a command that is sent again is a new command.",
					"schema": object{"type": "string", "pattern": fmt.Sprintf(`^[A-Za-z0-9._@|:+-]{1,%d}$`, catalog.MaxID)}},
				"OnBehalfOf": object{"name": "On-Behalf-Of", "in": "header",
					"description": "The user for whom a program acts. The program's token must have the role `service`.",
					"schema":      object{"type": "string", "pattern": fmt.Sprintf(`^[A-Za-z0-9._@|:+-]{1,%d}$`, catalog.MaxID)}},
			},
		},
	})
}

func (d *declarations) tags() (tags []object) {
	for _, owner := range d.catalog.Owners() {
		tags = append(tags, object{"name": owner})
	}
	return append(tags, object{"name": "health"})
}

func response(description string, schema object) object {
	return object{"description": description, "content": object{"application/json": object{"schema": schema}}}
}

func post(id, owner, summary string, body object, responses object, parameters ...string) object {
	refs := []object{}
	for _, p := range parameters {
		refs = append(refs, object{"$ref": "#/components/parameters/" + p})
	}
	operation := object{"operationId": id, "tags": []string{owner}, "parameters": refs, "responses": responses,
		"requestBody": object{"required": true, "content": object{"application/json": object{"schema": body}}}}
	if summary != "" {
		operation["summary"] = summary
	}
	return object{"post": operation}
}

// procedure returns the operation of a query for Connect clients.
func (d *declarations) procedure(q *catalog.Query, request, data object) object {
	responses := d.failures(object{"$ref": "#/components/schemas/ConnectFailure"})
	binary := func(m protoreflect.MessageDescriptor) object {
		return object{"schema": object{"type": "string", "format": "binary", "description": "An encoded " + string(m.FullName()) + "."}}
	}
	responses["200"] = object{"description": "The answer.", "content": object{"application/json": object{"schema": data},
		"application/proto": binary(q.Response.Descriptor())}}
	path := post(q.Procedure[1:], q.Owner, d.comments[d.method(q).FullName()], request, responses, "OnBehalfOf")
	body := path["post"].(object)["requestBody"].(object)["content"].(object)
	body["application/proto"] = binary(q.Request.Descriptor())
	return path
}

// failures returns the responses to refused requests, by status.
func (d *declarations) failures(schema object) object {
	codes := map[int][]string{}
	for _, c := range refusal.Codes() {
		codes[c.Status] = append(codes[c.Status], c.Name)
	}
	for _, r := range d.catalog.Refusals() {
		codes[refusal.DomainStatus] = append(codes[refusal.DomainStatus], r.Code)
	}
	responses := object{}
	for _, status := range slices.Sorted(maps.Keys(codes)) {
		if status < 400 {
			continue
		}
		r := response("The code is "+strings.Join(codes[status], ", ")+".", schema)
		if status == 429 || status == 503 {
			r["headers"] = object{"Retry-After": object{"description": "Seconds.", "schema": object{"type": "integer"}}}
		}
		responses[fmt.Sprint(status)] = r
	}
	return responses
}

// health returns the paths for monitoring.
func health() object {
	yes := object{"type": "boolean"}
	state := object{"type": "object", "required": []string{"status", "services"}, "properties": object{
		"status": object{"type": "string", "enum": []string{"healthy", "unhealthy"}},
		"services": object{"type": "object", "required": []string{"redis", "kafka", "postgres", "socketio"},
			"properties": object{"redis": yes, "kafka": yes, "postgres": yes, "socketio": yes}},
	}}
	plain := func(description string) object {
		return object{"description": description, "content": object{"text/plain": object{"schema": object{"type": "string"}}}}
	}
	get := func(id, summary string, responses object) object {
		return object{"get": object{"operationId": id, "tags": []string{"health"}, "summary": summary, "security": []any{},
			"responses": responses}}
	}
	return object{
		"/health": get("health", "Returns which stores the gateway and the services can reach.",
			object{"200": response("All stores are reachable.", state), "503": response("A store is not reachable.", state)}),
		"/livez": get("livez", "Returns 200 while the process is alive.", object{"200": plain("The process is alive.")}),
		"/readyz": get("readyz", "Returns whether the gateway accepts clients.",
			object{"200": plain("The gateway accepts clients."), "503": plain("The gateway is starting or stopping.")}),
	}
}
