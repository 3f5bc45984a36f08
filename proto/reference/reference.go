// Package reference contains the documents for developers of clients, which gateways serve at /docs. They are
// generated from proto/ by package cmd/reference.
package reference

import "embed"

// Files are index.html, reference.html, asyncapi.json and openapi.json.
//
//go:embed *.html *.json
var Files embed.FS
