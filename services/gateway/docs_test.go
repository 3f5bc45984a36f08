package gateway

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func docs(t *testing.T) func(method, path string) (*http.Response, string) {
	t.Helper()
	mux := http.NewServeMux()
	require.NoError(t, mountDocs(mux))
	server := httptest.NewServer(route(http.NotFoundHandler(), mux))
	t.Cleanup(server.Close)
	return func(method, path string) (*http.Response, string) {
		r, err := http.NewRequest(method, server.URL+path, nil)
		require.NoError(t, err)
		response, err := http.DefaultTransport.RoundTrip(r)
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response, string(body)
	}
}

func TestDocs_AreServed(t *testing.T) {
	t.Parallel()
	ask := docs(t)
	for path, want := range map[string]struct{ contentType, text string }{
		"/docs":               {"text/html; charset=utf-8", `<a href="/docs/openapi.json">`},
		"/docs/reference":     {"text/html; charset=utf-8", `<h3 id="chatsend_message"><code>chat.send_message</code></h3>`},
		"/docs/asyncapi.json": {"application/json", `"asyncapi": "3.0.0"`},
		"/docs/openapi.json":  {"application/json", `"openapi": "3.1.0"`},
	} {
		response, body := ask(http.MethodGet, path)
		require.Equal(t, http.StatusOK, response.StatusCode, path)
		require.Equal(t, want.contentType, response.Header.Get("Content-Type"), path)
		require.Contains(t, body, want.text, path)
		if want.contentType == "application/json" {
			require.True(t, json.Valid([]byte(body)), path)
			continue
		}
		require.NotRegexp(t, `(?i)<script|<link|<img|src=|url\(|https?://`, body, "%s must not load anything from another host", path)
		for _, link := range regexp.MustCompile(`href="(/[^"]*)"`).FindAllStringSubmatch(body, -1) {
			linked, _ := ask(http.MethodGet, link[1])
			require.Equal(t, http.StatusOK, linked.StatusCode, "%s links to %s", path, link[1])
		}
		for _, link := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(body, -1) {
			require.Contains(t, body, ` id="`+link[1]+`"`, "%s links to %s", path, link[0])
		}
	}
}

// Under /docs, the gateway must serve nothing but the documents, and allow only GET and HEAD.
func TestDocs_NothingElseIsServed(t *testing.T) {
	t.Parallel()
	ask := docs(t)
	for _, path := range []string{"/docs/", "/docs/index.html", "/docs/reference.html", "/docs/reference.go", "/docs/reference/",
		"/docs/../docs.go", "/docs/%2e%2e/docs.go", "/docsx", "/"} {
		response, _ := ask(http.MethodGet, path)
		require.Contains(t, []int{http.StatusNotFound, http.StatusMovedPermanently, http.StatusTemporaryRedirect},
			response.StatusCode, path)
		if response.StatusCode != http.StatusNotFound {
			response, _ = ask(http.MethodGet, response.Header.Get("Location"))
			require.Equal(t, http.StatusNotFound, response.StatusCode, path)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		response, _ := ask(method, "/docs/openapi.json")
		require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode, method)
	}
	response, body := ask(http.MethodHead, "/docs/openapi.json")
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Empty(t, body)
}

func TestGateway_ServesTheDocuments(t *testing.T) {
	t.Parallel()
	address, _ := begin(t).gateway(settings{})
	for _, path := range []string{"/docs", "/docs/reference", "/docs/asyncapi.json", "/docs/openapi.json"} {
		response, err := http.Get("http://" + address + path)
		require.NoError(t, err)
		_ = response.Body.Close()
		require.Equal(t, http.StatusOK, response.StatusCode, path)
	}
}
