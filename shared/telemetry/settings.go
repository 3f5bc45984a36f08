package telemetry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/credentials"
)

// Settings are the settings of the standard OTEL_* variables. The zero value exports nothing.
//
// The exporters of the OpenTelemetry library read these variables too. For a malformed value they continue and write
// the value to standard error, including headers with credentials. ReadSettings returns an error instead, so the
// exporters read only valid values.
type Settings struct {
	endpoint *url.URL // nil: spans are not exported
	protocol string   // "grpc" or "http/protobuf"
	headers  map[string]string
	secure   *tls.Config // nil: the system's certificates
	sampler  sdktrace.Sampler

	// serviceName and attributes are the values of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
	serviceName string
	attributes  []attribute.KeyValue
}

// Endpoint returns the collector's address with the password masked, or "" if nothing is exported.
func (s Settings) Endpoint() string {
	if s.endpoint == nil {
		return ""
	}
	return s.endpoint.Redacted()
}

// WithoutServiceName returns the settings for a process that runs several services, each under its own name.
func (s Settings) WithoutServiceName() Settings {
	s.serviceName = ""
	return s
}

// String returns the address that traces are sent to. It omits the headers, which may contain credentials.
func (s Settings) String() string { return "traces to " + s.Endpoint() }

// GoString returns the same text as String.
func (s Settings) GoString() string { return s.String() }

const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
)

// ReadSettings reads the standard OTEL_* variables. Its errors name the variable and never contain a header's value
// or a URL's password.
func ReadSettings(getenv func(string) string) (Settings, error) {
	r := settingsReader{getenv: getenv}
	s := r.read()
	return s, r.err
}

// settingsReader reads variables and keeps the first problem.
type settingsReader struct {
	getenv func(string) string
	err    error
}

func (r *settingsReader) get(name string) string { return strings.TrimSpace(r.getenv(name)) }

// either returns the name and value of the variable for traces or, if that is not set, of the variable for all kinds of
// telemetry.
func (r *settingsReader) either(suffix string) (name, value string) {
	name = "OTEL_EXPORTER_OTLP_TRACES_" + suffix
	if value = r.get(name); value == "" {
		name = "OTEL_EXPORTER_OTLP_" + suffix
		value = r.get(name)
	}
	return name, value
}

func (r *settingsReader) problem(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *settingsReader) boolean(name string) bool {
	switch value := strings.ToLower(r.get(name)); value {
	case "true":
		return true
	case "false", "":
	default:
		r.problem("%s has to be true or false, not %q", name, value)
	}
	return false
}

func (r *settingsReader) read() Settings {
	s := Settings{sampler: r.sampler(), serviceName: r.get("OTEL_SERVICE_NAME")}
	for key, value := range r.pairs("OTEL_RESOURCE_ATTRIBUTES", r.get("OTEL_RESOURCE_ATTRIBUTES"), nil) {
		if key == "service.name" {
			if s.serviceName == "" {
				s.serviceName = value
			}
			continue
		}
		s.attributes = append(s.attributes, attribute.String(key, value))
	}
	r.exporter(&s)
	if r.boolean("OTEL_SDK_DISABLED") {
		s.endpoint = nil
	}
	return s
}

// exporter reads the settings of the collector: its address and how traces are sent.
func (r *settingsReader) exporter(s *Settings) {
	name, value := r.either("PROTOCOL")
	switch s.protocol = value; value {
	case "":
		s.protocol = protocolGRPC
	case protocolGRPC, protocolHTTP:
	default:
		r.problem("%s has to be grpc or http/protobuf, not %q", name, value)
	}
	name, value = r.either("HEADERS")
	s.headers = r.pairs(name, value, headerName)
	r.numbers("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_BSP_SCHEDULE_DELAY",
		"OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
	if name, value = r.either("COMPRESSION"); value != "" && value != "gzip" && value != "none" {
		r.problem("%s has to be gzip or none, not %q", name, value)
	}
	s.secure = r.certificates()

	exporter := strings.ToLower(r.get("OTEL_TRACES_EXPORTER"))
	if exporter != "" && exporter != "otlp" && exporter != "none" {
		r.problem("OTEL_TRACES_EXPORTER has to be otlp or none, not %q", exporter)
	}
	name, value = r.either("ENDPOINT")
	switch {
	case value != "":
		s.endpoint = r.endpoint(name, value)
	case exporter == "otlp" && s.protocol == protocolHTTP: // the standard's defaults
		s.endpoint = &url.URL{Scheme: "http", Host: "localhost:4318"}
	case exporter == "otlp":
		s.endpoint = &url.URL{Scheme: "http", Host: "localhost:4317"}
	}
	if s.endpoint != nil && s.protocol == protocolHTTP && name != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" {
		s.endpoint = s.endpoint.JoinPath("v1", "traces") // the address is the base for all kinds of telemetry
	}
	if exporter == "none" {
		s.endpoint = nil
	}
}

// endpoint parses a collector's address. The scheme is optional, because addresses with and without a scheme are
// common.
func (r *settingsReader) endpoint(name, value string) *url.URL {
	if !strings.Contains(value, "://") {
		scheme := "http://"
		if r.get("OTEL_EXPORTER_OTLP_INSECURE") != "" && !r.boolean("OTEL_EXPORTER_OTLP_INSECURE") {
			scheme = "https://"
		}
		value = scheme + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") {
		r.problem("%s has to look like http://host:4317", name) // url's own error would show a password
		return nil
	}
	return u
}

// sampler reads OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. A misspelled name of a sampler is an error; the
// library would use the default sampler instead.
func (r *settingsReader) sampler() sdktrace.Sampler {
	name := strings.ToLower(r.get("OTEL_TRACES_SAMPLER"))
	ratio := 1.0
	if arg := r.get("OTEL_TRACES_SAMPLER_ARG"); arg != "" && strings.HasSuffix(name, "traceidratio") {
		var err error
		if ratio, err = strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
			r.problem("OTEL_TRACES_SAMPLER_ARG has to be a number from 0 to 1, not %q", arg)
		}
	}
	switch name {
	case "", "parentbased_always_on":
		return sdktrace.ParentBased(sdktrace.AlwaysSample())
	case "parentbased_always_off":
		return sdktrace.ParentBased(sdktrace.NeverSample())
	case "parentbased_traceidratio":
		return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))
	case "always_on":
		return sdktrace.AlwaysSample()
	case "always_off":
		return sdktrace.NeverSample()
	case "traceidratio":
		return sdktrace.TraceIDRatioBased(ratio)
	default:
		r.problem("OTEL_TRACES_SAMPLER has to be parentbased_always_on, parentbased_always_off, "+
			"parentbased_traceidratio, always_on, always_off or traceidratio, not %q", name)
		return sdktrace.NeverSample()
	}
}

// headerName matches an HTTP header field name (a token of RFC 9110).
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// pairs parses name=value,name=value with percent-encoded values. Each name must match the parameter names, unless that
// parameter is nil.
func (r *settingsReader) pairs(variable, text string, names *regexp.Regexp) map[string]string {
	if text == "" {
		return nil
	}
	all := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, found := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !found || err != nil || name == "" || (names != nil && !names.MatchString(name)) ||
			strings.ContainsAny(value, "\r\n\x00") {
			r.problem("%s has to look like name=value,name=value, with other characters in a value percent-encoded, "+
				"such as Authorization=Bearer%%20...", variable)
			return nil
		}
		all[name] = value
	}
	return all
}

func (r *settingsReader) numbers(variables ...string) {
	for _, name := range variables {
		if value := r.get(name); value != "" {
			if n, err := strconv.Atoi(value); err != nil || n < 0 {
				r.problem("%s has to be a number, not %q", name, value)
			}
		}
	}
}

// certificates reads the certificates that verify the collector, and the client's own certificate and key. It returns
// nil if there are none.
func (r *settingsReader) certificates() *tls.Config {
	var config tls.Config
	read := func(suffix string) (name string, content []byte) {
		name, path := r.either(suffix)
		if path == "" {
			return name, nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			r.problem("%s: %w", name, err)
		}
		return name, content
	}
	authority, pem := read("CERTIFICATE")
	if pem != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			r.problem("%s names a file without a certificate in PEM format", authority)
		}
	}
	own, certificate := read("CLIENT_CERTIFICATE")
	_, key := read("CLIENT_KEY")
	if certificate != nil || key != nil {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			r.problem("%s and its key: %w", own, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if pem == nil && certificate == nil && key == nil {
		return nil
	}
	return &config
}

// exporter returns an exporter that sends spans to the collector, or nil if nothing is to be exported.
func (s Settings) exporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	if s.endpoint == nil {
		return nil, nil
	}
	to := *s.endpoint
	to.User = nil // no exporter sends the user and password, and errors would contain them
	if s.protocol == protocolHTTP {
		options := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(to.String()), otlptracehttp.WithHeaders(s.headers)}
		if s.secure != nil && to.Scheme == "https" {
			options = append(options, otlptracehttp.WithTLSClientConfig(s.secure))
		}
		return otlptracehttp.New(ctx, options...)
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(to.String()), otlptracegrpc.WithHeaders(s.headers)}
	if s.secure != nil && to.Scheme == "https" {
		options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(s.secure)))
	}
	return otlptracegrpc.New(ctx, options...)
}

// version returns the version of the program's module, or else the commit from which the program was built, or "" if
// the build contains neither.
func version() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	if v := build.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range build.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
