// Package auth identifies users by their tokens: JSON Web Tokens of the school's own sign-in, signed with a shared
// secret (HS256) or with a key from the sign-in's JSON Web Key Set (JWKS).
package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// RoleService is the role of another program of the school, which may act on behalf of users.
const RoleService = "service"

// MinSecret is the minimum length of a secret for HS256, in bytes (RFC 7518, 3.2). An attacker who has a token can try
// secrets offline until one leads to the token's signature, so a shorter secret could be found.
const MinSecret = 32

const (
	maxToken   = 8 << 10 // bytes; a longer token is refused
	maxName    = 256     // characters; a longer name is cut off
	maxPicture = 2 << 10 // bytes; a longer picture URL is ignored

	leeway = 30 * time.Second // tolerance for clocks that differ

	// maxSeconds, as seconds since 1970, is in the year 5138. A larger number is probably in milliseconds.
	maxSeconds = 100_000_000_000
)

// User is the user whom a valid token identifies.
type User struct {
	ID      string
	Name    string
	Picture string
	Role    string
	Expires time.Time // time from which the token is no longer accepted: its exp plus the leeway for clocks that differ
}

// ActingFor returns the id of the user for whom u acts: u itself, or the user onBehalfOf if that parameter is set. If u
// does not have the role "service", ActingFor refuses every user other than u. It also refuses an invalid id.
func (u User) ActingFor(onBehalfOf string) (actor string, err error) {
	switch {
	case onBehalfOf == "" || onBehalfOf == u.ID:
		return u.ID, nil
	case u.Role != RoleService:
		return "", refusal.New(refusal.Unauthorized, "only a token with the role %q may act on behalf of another user", RoleService)
	case !catalog.ValidID(onBehalfOf):
		return "", refusal.NewField("on_behalf_of", "has to be a user's id: %s", catalog.IDForm)
	}
	return onBehalfOf, nil
}

// Options configure which tokens are valid.
type Options struct {
	Secret  string // secret that tokens are signed with, of at least MinSecret bytes
	JWKSURL string // URL of the keys, if there is no Secret

	// Audience is a list of values; a token's aud must contain at least one of them. Issuer is the value that a token's
	// iss must have. If one of these options is empty, its claim is not checked. A JWKSURL requires both options, because
	// the keys at the URL may also sign tokens for other programs.
	Audience []string
	Issuer   string

	// RoleClaim is the name of the claim with the user's role. If a token has no claim with exactly this name, the dots in
	// the name separate the names of nested objects ("realm_access.roles"). Empty: users have no role.
	RoleClaim string

	Log *slog.Logger // default: slog.Default

	transport http.RoundTripper // set by tests
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	options Options
	methods []string // algorithms that tokens may be signed with
	parser  *jwt.Parser
	secret  []byte
	keys    *keySet // nil: the secret is used
}

// NewVerifier returns a Verifier for tokens that are signed with a secret or, if o.Secret is empty, with the keys at a
// JWKS URL. The keys are fetched in the background until ctx ends: an hour after a successful fetch, 1 s to 30 s after
// a failed one, and when a token is signed with an unknown key. Fetches for unknown keys are at least 10 s apart. If
// the keys cannot be fetched yet, NewVerifier does not return an error; tokens are refused as unavailable meanwhile.
func NewVerifier(ctx context.Context, o Options) (*Verifier, error) {
	return newVerifier(ctx, o, fetchIntervals{usual: time.Hour, retry: time.Second, slowest: 30 * time.Second,
		unknown: 10 * time.Second, patience: 3 * time.Second})
}

func newVerifier(ctx context.Context, o Options, p fetchIntervals) (*Verifier, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	v := &Verifier{options: o}
	checks := []jwt.ParserOption{jwt.WithExpirationRequired(), jwt.WithLeeway(leeway), jwt.WithJSONNumber()}
	if o.Issuer != "" {
		checks = append(checks, jwt.WithIssuer(o.Issuer))
	}
	if len(o.Audience) > 0 {
		checks = append(checks, jwt.WithAudience(o.Audience...))
	}
	switch {
	case o.Secret != "":
		if len(o.Secret) < MinSecret {
			return nil, fmt.Errorf("JWT_SECRET has %d bytes: it needs at least %d", len(o.Secret), MinSecret)
		}
		v.secret, v.methods = []byte(o.Secret), []string{"HS256"}
	case o.JWKSURL != "":
		if len(o.Audience) == 0 || o.Issuer == "" {
			return nil, errors.New("JWKS_URL requires JWT_AUDIENCE and JWT_ISSUER")
		}
		var err error
		if v.keys, err = newKeySet(ctx, o, p); err != nil {
			return nil, err
		}
		// Methods with a shared secret are excluded. Otherwise an attacker could sign tokens with a public key as the
		// secret.
		v.methods = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	default:
		return nil, errors.New("set JWT_SECRET or JWKS_URL: tokens cannot be verified without one of them")
	}
	v.parser = jwt.NewParser(append(checks, jwt.WithValidMethods(v.methods))...)
	return v, nil
}

// Ready returns a channel that is closed when tokens can be verified: at once with a secret, otherwise once the first
// keys have been fetched.
func (v *Verifier) Ready() <-chan struct{} {
	if v.keys == nil {
		ready := make(chan struct{})
		close(ready)
		return ready
	}
	return v.keys.first
}

// Verify returns the user that a token identifies. The error is a refusal that explains why the token is invalid,
// without quoting the token. If the token cannot be checked, because the keys cannot be fetched now, the code is
// refusal.Unavailable. For an invalid token, the code is refusal.Unauthorized.
func (v *Verifier) Verify(ctx context.Context, token string) (User, error) {
	if token = strings.TrimSpace(token); token == "" {
		return User{}, refusal.New(refusal.Unauthorized,
			"a token is missing; send it in the connect frame or as Authorization: Bearer <token>")
	}
	if len(token) > maxToken {
		return User{}, refusal.New(refusal.Unauthorized, "the token is longer than %d bytes", maxToken)
	}
	if strings.ContainsFunc(token, unicode.IsSpace) {
		return User{}, refusal.New(refusal.Unauthorized, "the token has a space in it: send the token alone, without "+
			"another word such as Bearer before it")
	}
	c := claims{}
	parsed, err := v.parser.ParseWithClaims(token, &c, v.key(ctx))
	if v.keys != nil && errors.Is(err, jwt.ErrTokenSignatureInvalid) && parsed.Header["kid"] == nil && parsed.Signature != nil {
		// The token does not name its key, so only fetching the keys again distinguishes a new key from a forged
		// signature.
		if err = v.keys.renew(ctx, func() bool { return false }); err == nil {
			_, err = v.parser.ParseWithClaims(token, &c, v.key(ctx))
		}
	}
	if err != nil {
		code := refusal.Unauthorized
		if errors.Is(err, errNoKeys) {
			code = refusal.Unavailable
		}
		return User{}, refusal.New(code, "%s", v.reason(err, parsed, c))
	}
	return v.user(c)
}

// claims are the claims of a token. Numbers are json.Number, so that an unused claim may be a number of any size.
type claims map[string]any

// GetExpirationTime returns the claim exp, or nil if there is none.
func (c claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }

// GetNotBefore returns the claim nbf, or nil if there is none.
func (c claims) GetNotBefore() (*jwt.NumericDate, error) { return c.date("nbf") }

// GetIssuedAt returns the claim iat, or nil if there is none.
func (c claims) GetIssuedAt() (*jwt.NumericDate, error) { return c.date("iat") }

// GetAudience returns the claim aud, which is a text or a list of texts.
func (c claims) GetAudience() (jwt.ClaimStrings, error) { return jwt.MapClaims(c).GetAudience() }

// GetIssuer returns the claim iss.
func (c claims) GetIssuer() (string, error) { return jwt.MapClaims(c).GetIssuer() }

// GetSubject returns the claim sub.
func (c claims) GetSubject() (string, error) { return jwt.MapClaims(c).GetSubject() }

// date reads a claim that is a number of seconds since 1970. The implementation in jwt.MapClaims overflows: an nbf of
// 1e19 would be in the past on some processors.
func (c claims) date(name string) (*jwt.NumericDate, error) {
	value, found := c[name]
	if !found {
		return nil, nil
	}
	n := seconds(value)
	if math.IsNaN(n) {
		return nil, fmt.Errorf("%s is invalid: %w", name, jwt.ErrInvalidType)
	}
	return jwt.NewNumericDate(time.Unix(int64(max(-maxSeconds, min(n, maxSeconds))), 0)), nil
}

var errCritical = errors.New("the token's header has crit: it requires an extension that is not supported")

// key returns the function that finds a token's key.
func (v *Verifier) key(ctx context.Context) jwt.Keyfunc {
	return func(token *jwt.Token) (any, error) {
		if _, found := token.Header["crit"]; found { // RFC 7515, 4.1.11: unknown extensions must be refused
			return nil, errCritical
		}
		if v.keys == nil {
			return v.secret, nil
		}
		return v.keys.key(ctx, token)
	}
}

// user reads the claims of a valid token. A malformed claim other than sub and exp is ignored.
func (v *Verifier) user(c claims) (User, error) {
	id, ok := c["sub"].(string)
	if _, number := c["sub"].(json.Number); number {
		return User{}, refusal.New(refusal.Unauthorized, "the token's sub is a number: it has to be a text")
	}
	if !ok || !catalog.ValidID(id) {
		return User{}, refusal.New(refusal.Unauthorized, "the token's sub has to be an id: %s", catalog.IDForm)
	}
	expires, err := c.GetExpirationTime()
	if err != nil || expires == nil {
		return User{}, refusal.New(refusal.Unauthorized, "the token has no exp: tokens must expire")
	}
	if seconds(c["exp"]) >= maxSeconds {
		return User{}, refusal.New(refusal.Unauthorized, "the token's exp %s", inMilliseconds)
	}
	u := User{ID: id, Name: clean(text(c["name"]), maxName), Role: v.role(c), Expires: expires.Add(leeway)}
	if picture := text(c["picture"]); len(picture) <= maxPicture && clean(picture, maxPicture) == picture {
		u.Picture = picture
	}
	return u, nil
}

// role reads the claim that RoleClaim names: a text or a list of texts. In a list, the role "service" takes
// precedence; otherwise the first role that is not empty counts.
func (v *Verifier) role(c claims) string {
	if v.options.RoleClaim == "" {
		return ""
	}
	value, found := c[v.options.RoleClaim]
	if !found {
		value = map[string]any(c)
		for name := range strings.SplitSeq(v.options.RoleClaim, ".") {
			object, _ := value.(map[string]any)
			value = object[name]
		}
	}
	list, ok := value.([]any)
	if !ok {
		return text(value)
	}
	first := ""
	for _, item := range list {
		if role := text(item); role == RoleService {
			return role
		} else if first == "" {
			first = role
		}
	}
	return first
}

// text returns a claim that is a text, or "" for any other claim.
func text(claim any) string {
	s, _ := claim.(string)
	return s
}

// seconds returns the value of a claim that is a number, or infinity if the number is too large for a float64. For any
// other claim it returns NaN.
func seconds(claim any) float64 {
	n, is := claim.(json.Number)
	if !is {
		return math.NaN()
	}
	f, _ := n.Float64() // the error means that the number is too large
	return f
}

// clean removes invalid UTF-8 and control characters, and limits the text to the given number of characters. Control
// characters cannot be displayed, and U+0000 cannot be stored.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if utf8.RuneCountInString(s) <= limit {
		return s
	}
	return string([]rune(s)[:limit])
}

const inMilliseconds = "is in milliseconds, or far beyond any calendar: it has to be in seconds since 1970"

// reason explains why a token is invalid. The parameter parsed is nil if the token could not be split into its parts.
func (v *Verifier) reason(err error, parsed *jwt.Token, c claims) string {
	if parsed != nil && !errors.Is(err, jwt.ErrTokenMalformed) &&
		(parsed.Method == nil || !slices.Contains(v.methods, parsed.Method.Alg())) {
		return "the token's signature is of a method (alg in its header) that is not accepted here: sign it with " +
			strings.Join(v.methods, ", ")
	}
	switch {
	case errors.Is(err, errNoKeys):
		return "the keys for verifying tokens cannot be fetched now, try again"
	case errors.Is(err, errCritical):
		return errCritical.Error()
	case errors.Is(err, errKeyID):
		return errKeyID.Error()
	case errors.Is(err, errKeyMethod):
		return errKeyMethod.Error()
	case errors.Is(err, jwt.ErrTokenExpired):
		return "the token has expired"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		if seconds(c["nbf"]) >= maxSeconds {
			return "the token's nbf " + inMilliseconds
		}
		return "the token is not valid yet"
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "the token is for another program: its aud is not the JWT_AUDIENCE of this mesh"
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return "the token is from another issuer: its iss is not the JWT_ISSUER of this mesh"
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		for _, name := range []string{"aud", "iss"} {
			if strings.Contains(err.Error(), name+" claim is required") {
				return "the token has no " + name
			}
		}
		return "the token has no exp: tokens must expire"
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "the token's signature was not made with a key that is accepted here"
	case errors.Is(err, jwt.ErrInvalidType):
		for _, name := range []string{"exp", "nbf", "iat", "aud", "iss"} {
			if strings.Contains(err.Error(), name+" is invalid") {
				return "the token's " + name + " is not of the type that RFC 7519 requires"
			}
		}
		return "a claim of the token is not of the type that RFC 7519 requires"
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "this is not a JSON Web Token"
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return "the key that signed the token is not known here"
	default:
		return "the token is invalid"
	}
}

// Mint signs a token with a secret, for development and tests.
func Mint(secret string, u User, life time.Duration) (string, error) {
	if secret == "" {
		return "", errors.New("mint a token: there is no secret to sign it with")
	}
	now := time.Now()
	c := jwt.MapClaims{"sub": u.ID, "iat": now.Unix(), "exp": now.Add(life).Unix()}
	for name, value := range map[string]string{"name": u.Name, "picture": u.Picture, "role": u.Role} {
		if value != "" {
			c[name] = value
		}
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString([]byte(secret))
	if err != nil {
		return "", fmt.Errorf("mint a token: %w", err)
	}
	return token, nil
}
