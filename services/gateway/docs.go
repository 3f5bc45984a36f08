package gateway

import (
	"fmt"
	"net/http"

	"github.com/edumatrix/interlinked/proto/reference"
)

// documents contains the served files of package reference, by URL path.
var documents = map[string]struct{ file, contentType string }{
	"/docs":               {"index.html", "text/html; charset=utf-8"},
	"/docs/reference":     {"reference.html", "text/html; charset=utf-8"},
	"/docs/asyncapi.json": {"asyncapi.json", "application/json"},
	"/docs/openapi.json":  {"openapi.json", "application/json"},
}

// mountDocs serves the documents for developers of clients. Requests for them need no token.
func mountDocs(mux *http.ServeMux) error {
	for path, d := range documents {
		content, err := reference.Files.ReadFile(d.file)
		if err != nil {
			return fmt.Errorf("serve %s: %w", path, err)
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Type", d.contentType)
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
			h.Set("Cache-Control", "no-cache") // the next release may have other documents
			_, _ = w.Write(content)
		})
	}
	return nil
}
