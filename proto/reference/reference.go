// Package reference holds what people who build clients read: the files that gateways serve at /docs. They are generated
// from proto/ by package cmd/reference.
package reference

import "embed"

// Files are index.html, reference.html, asyncapi.json and openapi.json.
//
//go:embed *.html *.json
var Files embed.FS
