package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/edumatrix/interlinked/shared/backend"
)

// reader reads variables one by one and collects the problems.
type reader struct {
	getenv   func(string) string
	problems []error
	notices  []string
}

func (r *reader) problem(name, format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf("%s %s", name, fmt.Sprintf(format, args...)))
}

func (r *reader) notice(format string, args ...any) {
	r.notices = append(r.notices, fmt.Sprintf(format, args...))
}

const byteOrderMark = "\ufeff"

// text reads a variable. The parameter otherwise is the result for a variable that is unset. An empty value counts as
// unset, because compose files cannot leave a variable out.
func (r *reader) text(name, otherwise string) string {
	value := strings.TrimSpace(strings.TrimPrefix(r.getenv(name), byteOrderMark))
	if value == "" {
		if r.getenv(byteOrderMark+name) != "" {
			r.problem(name, "follows a byte order mark; save the file that sets it without the mark")
		}
		return otherwise
	}
	// docker --env-file keeps quotes, which a shell and compose remove. A password may contain quotes of its own.
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		if strings.HasSuffix(name, "_PASSWORD") || strings.HasSuffix(name, "_SECRET") {
			return value
		}
		if value = strings.TrimSpace(value[1 : n-1]); value == "" {
			return otherwise
		}
	}
	return value
}

func (r *reader) number(name string, otherwise, low, high int) int {
	value := r.text(name, "")
	if value == "" {
		return otherwise
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < low || n > high {
		r.problem(name, "is %q: it has to be a number from %d to %d", value, low, high)
		return otherwise
	}
	return n
}

func (r *reader) port(name string, otherwise int) int { return r.number(name, otherwise, 1, 65535) }

func (r *reader) boolean(name string, otherwise bool) bool {
	switch value := strings.ToLower(r.text(name, "")); value {
	case "":
		return otherwise
	case "true", "1", "yes", "on":
		return true
	case "false", "0", "no", "off":
		return false
	default:
		r.problem(name, "is %q: it has to be true or false", value)
		return otherwise
	}
}

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?$`)

func (r *reader) host(name, otherwise string) string {
	value := r.text(name, otherwise)
	if !validHost(value) {
		r.problem(name, "is %q: it has to be the name or the address of a machine, without a port", value)
	}
	return value
}

// validHost reports whether a host is a name or an IP address. Only an IP address may contain colons.
func validHost(host string) bool {
	if strings.Contains(host, ":") {
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	return hostPattern.MatchString(host)
}

// validPort reports whether a port is a number from 1 to 65535, without a sign or leading zeros.
func validPort(port string) bool {
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535 && strconv.Itoa(n) == port
}

// name reads the name of a user, a database or a client. It refuses names that are longer than maxBytes, contain
// control characters, or are not UTF-8.
func (r *reader) name(variable, otherwise string, maxBytes int) string {
	value := r.text(variable, otherwise)
	switch {
	case len(value) > maxBytes:
		r.problem(variable, "has %d bytes: it may have at most %d", len(value), maxBytes)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		r.problem(variable, "has a control character in it, or is not UTF-8")
	}
	return value
}

// path reads the path of a folder or file. It refuses control characters, and paths that begin with ~ or $: only a
// shell expands these, and unexpanded they would name another folder.
func (r *reader) path(name, otherwise string) string {
	value := r.text(name, otherwise)
	switch {
	case strings.HasPrefix(value, "~") || strings.HasPrefix(value, "$"):
		r.problem(name, "is %q: only a shell expands ~ and $; write the whole path", value)
	case strings.ContainsFunc(value, unicode.IsControl):
		r.problem(name, "is %q: it has a control character in it", value)
	}
	return value
}

// httpURL reads a URL. An error does not contain the URL's user and password.
func (r *reader) httpURL(name, otherwise string) string {
	value := r.text(name, otherwise)
	if value == "" {
		return ""
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		r.problem(name, "has to look like http://host:port")
		return ""
	}
	if strings.Contains(value, "#") {
		r.problem(name, "has a # in it: it has to look like http://host:port")
		return ""
	}
	if strings.HasSuffix(u.Host, ":") || u.Port() != "" && !validPort(u.Port()) || u.Hostname() == "" {
		r.problem(name, "has no host, or a port that is not from 1 to 65535: it has to look like http://host:port")
		return ""
	}
	return value
}

// baseURL reads the URL of a service, to which paths are added.
func (r *reader) baseURL(name, otherwise string) string {
	value := strings.TrimRight(r.httpURL(name, otherwise), "/")
	if u, err := url.Parse(value); err == nil && (u.RawQuery != "" || u.ForceQuery || u.User != nil) {
		r.problem(name, "has a user or a query in it: it has to look like http://host:port")
		return ""
	}
	return value
}

// originHost matches the host and port of an Origin header. Browsers write international names as xn--….
var originHost = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

// origins reads the origins of the pages that may connect, as browsers send them.
func (r *reader) origins(name string) (list []string) {
	for value := range strings.SplitSeq(r.text(name, ""), ",") {
		if value = strings.TrimSpace(value); value == "" {
			continue
		}
		u, err := url.Parse(value)
		if err != nil || !originHost.MatchString(u.Host) || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" ||
			u.Fragment != "" || u.User != nil {
			r.problem(name, "names %q: each origin has to look like https://school.example, separated by commas, "+
				"without wildcards, and international names as browsers send them (xn--...)", value)
			continue
		}
		host, ok := originAuthority(u)
		if !ok {
			r.problem(name, "names %q, whose port is not from 1 to 65535", value)
			continue
		}
		switch u.Scheme { // browsers omit the default port
		case "https":
			host = strings.TrimSuffix(host, ":443")
		case "http":
			host = strings.TrimSuffix(host, ":80")
		}
		list = append(list, strings.ToLower(u.Scheme)+"://"+host)
	}
	if r.text(name, "") != "" && list == nil && len(r.problems) == 0 {
		r.problem(name, "names no origin: they have to look like https://school.example, separated by commas")
	}
	return list
}

// originAuthority returns host and port as browsers write them: in lower case, addresses in their shortest form, and
// the port without leading zeros. It returns false if the address or the port is not valid.
func originAuthority(u *url.URL) (string, bool) {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if strings.HasPrefix(u.Host, "[") {
		address, err := netip.ParseAddr(host)
		if err != nil {
			return "", false
		}
		host = "[" + address.String() + "]"
	}
	if port == "" {
		return host, true
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return "", false
	}
	return host + ":" + strconv.Itoa(n), true
}

// brokers reads a list of addresses. It skips repeated entries and empty ones, such as after a trailing comma.
func (r *reader) brokers(name, otherwise string) (list []string) {
	all := r.text(name, otherwise)
	for value := range strings.SplitSeq(all, ",") {
		if value = strings.TrimSpace(value); value == "" {
			continue
		}
		host, port, err := net.SplitHostPort(value)
		if err != nil || !validHost(host) || !validPort(port) {
			r.problem(name, "names %q: each broker has to be host:port, separated by commas", value)
			continue
		}
		if !slices.Contains(list, value) {
			list = append(list, value)
		}
	}
	if strings.Trim(all, ", ") == "" {
		r.problem(name, "names no broker: it has to be host:port, separated by commas")
	}
	return list
}

var prefixPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{0,100}$`)

func (r *reader) prefix(name string) string {
	value := r.text(name, "")
	if !prefixPattern.MatchString(value) {
		r.problem(name, "is %q: it may have up to 100 letters, digits, dots, underscores and hyphens", value)
	}
	return value
}

var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// databaseURL reads the URL of the database, or builds it from the variables for user, password and database. If the
// URL is set and differs from one of these variables, the URL takes precedence and a notice is added.
func (r *reader) databaseURL(name string, c *Config) string {
	value := r.text(name, "")
	if value == "" {
		u := url.URL{Scheme: "postgresql", User: url.User(c.PostgresUser), Host: "localhost:5432", Path: "/" + c.PostgresDB}
		if c.PostgresPassword != "" {
			u.User = url.UserPassword(c.PostgresUser, c.PostgresPassword)
		}
		return u.String()
	}
	if strings.Contains(strings.ToUpper(value), "@%2F") {
		r.problem(name, "names a socket as its host: write postgresql://user:password@/database?host=/var/run/postgresql")
		return ""
	}
	u, err := url.Parse(value)
	if err != nil || (u.Host == "" && u.Query().Get("host") == "") || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		r.problem(name, "has to look like postgresql://user:password@host:5432/database?schema=public")
		return ""
	}
	if backend.HasUnescapedAt(value) {
		r.problem(name, "has an @ in its user or password, or a / or ? before it: percent-encode them (@ is %%40)")
		return ""
	}
	if u.Fragment != "" {
		r.problem(name, "has a # in it: percent-encode it in a password (%%23), or remove what follows it")
		return ""
	}
	for host := range strings.SplitSeq(u.Host, ",") {
		if i := strings.LastIndex(host, ":"); i >= 0 && !strings.HasSuffix(host, "]") && !validPort(host[i+1:]) {
			r.problem(name, "has a port that is not from 1 to 65535")
			return ""
		}
	}
	if mode := u.Query().Get("sslmode"); mode != "" && !slices.Contains(sslModes, mode) {
		r.problem(name, "has sslmode=%s: it is one of %s", mode, strings.Join(sslModes, ", "))
		return ""
	}
	for _, parameter := range slices.Sorted(maps.Keys(u.Query())) {
		if parameter != "schema" && backend.IsForeignParameter(parameter) {
			r.notice("%s has %s, which is for other clients: it is left out", name, parameter)
		}
	}
	if schema := u.Query().Get("schema"); schema != "" && schema != "public" {
		r.problem(name, "has schema=%s: only public is accepted, because each service has a schema of its own", schema)
		return ""
	}
	r.loses(name, "POSTGRES_USER", u.User.Username(), true)
	r.loses(name, "POSTGRES_DB", strings.TrimPrefix(u.Path, "/"), true)
	password, _ := u.User.Password()
	r.loses(name, "POSTGRES_PASSWORD", password, false)
	return value
}

func (r *reader) redisURL(name string) string {
	value := r.text(name, "")
	if value == "" {
		return ""
	}
	if backend.HasCutOffAt(value) {
		r.problem(name, "has a /, ? or # in its password: percent-encode it (/ is %%2F, ? is %%3F, # is %%23)")
		return ""
	}
	options, err := redis.ParseURL(value)
	if err != nil {
		// The library's errors may contain the password, except the error about an unexpected option.
		if _, option, ok := strings.Cut(err.Error(), "unexpected option: "); ok {
			r.problem(name, "has the parameter %q, which is not one of go-redis: remove it", option)
			return ""
		}
		r.problem(name, "has to look like redis://:password@host:6379/0")
		return ""
	}
	if options.DB < 0 {
		r.problem(name, "names the database %d: it has to be 0 or more", options.DB)
		return ""
	}
	if strings.Contains(value, "#") {
		r.problem(name, "has a # in it: percent-encode it in a password (%%23), or remove what follows it")
		return ""
	}
	if _, port, err := net.SplitHostPort(options.Addr); options.Network == "tcp" && (err != nil || !validPort(port)) {
		r.problem(name, "has a port that is not from 1 to 65535")
		return ""
	}
	return value
}

func (r *reader) compareRedis(b backend.Redis) {
	options, err := redis.ParseURL(b.URL)
	if err != nil {
		return // the problem was reported already
	}
	host, port, err := net.SplitHostPort(options.Addr)
	if err != nil {
		host, port = options.Addr, ""
	}
	r.loses("REDIS_URL", "REDIS_HOST", host, true)
	r.loses("REDIS_URL", "REDIS_PORT", port, true)
	r.loses("REDIS_URL", "REDIS_PASSWORD", options.Password, false)
}

// loses adds a notice if a variable is set but has no effect, because a URL contains another value. The parameter part
// is the name of this variable, winner is the name of the URL's variable, and inURL is the value in the URL. If the
// parameter tell is false, the notice does not contain the values.
func (r *reader) loses(winner, part, inURL string, tell bool) {
	switch value := r.text(part, ""); {
	case value == "" || value == inURL:
	case tell:
		r.notice("%s wins over %s: %q instead of %q", winner, part, inURL, value)
	default:
		r.notice("%s wins over %s, which has another value", winner, part)
	}
}
