// Package auth says who a token names. Tokens are JSON Web Tokens of the school's own sign-in: signed with a shared
// secret (HS256), or with a key from its JWKS.
package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// RoleService is the role of another program of the school, which may act on behalf of users.
const RoleService = "service"

const (
	longestToken = 8 << 10
	longestName  = 256
	leeway       = 30 * time.Second // clocks differ
)

// User is whoever a valid token names.
type User struct {
	ID      string
	Name    string
	Picture string
	Role    string
	Expires time.Time
}

// ActingFor says as whom the user acts: as themselves, or, in the role "service", as whom they name.
func (u User) ActingFor(onBehalfOf string) (actor string, err error) {
	switch {
	case onBehalfOf == "" || onBehalfOf == u.ID:
		return u.ID, nil
	case u.Role != RoleService:
		return "", refusal.New(refusal.Unauthorized, "only tokens of the role %q act on behalf of others", RoleService)
	case !catalog.ValidID(onBehalfOf):
		return "", refusal.New(refusal.InvalidField, "on_behalf_of has to be a user's id")
	}
	return onBehalfOf, nil
}

type claims struct {
	jwt.RegisteredClaims
	Name    string `json:"name,omitempty"`
	Picture string `json:"picture,omitempty"`
	Role    string `json:"role,omitempty"`
}

// Verifier checks tokens. It is safe for concurrent use.
type Verifier struct {
	parser *jwt.Parser
	key    func(context.Context) jwt.Keyfunc
}

// NewVerifier checks tokens against a secret, or, where that is empty, against the keys at a JWKS URL, which are
// fetched in the background until ctx ends: every hour, and when a token names an unknown one, at most every 10 s. Keys
// that cannot be had yet are no error here: tokens are refused until they are there.
func NewVerifier(ctx context.Context, secret, jwksURL string) (*Verifier, error) {
	switch {
	case secret != "":
		key := func(*jwt.Token) (any, error) { return []byte(secret), nil }
		return &Verifier{parser("HS256"), func(context.Context) jwt.Keyfunc { return key }}, nil
	case jwksURL != "":
		keys, err := newKeySet(ctx, jwksURL, pace{usual: time.Hour, retry: time.Second, slowest: 30 * time.Second,
			unknown: 10 * time.Second})
		if err != nil {
			return nil, err
		}
		return ofKeys(keys), nil
	default:
		return nil, errors.New("set JWT_SECRET or JWKS_URL: without one no token can be checked")
	}
}

// ofKeys takes no method that signs with a shared secret: a public key, which everybody knows, would pass for one.
func ofKeys(keys *keySet) *Verifier {
	return &Verifier{parser("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"), keys.key}
}

func parser(methods ...string) *jwt.Parser {
	return jwt.NewParser(jwt.WithExpirationRequired(), jwt.WithLeeway(leeway), jwt.WithValidMethods(methods))
}

// Verify says who a token names. Its error is a refusal that says what is wrong with the token, and nothing of it.
func (v *Verifier) Verify(ctx context.Context, token string) (User, error) {
	if token == "" {
		return User{}, refusal.New(refusal.Unauthorized,
			"a token is missing: Authorization: Bearer <token>, or a first frame of type auth")
	}
	if len(token) > longestToken {
		return User{}, refusal.New(refusal.Unauthorized, "the token is longer than %d bytes", longestToken)
	}
	var c claims
	if _, err := v.parser.ParseWithClaims(token, &c, v.key(ctx)); err != nil {
		return User{}, refusal.New(refusal.Unauthorized, "%s", reason(err))
	}
	if !catalog.ValidID(c.Subject) {
		return User{}, refusal.New(refusal.Unauthorized, "the token's sub is no id: 1 to 128 of A-Z a-z 0-9 . _ @ -")
	}
	if len(c.Name) > longestName || len(c.Picture) > 2048 || len(c.Role) > 64 {
		return User{}, refusal.New(refusal.Unauthorized, "a claim of the token is too long: name, picture or role")
	}
	if strings.ContainsRune(c.Name+c.Picture+c.Role, 0) {
		return User{}, refusal.New(refusal.Unauthorized,
			"a claim of the token holds the character U+0000, which cannot be stored")
	}
	return User{ID: c.Subject, Name: c.Name, Picture: c.Picture, Role: c.Role, Expires: c.ExpiresAt.Time}, nil
}

func reason(err error) string {
	switch {
	case errors.Is(err, errNoKeys):
		return "the keys that sign tokens are not there yet, try again"
	case errors.Is(err, jwt.ErrTokenExpired):
		return "the token has expired"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return "the token does not hold yet"
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "the token has no exp: tokens have to end"
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "the token's signature is not of a key or method that is accepted here"
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "this is no JSON Web Token"
	case errors.Is(err, jwkset.ErrKeyNotFound), errors.Is(err, jwt.ErrTokenUnverifiable):
		return "the key that signed the token is not known here"
	default:
		return "the token does not hold"
	}
}

// Mint signs a token with a secret, for development and tests.
func Mint(secret string, u User, life time.Duration) (string, error) {
	if secret == "" {
		return "", errors.New("mint a token: there is no secret to sign it with")
	}
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{Name: u.Name, Picture: u.Picture, Role: u.Role,
		RegisteredClaims: jwt.RegisteredClaims{Subject: u.ID, IssuedAt: jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(life))}}).SignedString([]byte(secret))
	if err != nil {
		return "", fmt.Errorf("mint a token: %w", err)
	}
	return token, nil
}
